package apiserver

import (
	"net/http"
	"strconv"

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
		e = wire.NewEncoder(o.kind, m.encoding, func(obj runtime.Object) (runtime.Object, error) {
			return inVersion(o.resource, obj, o.kind)
		})
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

// respond writes the outcome of a verb on a single object.
func (s *Server) respond(w http.ResponseWriter, req *http.Request, code int, m media, o operation, result registry.Result) {
	if status, ok := result.Object.(*metav1.Status); ok && result.Entry == nil {
		m.as = nil
		s.deliver(w, req, s.sendStatus(w, req, code, m, status))
		return
	}
	if result.Entry == nil && listOf(result.Object) {
		s.deliver(w, req, s.sendAnyList(w, req, code, m, o, result.Object))
		return
	}
	if m.table() {
		s.deliver(w, req, s.sendTable(w, req, code, m, o, []registry.Result{result}, metav1.ListMeta{}))
		return
	}
	if m.as != nil && m.as.Kind == "PartialObjectMetadataList" {
		s.fail(w, req, notConvertible(m, "an object is not a list"))
		return
	}
	e := s.encoder(m, o)
	item, err := itemOf(e, o, result)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.deliver(w, req, send(w, req, code, m, e.Object(item)))
}

// itemOf encodes a result: an entry's encoding is kept with it, an object's is not.
func itemOf(e *wire.Encoder, o operation, result registry.Result) ([]byte, error) {
	if result.Entry != nil {
		return e.Item(result.Entry, 0)
	}
	return e.Item(transient{result.Object}, 0)
}

// transient is an object that is nobody's but the response's. It keeps nothing.
type transient struct{ obj runtime.Object }

func (t transient) Object() (runtime.Object, error) { return t.obj, nil }

func (t transient) Wire(_ any, encode func() ([]byte, error)) ([]byte, error) { return encode() }

func (s *Server) sendStatus(w http.ResponseWriter, req *http.Request, code int, m media, status *metav1.Status) error {
	if status.Code == 0 && code != http.StatusOK {
		c := *status
		c.Code = int32(code)
		status = &c
	}
	return sendObject(w, req, code, m, status, statusKind)
}

// deliver ends a response. What cannot be encoded is our fault; what cannot be written, as a rule,
// the client's.
func (s *Server) deliver(w http.ResponseWriter, req *http.Request, err error) {
	if err == nil {
		return
	}
	if r, ok := w.(*response); ok && r.code != 0 {
		s.log.Debug("response not delivered", "path", req.URL.Path, "error", err)
		return
	}
	s.fail(w, req, err)
}

// respondList writes a page of objects, from the bytes of its items.
func (s *Server) respondList(w http.ResponseWriter, req *http.Request, m media, o operation, list *registry.List) {
	listMeta := metav1.ListMeta{
		ResourceVersion:    strconv.FormatInt(list.Revision, 10),
		Continue:           list.Continue,
		RemainingItemCount: list.Remaining,
	}
	if m.table() {
		results := make([]registry.Result, len(list.Entries))
		for i, entry := range list.Entries {
			results[i].Entry = entry
		}
		s.deliver(w, req, s.sendTable(w, req, http.StatusOK, m, o, results, listMeta))
		return
	}
	if m.as != nil && m.as.Kind == "PartialObjectMetadata" {
		s.fail(w, req, notConvertible(m, "a list is not an object"))
		return
	}
	kind := o.kind.GroupVersion().WithKind(o.kind.Kind + "List")
	if m.metadata() {
		kind = *m.as
	}
	e := s.encoder(m, o)
	items := make([][]byte, len(list.Entries))
	for i, entry := range list.Entries {
		item, err := e.Item(entry, 0)
		if err != nil {
			s.fail(w, req, err)
			return
		}
		items[i] = item
		if i%1024 == 0 && req.Context().Err() != nil {
			s.fail(w, req, req.Context().Err())
			return
		}
	}
	body, err := e.List(kind, listMeta, items)
	if err != nil {
		s.fail(w, req, err)
		return
	}
	s.deliver(w, req, send(w, req, http.StatusOK, m, body))
}
