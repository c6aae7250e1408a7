package registry

import (
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"barque.dev/internal/api"
)

// objects is what admission plugins make, convert and compare objects with: they see objects of
// the version that their rules name, whatever version a request speaks. Kinds that the registry
// serves are asked of their codecs; others, such as the options of connections, of the scheme.
type objects struct{ registry *Registry }

var _ admission.ObjectInterfaces = objects{}

func (o objects) GetObjectCreater() runtime.ObjectCreater                       { return o }
func (o objects) GetObjectTyper() runtime.ObjectTyper                           { return api.Scheme() }
func (o objects) GetObjectDefaulter() runtime.ObjectDefaulter                   { return o }
func (o objects) GetObjectConvertor() runtime.ObjectConvertor                   { return o }
func (o objects) GetEquivalentResourceMapper() runtime.EquivalentResourceMapper { return o }

// codec returns the codec of a served kind; nil for others.
func (o objects) codec(gvk schema.GroupVersionKind) api.Codec {
	if res, _, ok := o.registry.ForKind(gvk.GroupKind()); ok {
		return res.Codec()
	}
	return nil
}

// New makes an empty object of a kind.
func (o objects) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	if codec := o.codec(gvk); codec != nil {
		return codec.New(gvk.GroupVersion())
	}
	return kindCreater{}.New(gvk)
}

// Default sets the defaults of the object's version.
func (o objects) Default(obj runtime.Object) {
	if codec := o.codec(obj.GetObjectKind().GroupVersionKind()); codec != nil {
		codec.Default(obj)
		return
	}
	api.Scheme().Default(obj)
}

// Convert copies in into out, in out's version; they share no memory afterwards.
func (o objects) Convert(in, out, _ any) error {
	from, ok := in.(runtime.Object)
	if !ok {
		return fmt.Errorf("convert %T: it is no API object", in)
	}
	into, ok := out.(runtime.Object)
	if !ok {
		return fmt.Errorf("convert to %T: it is no API object", out)
	}
	kind, err := kindOfObject(into)
	if err != nil {
		return err
	}
	made := from
	if reflect.TypeOf(in) != reflect.TypeOf(out) || kind != from.GetObjectKind().GroupVersionKind() {
		if made, err = o.inVersion(from, kind.GroupVersion()); err != nil {
			return err
		}
	}
	if reflect.TypeOf(made) != reflect.TypeOf(out) {
		return fmt.Errorf("convert %T to %T: the kinds differ", in, out)
	}
	reflect.ValueOf(into).Elem().Set(reflect.ValueOf(made.DeepCopyObject()).Elem())
	return nil
}

// kindOfObject is what an object says that it is, or, if it does not say, what its Go type is.
func kindOfObject(obj runtime.Object) (schema.GroupVersionKind, error) {
	if kind := obj.GetObjectKind().GroupVersionKind(); !kind.Empty() {
		return kind, nil
	}
	kinds, _, err := api.Scheme().ObjectKinds(obj)
	if err != nil {
		return schema.GroupVersionKind{}, fmt.Errorf("find the kind of a %T: %w", obj, err)
	}
	return kinds[0], nil
}

// ConvertToVersion returns an object in a version.
func (o objects) ConvertToVersion(in runtime.Object, target runtime.GroupVersioner) (runtime.Object, error) {
	gv, exact := target.(schema.GroupVersion)
	if !exact {
		return nil, fmt.Errorf("convert %T to %v: a version has to be named", in, target)
	}
	out, err := o.inVersion(in, gv)
	if err != nil {
		return nil, err
	}
	return out.DeepCopyObject(), nil
}

// inVersion returns an object in a version. What has no Go type of its own becomes one of the
// scheme's types where the scheme has one for it.
func (o objects) inVersion(in runtime.Object, gv schema.GroupVersion) (runtime.Object, error) {
	kind := in.GetObjectKind().GroupVersionKind()
	if raw, ok := in.(runtime.Unstructured); ok && api.Scheme().Recognizes(kind) {
		into, err := kindCreater{}.New(kind)
		if err != nil {
			return nil, err
		}
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(raw.UnstructuredContent(), into); err != nil {
			return nil, fmt.Errorf("convert %s: %w", kind, err)
		}
		in = into
	}
	if codec := o.codec(kind); codec != nil {
		return codec.Convert(in, gv)
	}
	return api.Convert(in, gv)
}

// ConvertFieldLabel implements runtime.ObjectConvertor.
func (o objects) ConvertFieldLabel(gvk schema.GroupVersionKind, label, value string) (string, string, error) {
	if codec := o.codec(gvk); codec != nil {
		return codec.ConvertField(gvk.GroupVersion(), label, value)
	}
	return api.Scheme().ConvertFieldLabel(gvk, label, value)
}

// EquivalentResourcesFor returns every resource and version by which the same objects can be
// reached, the given one included, if they have the subresource.
func (o objects) EquivalentResourcesFor(gvr schema.GroupVersionResource, subresource string) []schema.GroupVersionResource {
	asked, ok := o.registry.Lookup(gvr)
	if !ok {
		return nil
	}
	var out []schema.GroupVersionResource
	for _, res := range o.registry.Resources() {
		if res.GroupResource != asked.GroupResource && (asked.Virtual() || res.Prefix != asked.Prefix) {
			continue
		}
		for _, version := range res.Served {
			if other := res.GVR(version); !o.KindFor(other, subresource).Empty() {
				out = append(out, other)
			}
		}
	}
	return out
}

// KindFor returns the kind of a resource's or subresource's objects; empty if there is none.
func (o objects) KindFor(gvr schema.GroupVersionResource, subresource string) schema.GroupVersionKind {
	res, ok := o.registry.Lookup(gvr)
	if !ok {
		return schema.GroupVersionKind{}
	}
	req := Request{Resource: res, Version: gvr.Version, Subresource: subresource}
	if subresource != "" && req.sub() == nil {
		return schema.GroupVersionKind{}
	}
	return req.kind()
}
