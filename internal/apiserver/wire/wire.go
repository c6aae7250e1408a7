// Package wire assembles what the API server sends from encodings of single object versions
// that are made at most once.
//
// The unit is an item: one object version in one encoding and one API version, exactly the
// bytes that stand for it inside a list. A response for a single object is the item behind a
// head that names its kind; a list is a head, the items, and a tail; a watch event is the
// single object in a frame. Nothing is encoded twice, however many responses and watches carry
// a version, and what comes out is, byte for byte, what Kubernetes' own serializers write.
//
// In JSON an item is an object without its leading kind and apiVersion. In protobuf it is the
// message without the envelope (k8s.io/apimachinery's runtime.Unknown).
package wire

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"strconv"
	"unique"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Encoding is how objects are written as bytes.
type Encoding uint8

const (
	// JSON is RFC 8259, as encoding/json writes it.
	JSON Encoding = iota
	// Protobuf is Kubernetes' protobuf envelope, application/vnd.kubernetes.protobuf.
	Protobuf
)

// A Version is an immutable version of an object that keeps its encodings. *store.Entry is one.
type Version interface {
	// Object is the typed object, shared and read-only, with its resourceVersion set. Its
	// quantities have their texts already: writing one as protobuf caches its text inside it,
	// which would be a race (the codec's Decode sees to it).
	Object() (runtime.Object, error)
	// Wire returns what make returned when first called for the (comparable) id.
	Wire(id any, make func() ([]byte, error)) ([]byte, error)
}

// An Encoder turns versions into items of one kind in one encoding. It is immutable and safe
// for concurrent use.
type Encoder struct {
	kind     schema.GroupVersionKind
	encoding Encoding
	convert  func(runtime.Object) (runtime.Object, error)
	head     []byte
	// id is the key under which versions keep items. It is one word, whatever kinds there are, so that it is found by comparing
	// words, and takes no memory for each version that is asked.
	id any
	// typed says that items carry their own kind, as those of metadata lists do.
	typed bool
	// custom says that objects have no Go type.
	custom bool
}

// NewEncoder returns an encoder for objects of kind. convert makes such an object of a version's
// stored one; it must not change its argument, and may return it.
func NewEncoder(kind schema.GroupVersionKind, encoding Encoding, convert func(runtime.Object) (runtime.Object, error)) *Encoder {
	return &Encoder{
		kind: kind, encoding: encoding, convert: convert, head: objectHead(kind, encoding), id: unique.Make(itemID{kind, encoding}),
	}
}

// NewMetadataEncoder returns an encoder that writes versions of any kind as PartialObjectMetadata of
// gv, which is meta.k8s.io/v1 or v1beta1.
func NewMetadataEncoder(gv schema.GroupVersion, encoding Encoding) *Encoder {
	kind := gv.WithKind("PartialObjectMetadata")
	e := NewEncoder(kind, encoding, func(obj runtime.Object) (runtime.Object, error) {
		m, err := meta.Accessor(obj)
		if err != nil {
			return nil, err
		}
		return meta.AsPartialObjectMetadata(m), nil
	})
	e.typed = encoding == JSON
	return e
}

// NewCustomEncoder is NewEncoder for custom resources, of which every item says its kind, also in a list.
func NewCustomEncoder(kind schema.GroupVersionKind, encoding Encoding, convert func(runtime.Object) (runtime.Object, error)) *Encoder {
	e := NewEncoder(kind, encoding, convert)
	e.typed, e.custom = encoding == JSON, true
	return e
}

// Kind is the kind of the objects that the encoder writes.
func (e *Encoder) Kind() schema.GroupVersionKind { return e.kind }

// Encoding is the encoder's encoding.
func (e *Encoder) Encoding() Encoding { return e.encoding }

// itemID is what an item depends on. It is made unique, see Encoder.
type itemID struct {
	kind     schema.GroupVersionKind
	encoding Encoding
}

// laterID is the key of an item that says another resourceVersion than its version's own.
type laterID struct {
	item     any
	revision int64
}

// Item returns the item of v, kept by v for whoever asks next. With a revision other than 0 the item says
// that resourceVersion in place of its own: a deletion's event carries the last version at the
// revision of the deletion, which is one number for all watches.
func (e *Encoder) Item(v Version, revision int64) ([]byte, error) {
	id := e.id
	if revision != 0 {
		id = laterID{e.id, revision}
	}
	return v.Wire(id, func() ([]byte, error) {
		obj, err := v.Object()
		if err != nil {
			return nil, err
		}
		if obj, err = e.convert(obj); err != nil {
			return nil, fmt.Errorf("convert to %s: %w", e.kind, err)
		}
		if revision != 0 {
			if obj, err = atRevision(obj, revision); err != nil {
				return nil, err
			}
		}
		return e.encode(obj)
	})
}

// Kept returns the item of v if it is there already.
func (e *Encoder) Kept(v interface {
	Peek(id any) ([]byte, bool)
}) ([]byte, bool) {
	return v.Peek(e.id)
}

// ItemAs is Item for who has converted v's object to the encoder's kind already.
func (e *Encoder) ItemAs(v Version, converted runtime.Object) ([]byte, error) {
	return v.Wire(e.id, func() ([]byte, error) { return e.encode(converted) })
}

// ItemOf encodes obj, which has to be of the encoder's kind already and is not changed. Nothing is kept.
func (e *Encoder) ItemOf(obj runtime.Object) ([]byte, error) { return e.encode(obj) }

func (e *Encoder) encode(obj runtime.Object) ([]byte, error) {
	if e.encoding == Protobuf {
		return marshalProtobuf(obj)
	}
	kind := schema.GroupVersionKind{}
	if e.typed {
		kind = e.kind
	}
	return marshalJSON(obj, kind)
}

// marshalProtobuf is the bare message; the kind is the envelope's business.
func marshalProtobuf(obj runtime.Object) ([]byte, error) {
	m, ok := obj.(interface{ Marshal() ([]byte, error) })
	if !ok {
		return nil, fmt.Errorf("encode %T: it has no protobuf form", obj)
	}
	b, err := m.Marshal()
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", obj, err)
	}
	return b, nil
}

// marshalJSON writes obj as if its type were kind. obj is shared, so a shallow copy takes the kind.
func marshalJSON(obj runtime.Object, kind schema.GroupVersionKind) ([]byte, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		return marshalContent(u, kind)
	}
	if obj.GetObjectKind().GroupVersionKind() != kind {
		obj = shallowCopy(obj)
		obj.GetObjectKind().SetGroupVersionKind(kind)
	}
	b, err := json.Marshal(obj)
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", obj, err)
	}
	return b, nil
}

// marshalContent is marshalJSON for objects without a Go type.
func marshalContent(u *unstructured.Unstructured, kind schema.GroupVersionKind) ([]byte, error) {
	content := maps.Clone(u.Object)
	delete(content, "kind")
	delete(content, "apiVersion")
	if !kind.Empty() {
		content["kind"], content["apiVersion"] = kind.Kind, kind.GroupVersion().String()
	}
	b, err := json.Marshal(content)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", u.GetKind(), err)
	}
	return b, nil
}

func shallowCopy(obj runtime.Object) runtime.Object {
	from := reflect.ValueOf(obj).Elem()
	to := reflect.New(from.Type())
	to.Elem().Set(from)
	return to.Interface().(runtime.Object)
}

func atRevision(obj runtime.Object, revision int64) (runtime.Object, error) {
	if u, ok := obj.(*unstructured.Unstructured); ok {
		m, _ := u.Object["metadata"].(map[string]any)
		own := &unstructured.Unstructured{Object: maps.Clone(u.Object)}
		own.Object["metadata"] = maps.Clone(m)
		own.SetResourceVersion(strconv.FormatInt(revision, 10))
		return own, nil
	}
	obj = shallowCopy(obj)
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, err
	}
	m.SetResourceVersion(strconv.FormatInt(revision, 10))
	return obj, nil
}

// objectHead is what stands before an item of kind to make it an object of its own. For protobuf
// it ends where the message's length belongs.
func objectHead(kind schema.GroupVersionKind, encoding Encoding) []byte {
	apiVersion := kind.GroupVersion().String()
	if encoding == Protobuf {
		return append([]byte(nil), unknownHead(apiVersion, kind.Kind)...)
	}
	var b bytes.Buffer
	b.WriteString(`{"kind":`)
	b.Write(quote(kind.Kind))
	if apiVersion != "" { // some of the oldest documents have none
		b.WriteString(`,"apiVersion":`)
		b.Write(quote(apiVersion))
	}
	return b.Bytes()
}

func quote(s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always has a JSON form
	}
	return b
}
