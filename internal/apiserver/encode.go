package apiserver

import (
	"net/http"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/wire"
)

// encoderKey is what an encoder depends on. The resource is part of it because it converts.
type encoderKey struct {
	resource *api.Resource
	kind     schema.GroupVersionKind
	encoding wire.Encoding
	metadata bool
}

// encoder returns the encoder of what an operation answers with.
func (s *Server) encoder(m media, o operation) *wire.Encoder {
	key := encoderKey{resource: o.resource, kind: o.kind, encoding: m.encoding, metadata: m.metadata()}
	if key.metadata {
		key.resource, key.kind = nil, *m.as
	}
	if e, ok := s.encoders.Load(key); ok {
		return e.(*wire.Encoder)
	}
	var e *wire.Encoder
	if key.metadata {
		e = wire.NewMetadataEncoder(m.as.GroupVersion(), m.encoding)
	} else {
		r := o.resource
		e = wire.NewEncoder(o.kind, m.encoding, func(obj runtime.Object) (runtime.Object, error) {
			return inVersion(r, obj, o.kind)
		})
		if r.Custom != nil {
			return e // custom resources come and go, and must not be held by what they leave here
		}
	}
	actual, _ := s.encoders.LoadOrStore(key, e)
	return actual.(*wire.Encoder)
}

// inVersion turns an object of the resource, or of one of its subresources, into one of kind.
func inVersion(r *api.Resource, obj runtime.Object, kind schema.GroupVersionKind) (runtime.Object, error) {
	if r.Kind == kind.Kind && r.Group == kind.Group {
		return r.Codec().Convert(obj, kind.GroupVersion())
	}
	kinds, _, err := api.Scheme().ObjectKinds(obj)
	if err != nil {
		return nil, err
	}
	for _, k := range kinds {
		if k == kind {
			return obj, nil
		}
	}
	return api.Scheme().ConvertToVersion(obj, kind.GroupVersion())
}

// answer is what a verb came to: a page of a list, or the result of a verb on a single object, which is that object, a
// Status, or a list that the registry put together.
type answer struct {
	code   int
	page   *page // nil if it is none
	result registry.Result
}

// respond writes an answer in the form that the client asked for.
func (x *exchange) respond(a answer) error {
	if a.page == nil && a.result.Entry == nil {
		if status, ok := a.result.Object.(*metav1.Status); ok {
			return x.respondStatus(a.code, status)
		}
		if meta.IsListType(a.result.Object) {
			var err error
			if a.page, err = pageOfObject(a.result.Object); err != nil {
				return err
			}
		}
	}
	switch {
	case x.media.table():
		return x.respondTable(a)
	case a.page != nil:
		return x.respondPage(a)
	case x.media.as != nil && x.media.as.Kind == "PartialObjectMetadataList":
		return notConvertible(x.media, "an object is not a list")
	}
	e := x.server.encoder(x.media, x.operation)
	item, err := itemOf(e, a.result)
	if err != nil {
		return err
	}
	return send(x.w, x.req, a.code, x.media, e.Object(item))
}

func (x *exchange) respondStatus(code int, status *metav1.Status) error {
	if status.Code == 0 && code != http.StatusOK {
		c := *status
		c.Code = int32(code)
		status = &c
	}
	m := x.media
	m.as = nil
	return sendObject(x.w, x.req, code, m, status, statusKind)
}

// itemOf encodes a result: an entry's encoding is kept with it, an object's is not.
func itemOf(e *wire.Encoder, result registry.Result) ([]byte, error) {
	if result.Entry != nil {
		return e.Item(result.Entry, 0)
	}
	return e.Item(transient{result.Object}, 0)
}

// transient is an object that is nobody's but the response's. It keeps nothing.
type transient struct{ obj runtime.Object }

func (t transient) Object() (runtime.Object, error) { return t.obj, nil }

func (t transient) Wire(_ any, encode func() ([]byte, error)) ([]byte, error) { return encode() }

// page is a list, or a part of one.
type page struct {
	metav1.ListMeta
	results []registry.Result
}

func pageOf(list *registry.List) *page {
	p := &page{results: make([]registry.Result, len(list.Entries)), ListMeta: metav1.ListMeta{
		ResourceVersion: strconv.FormatInt(list.Revision, 10), Continue: list.Continue, RemainingItemCount: list.Remaining,
	}}
	for i, entry := range list.Entries {
		p.results[i].Entry = entry
	}
	return p
}

// pageOfObject makes a page of a list that the registry put together, such as what a deletion removed.
func pageOfObject(list runtime.Object) (*page, error) {
	items, err := meta.ExtractList(list)
	if err != nil {
		return nil, err
	}
	accessor, err := meta.ListAccessor(list)
	if err != nil {
		return nil, err
	}
	p := &page{results: make([]registry.Result, len(items)), ListMeta: metav1.ListMeta{
		ResourceVersion: accessor.GetResourceVersion(), Continue: accessor.GetContinue(), RemainingItemCount: accessor.GetRemainingItemCount(),
	}}
	for i, item := range items {
		p.results[i].Object = item
	}
	return p, nil
}

// respondPage writes a list from the bytes of its items.
func (x *exchange) respondPage(a answer) error {
	if x.media.as != nil && x.media.as.Kind == "PartialObjectMetadata" {
		return notConvertible(x.media, "a list is not an object")
	}
	kind := x.kind.GroupVersion().WithKind(x.kind.Kind + "List")
	if x.sub == nil {
		kind.Kind = x.resource.ListKind
	}
	if x.media.metadata() {
		kind = x.media.as.GroupVersion().WithKind("PartialObjectMetadataList")
	}
	e := x.server.encoder(x.media, x.operation)
	items := make([][]byte, len(a.page.results))
	for i, result := range a.page.results {
		if i%1024 == 0 && x.req.Context().Err() != nil {
			return x.req.Context().Err()
		}
		var err error
		if items[i], err = itemOf(e, result); err != nil {
			return err
		}
	}
	body, err := e.List(kind, a.page.ListMeta, items)
	if err != nil {
		return err
	}
	return send(x.w, x.req, a.code, x.media, body)
}
