package apiserver

import (
	"errors"
	"net/http"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/wire"
	"barque.dev/internal/client"
	"barque.dev/internal/store"
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
		convert := func(obj runtime.Object) (runtime.Object, error) { return inVersion(r, obj, o.kind) }
		e = wire.NewEncoder(o.kind, m.encoding, convert)
		if r.Custom != nil {
			if o.kind.Group == r.Group {
				e = wire.NewCustomEncoder(o.kind, m.encoding, convert)
			}
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
	err := x.respondIn(a)
	if err != nil && a.page != nil {
		return x.namingUnreadable(a.page, err)
	}
	return err
}

// namingUnreadable is the error of a list that could not be written: if that is because of an object that can't be read,
// it names all such objects of the list.
func (x *exchange) namingUnreadable(p *page, err error) error {
	if one := (*store.UnreadableError)(nil); !errors.As(err, &one) {
		return err
	}
	var unreadable client.Unreadable
	for _, result := range p.results() {
		if _, err := result.Get(); err != nil && !unreadable.Add(err) {
			break
		}
	}
	if named := unreadable.Err(x.resource.GroupResource); named != nil {
		return named
	}
	return err // it can be read by now
}

func (x *exchange) respondIn(a answer) error {
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
	return x.answerWith(a.code, func(m media) (wire.Body, error) {
		e := x.server.encoder(m, x.operation)
		item, err := itemOf(e, a.result)
		if err != nil {
			return wire.Body{}, err
		}
		return e.Object(item), nil
	})
}

func (x *exchange) respondStatus(code int, status *metav1.Status) error {
	if status.Code == 0 && code != http.StatusOK {
		c := *status
		c.Code = int32(code)
		status = &c
	}
	m := x.media
	m.as = nil
	x.audit.status(status)
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

// page is a list, or a part of one: of entries as a rule, or of objects.
type page struct {
	metav1.ListMeta
	entries []*store.Entry
	objects []runtime.Object
}

func (p *page) len() int { return len(p.entries) + len(p.objects) }

func (p *page) at(i int) registry.Result {
	if i < len(p.entries) {
		return registry.Result{Entry: p.entries[i]}
	}
	return registry.Result{Object: p.objects[i-len(p.entries)]}
}

// results are all that the page shows.
func (p *page) results() []registry.Result {
	all := make([]registry.Result, p.len())
	for i := range all {
		all[i] = p.at(i)
	}
	return all
}

func pageOf(list *registry.List) *page {
	return &page{entries: list.Entries, ListMeta: metav1.ListMeta{
		ResourceVersion: strconv.FormatInt(list.Revision, 10), Continue: list.Continue, RemainingItemCount: list.Remaining,
	}}
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
	return &page{objects: items, ListMeta: metav1.ListMeta{
		ResourceVersion: accessor.GetResourceVersion(), Continue: accessor.GetContinue(), RemainingItemCount: accessor.GetRemainingItemCount(),
	}}, nil
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
	return x.answerWith(a.code, func(m media) (wire.Body, error) {
		e := x.server.encoder(m, x.operation)
		if err := x.convertTogether(e, a.page); err != nil {
			return wire.Body{}, err
		}
		items := make([][]byte, a.page.len())
		for i := range items {
			if i%1024 == 0 && x.req.Context().Err() != nil {
				return wire.Body{}, x.req.Context().Err()
			}
			var err error
			if items[i], err = itemOf(e, a.page.at(i)); err != nil {
				return wire.Body{}, err
			}
		}
		return e.List(kind, a.page.ListMeta, items)
	})
}

// convertedAtOnce bounds what is converted by one call of a webhook, in bytes as they are kept: its answer, which may be longer, is
// bounded too.
const convertedAtOnce = 2 << 20

// convertTogether has those objects of a page converted together that have another version than the client wants, and keeps
// their items: webhooks are asked once for a list, and not once for each object.
func (x *exchange) convertTogether(e *wire.Encoder, p *page) error {
	codec, ok := x.resource.Codec().(api.BatchConverter)
	if !ok || e.Kind() != x.kind || !x.own() {
		return nil
	}
	var entries []*store.Entry
	var objs []runtime.Object
	size := 0
	convert := func() error {
		if len(objs) < 2 {
			return nil // is converted when it is encoded
		}
		converted, err := codec.ConvertAll(objs, x.kind.GroupVersion())
		if err != nil {
			return err
		}
		for i, entry := range entries {
			if _, err := e.ItemAs(entry, converted[i]); err != nil {
				return err
			}
		}
		return nil
	}
	for _, entry := range p.entries {
		if _, ok := e.Kept(entry); ok {
			continue
		}
		obj, err := entry.Object()
		if err != nil {
			return err
		}
		if obj.GetObjectKind().GroupVersionKind() == x.kind {
			continue
		}
		if size += entry.Size(); size > convertedAtOnce {
			if err := convert(); err != nil {
				return err
			}
			entries, objs, size = nil, nil, entry.Size()
		}
		entries, objs = append(entries, entry), append(objs, obj)
	}
	return convert()
}
