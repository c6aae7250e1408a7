package apiserver

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/wire"
)

// notConvertible is the answer to who asks for a form that the answer cannot take.
func notConvertible(m media, why string) error {
	return &apierrors.StatusError{ErrStatus: metav1.Status{
		Status: metav1.StatusFailure, Code: http.StatusNotAcceptable, Reason: metav1.StatusReasonNotAcceptable,
		Message: fmt.Sprintf("you requested %s, but %s", m.as.Kind, why),
	}}
}

// tables makes the tables of one response or watch.
type tables struct {
	server  *Server
	o       operation
	kind    schema.GroupVersionKind // Table, in the version that was asked for
	options metav1.TableOptions
}

func (s *Server) newTables(req *http.Request, m media, o operation) (*tables, error) {
	if r := o.resource; !slices.Contains(r.Verbs, "get") && !slices.Contains(r.Verbs, "list") {
		// A question that is answered at once, and kept nowhere, has no columns.
		return nil, notConvertible(m, fmt.Sprintf("the resource %s does not support being converted to a Table", r.GroupResource))
	}
	t := &tables{server: s, o: o, kind: *m.as}
	if err := options(req, &t.options); err != nil {
		return nil, err
	}
	if errs := validation.ValidateTableOptions(&t.options); len(errs) > 0 {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("Unable to convert to Table as requested: %v", errs.ToAggregate()))
	}
	return t, nil
}

func (x *exchange) respondTable(a answer) error {
	t, err := x.server.newTables(x.req, x.media, x.operation)
	if err != nil {
		return err
	}
	results := []registry.Result{a.result}
	if a.page != nil {
		results = a.page.results()
	}
	table, err := t.table(x.req.Context(), results)
	if err != nil {
		return err
	}
	if a.page != nil && a.page.ResourceVersion != "" {
		table.ListMeta = a.page.ListMeta
	}
	return x.answerWith(a.code, func(m media) (wire.Body, error) {
		e := wire.NewEncoder(t.kind, m.encoding, nil)
		item, err := e.ItemOf(table)
		if err != nil {
			return wire.Body{}, err
		}
		return e.Object(item), nil
	})
}

// table prints results, one row or more for each.
func (t *tables) table(ctx context.Context, results []registry.Result) (*metav1.Table, error) {
	table := &metav1.Table{Rows: []metav1.TableRow{}}
	objs := make([]runtime.Object, len(results))
	for i, result := range results {
		obj, err := result.Get()
		if err != nil {
			return nil, err
		}
		if objs[i], err = t.printable(obj); err != nil {
			return nil, err
		}
	}
	if order := t.o.resource.TableOrder; order != nil && t.own() {
		results, objs = inOrder(order, results, objs)
	}
	printed, err := t.print(ctx, objs)
	if err != nil {
		return nil, err
	}
	table.ColumnDefinitions, table.Rows = printed.ColumnDefinitions, printed.Rows
	if table.Rows == nil {
		table.Rows = []metav1.TableRow{}
	}
	if len(table.Rows) != len(results) {
		return nil, fmt.Errorf("print %s: %d rows for %d objects", t.o.kind.Kind, len(table.Rows), len(results))
	}
	for i := range table.Rows {
		if table.Rows[i].Object, err = t.rowObject(results[i]); err != nil {
			return nil, err
		}
	}
	if len(objs) == 1 {
		if m, err := meta.Accessor(objs[0]); err == nil {
			table.ResourceVersion = m.GetResourceVersion()
		}
	}
	return table, nil
}

// inOrder returns results, and the objects that are printed for them, in an order of objects.
func inOrder(order func(a, b runtime.Object) int, results []registry.Result, objs []runtime.Object) ([]registry.Result, []runtime.Object) {
	places := make([]int, len(objs))
	for i := range places {
		places[i] = i
	}
	slices.SortStableFunc(places, func(a, b int) int { return order(objs[a], objs[b]) })
	sortedResults, sortedObjs := make([]registry.Result, len(results)), make([]runtime.Object, len(objs))
	for i, place := range places {
		sortedResults[i], sortedObjs[i] = results[place], objs[place]
	}
	return sortedResults, sortedObjs
}

// printable is an object in the version that printers know.
func (t *tables) printable(obj runtime.Object) (runtime.Object, error) {
	r := t.o.resource
	if !t.own() {
		return obj, nil
	}
	return r.Codec().Convert(obj, r.Storage)
}

// own tells whether the objects are the resource's, and not a subresource's of another kind.
func (t *tables) own() bool {
	return t.o.kind.Kind == t.o.resource.Kind && t.o.kind.Group == t.o.resource.Group
}

func (t *tables) print(ctx context.Context, objs []runtime.Object) (*metav1.Table, error) {
	if t.own() {
		return t.o.resource.Table(ctx, objs, &t.options)
	}
	out := &metav1.Table{}
	for _, obj := range objs {
		one, err := api.PrintSubresource(ctx, obj, &t.options)
		if err != nil {
			return nil, err
		}
		out.ColumnDefinitions = one.ColumnDefinitions
		out.Rows = append(out.Rows, one.Rows...)
	}
	return out, nil
}

// rowObject is what stands behind a row: the object's metadata unless the client wants all or nothing.
func (t *tables) rowObject(result registry.Result) (runtime.RawExtension, error) {
	m := media{encoding: wire.JSON}
	switch t.options.IncludeObject {
	case metav1.IncludeNone:
		return runtime.RawExtension{}, nil
	case metav1.IncludeObject:
	default:
		partial := t.kind.GroupVersion().WithKind("PartialObjectMetadata")
		m.as = &partial
	}
	e := t.server.encoder(m, t.o)
	item, err := itemOf(e, result)
	if err != nil {
		return runtime.RawExtension{}, err
	}
	return runtime.RawExtension{Raw: bytes.TrimSuffix(e.Object(item).Bytes(), []byte("\n"))}, nil
}
