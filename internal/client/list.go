package client

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// List copies the objects that the options select into list, in key order, all of one revision.
// What the items point to is shared: see the package. Field selectors may use what the
// resource's field selectors can, and are fast for those that the store has an index for.
//
// Objects that can't be read are passed over: list has the others, and the error, for which apierrors.IsStoreReadError
// holds, names those that it lacks, as far as the selectors' namespace and index let them through. Whoever looks at each
// object for itself may go on; who takes what is not listed for absent may not.
func (c *InProcess) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	o := (&client.ListOptions{}).ApplyOptions(opts)
	known, err := c.listTypeOf(list)
	if err != nil {
		return err
	}
	gvk := known.item
	res, table, err := c.kept(gvk)
	if err != nil {
		return err
	}
	snapshot := table.Snapshot()
	items, err := known.itemsOf(list)
	if err != nil {
		return err
	}
	after := store.Key{}
	if o.Continue != "" {
		after.Namespace, after.Name, _ = strings.Cut(o.Continue, "/")
	}
	next := ""
	var last store.Key
	var unreadable Unreadable
	err = selected(res, snapshot, o, after, &unreadable, func(entry *store.Entry, obj runtime.Object) (bool, error) {
		if o.Limit > 0 && int64(items.Len()) >= o.Limit {
			next = last.Namespace + "/" + last.Name
			return false, nil
		}
		last = entry.Key()
		return true, appendItem(res, items, obj, gvk)
	})
	if err != nil {
		return err
	}
	list.SetResourceVersion(strconv.FormatInt(snapshot.Revision(), 10))
	list.SetContinue(next)
	return unreadable.Err(res.GroupResource)
}

// selected calls f with what the options select and can be read, in key order behind after, until f says stop.
func selected(res *api.Resource, snapshot *store.Snapshot, o *client.ListOptions, after store.Key, unreadable *Unreadable, f func(*store.Entry, runtime.Object) (bool, error)) error {
	var failure error
	visit := func(entry *store.Entry) bool {
		obj, err := entry.Object()
		if err != nil {
			return unreadable.Add(err)
		}
		ok, err := matches(res, obj, o)
		if err != nil || !ok {
			failure = err
			return err == nil
		}
		more, err := f(entry, obj)
		failure = err
		return more && err == nil
	}
	namespace := o.Namespace
	if !res.Namespaced {
		namespace = ""
	}
	label, value, err := indexOf(res, o.FieldSelector)
	if err != nil {
		return err
	}
	if label == "" {
		if !ascendLabelled(snapshot, o.LabelSelector, namespace, after, visit) {
			snapshot.Ascend(namespace, after, visit)
		}
		return failure
	}
	for _, entry := range snapshot.ByIndex(label, value) {
		key := entry.Key()
		if (namespace != "" && key.Namespace != namespace) || passed(key, after) {
			continue
		}
		if !visit(entry) {
			break
		}
	}
	return failure
}

// ascendLabelled visits what has one of the labels that the selector wants, if the store can find that without looking at all.
func ascendLabelled(snapshot *store.Snapshot, selector labels.Selector, namespace string, after store.Key, visit func(*store.Entry) bool) bool {
	if selector == nil {
		return false
	}
	requirements, _ := selector.Requirements()
	for _, r := range requirements {
		switch r.Operator() {
		case selection.Equals, selection.DoubleEquals, selection.In:
			if snapshot.AscendTrait(store.LabelTrait(r.Key()), r.ValuesUnsorted(), namespace, after, visit) {
				return true
			}
		}
	}
	return false
}

// passed tells whether a key was on an earlier page.
func passed(key, after store.Key) bool {
	return after != store.Key{} && key.Namespace+"/"+key.Name <= after.Namespace+"/"+after.Name
}

// indexOf finds a requirement that the store has an index for, and refuses unknown fields.
func indexOf(res *api.Resource, selector fields.Selector) (label, value string, err error) {
	if selector == nil || selector.Empty() {
		return "", "", nil
	}
	for _, r := range selector.Requirements() {
		if _, _, err := res.Codec().ConvertField(res.Storage, r.Field, r.Value); err != nil {
			return "", "", apierrors.NewBadRequest(err.Error())
		}
		if r.Operator != selection.NotEquals && res.Indexes[r.Field] != nil {
			label, value = r.Field, r.Value
		}
	}
	return label, value, nil
}

func matches(res *api.Resource, obj runtime.Object, o *client.ListOptions) (bool, error) {
	if o.FieldSelector != nil && !o.FieldSelector.Empty() && !o.FieldSelector.Matches(res.Fields(obj)) {
		return false, nil
	}
	if o.LabelSelector == nil || o.LabelSelector.Empty() {
		return true, nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return false, err
	}
	return o.LabelSelector.Matches(labels.Set(m.GetLabels())), nil
}

// listType is what is known of lists of a Go type.
type listType struct {
	// item is the kind of the list's items.
	item schema.GroupVersionKind
	// none are no items, in a list that says so; invalid where it is not known.
	none reflect.Value
}

// listTypeOf finds out what a list is of. Types that stand for one kind are remembered; of others each list says it.
func (c *InProcess) listTypeOf(list client.ObjectList) (listType, error) {
	t := reflect.TypeOf(list)
	if known, ok := c.lists.Load(t); ok {
		return known.(listType), nil
	}
	gvk, err := c.GroupVersionKindFor(list)
	if err != nil {
		return listType{}, err
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	known := listType{item: gvk}
	if !c.single(list) {
		return known, nil
	}
	items, err := known.itemsOf(list)
	if err != nil {
		return listType{}, err
	}
	known.none = reflect.MakeSlice(items.Type(), 0, 0)
	c.lists.Store(t, known)
	return known, nil
}

// single tells whether a list's Go type stands for one kind.
func (c *InProcess) single(list client.ObjectList) bool {
	switch list.(type) {
	case runtime.Unstructured, *metav1.PartialObjectMetadataList:
		return false
	}
	kinds, _, err := c.cfg.Scheme.ObjectKinds(list)
	return err == nil && len(kinds) == 1
}

// itemsOf returns the list's items, emptied.
func (t *listType) itemsOf(list runtime.Object) (reflect.Value, error) {
	ptr, err := meta.GetItemsPtr(list)
	if err != nil {
		return reflect.Value{}, fmt.Errorf("list into %T: %w", list, err)
	}
	items := reflect.ValueOf(ptr).Elem()
	if t.none.IsValid() {
		items.Set(t.none)
	} else {
		items.Set(reflect.MakeSlice(items.Type(), 0, 0))
	}
	return items, nil
}

// appendItem adds a shallow copy of a shared object to the items.
func appendItem(res *api.Resource, items reflect.Value, shared runtime.Object, gvk schema.GroupVersionKind) error {
	n := items.Len()
	items.Grow(1)
	items.SetLen(n + 1)
	item := items.Index(n)
	if item.Kind() == reflect.Pointer {
		item.Set(reflect.New(item.Type().Elem()))
	} else {
		item = item.Addr()
	}
	out, ok := item.Interface().(runtime.Object)
	if !ok {
		return fmt.Errorf("list of %s: %s is not an object", gvk, item.Type())
	}
	return copyInto(res, shared, gvk, out)
}
