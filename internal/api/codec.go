package api

import (
	"bytes"
	"fmt"
	"reflect"
	"strconv"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/json"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// builtinCodec is the Codec of a built-in kind: the scheme's types, protobuf in etcd.
type builtinCodec struct {
	kind    string
	storage schema.GroupVersion
	// json is the version that stands in etcd as JSON; "" for storage as protobuf.
	json string
	// onRead completes objects that an old release wrote, in place; it may be nil.
	onRead func(obj runtime.Object)
}

func (c *builtinCodec) New(gv schema.GroupVersion) (runtime.Object, error) {
	return newOf(gv.WithKind(c.kind))
}

func (c *builtinCodec) NewList(gv schema.GroupVersion) (runtime.Object, error) {
	return newOf(gv.WithKind(c.kind + "List"))
}

func newOf(gvk schema.GroupVersionKind) (runtime.Object, error) {
	obj, err := Scheme().New(gvk)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", gvk, err)
	}
	obj.GetObjectKind().SetGroupVersionKind(gvk)
	return obj, nil
}

func (c *builtinCodec) Default(obj runtime.Object) { Scheme().Default(obj) }

func (c *builtinCodec) Convert(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error) {
	return Convert(obj, gv)
}

// Convert returns a built-in object in another version, by way of the hub version. It does not
// change obj, but may return it, or share memory with it.
func Convert(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error) {
	scheme := Scheme()
	kinds, _, err := scheme.ObjectKinds(obj)
	if err != nil {
		return nil, fmt.Errorf("convert %T: %w", obj, err)
	}
	for _, kind := range kinds {
		if kind.GroupVersion() != gv {
			continue
		}
		if obj.GetObjectKind().GroupVersionKind() == kind {
			return obj, nil
		}
		out := shallowCopy(obj)
		out.GetObjectKind().SetGroupVersionKind(kind)
		return out, nil
	}
	hub, err := scheme.UnsafeConvertToVersion(obj, schema.GroupVersion{Group: kinds[0].Group, Version: runtime.APIVersionInternal})
	if err != nil {
		return nil, fmt.Errorf("convert %s: %w", kinds[0], err)
	}
	out, err := scheme.UnsafeConvertToVersion(hub, gv)
	if err != nil {
		return nil, fmt.Errorf("convert %s to %s: %w", kinds[0], gv, err)
	}
	return out, nil
}

func (c *builtinCodec) Encode(obj runtime.Object) ([]byte, error) {
	if c.json != "" {
		return c.encodeJSON(obj)
	}
	out := shallowCopy(obj)
	m, err := meta.Accessor(out)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind, err)
	}
	m.SetResourceVersion("")
	m.SetSelfLink("")
	out.GetObjectKind().SetGroupVersionKind(c.storage.WithKind(c.kind))
	var buf bytes.Buffer
	if err := protobuf.NewSerializer(Scheme(), Scheme()).Encode(out, &buf); err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind, err)
	}
	return buf.Bytes(), nil
}

// encodeJSON is Encode for kinds that are kept as JSON.
func (c *builtinCodec) encodeJSON(obj runtime.Object) ([]byte, error) {
	out, err := Convert(obj.DeepCopyObject(), schema.GroupVersion{Group: c.storage.Group, Version: c.json})
	if err != nil {
		return nil, err
	}
	m, err := meta.Accessor(out)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind, err)
	}
	m.SetResourceVersion("")
	m.SetSelfLink("")
	var buf bytes.Buffer
	if err := json.NewSerializerWithOptions(json.DefaultMetaFactory, Scheme(), Scheme(), json.SerializerOptions{}).Encode(out, &buf); err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind, err)
	}
	return buf.Bytes(), nil
}

func (c *builtinCodec) Decode(value []byte, revision int64) (runtime.Object, error) {
	codecs := Codecs()
	obj, gvk, err := codecs.UniversalDeserializer().Decode(value, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	Scheme().Default(obj)
	if want := c.storage.WithKind(c.kind); *gvk != want {
		if obj, err = Convert(obj, c.storage); err != nil {
			return nil, err
		}
	} else {
		obj.GetObjectKind().SetGroupVersionKind(want)
	}
	if c.onRead != nil {
		c.onRead(obj)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	m.SetResourceVersion(strconv.FormatInt(revision, 10))
	cacheQuantities(obj)
	return obj, nil
}

// cacheQuantities makes obj safe to be shared by those who encode it as protobuf: a
// resource.Quantity writes its text into itself when it is first asked for its size.
func cacheQuantities(obj runtime.Object) {
	if sized, ok := obj.(interface{ Size() int }); ok {
		_ = sized.Size()
	}
}

func (c *builtinCodec) ConvertField(gv schema.GroupVersion, label, value string) (string, string, error) {
	return Scheme().ConvertFieldLabel(gv.WithKind(c.kind), label, value)
}

// shallowCopy copies the struct that obj points to; what it points to stays shared.
func shallowCopy(obj runtime.Object) runtime.Object {
	src := reflect.ValueOf(obj).Elem()
	dst := reflect.New(src.Type())
	dst.Elem().Set(src)
	return dst.Interface().(runtime.Object)
}

func (c *builtinCodec) Normalize(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error) {
	scheme := Scheme()
	kinds, _, err := scheme.ObjectKinds(obj)
	if err != nil {
		return nil, fmt.Errorf("normalize %T: %w", obj, err)
	}
	hub, err := scheme.UnsafeConvertToVersion(obj, schema.GroupVersion{Group: kinds[0].Group, Version: runtime.APIVersionInternal})
	if err != nil {
		return nil, fmt.Errorf("normalize %s: %w", kinds[0], err)
	}
	out, err := scheme.UnsafeConvertToVersion(hub, gv)
	if err != nil {
		return nil, fmt.Errorf("normalize %s: %w", kinds[0], err)
	}
	return out, nil
}

func (c *builtinCodec) DecodeJSON(data []byte, gv schema.GroupVersion, strict bool) (runtime.Object, error) {
	return DecodeJSON(data, gv.WithKind(c.kind), strict)
}

// DecodeJSON reads a built-in object of a kind, in that version, with defaults. Strict decoding
// returns the object together with the error when fields are unknown or repeated
// (runtime.IsStrictDecodingError).
func DecodeJSON(data []byte, kind schema.GroupVersionKind, strict bool) (runtime.Object, error) {
	decoder := json.NewSerializerWithOptions(json.DefaultMetaFactory, Scheme(), Scheme(), json.SerializerOptions{Strict: strict})
	obj, got, err := decoder.Decode(data, &kind, nil)
	if obj == nil {
		return nil, err
	}
	if got.GroupKind() != kind.GroupKind() {
		return nil, fmt.Errorf("expected %s, got %s", kind, got)
	}
	Scheme().Default(obj)
	converted, cerr := Convert(obj, kind.GroupVersion())
	if cerr != nil {
		return nil, cerr
	}
	return converted, err
}
