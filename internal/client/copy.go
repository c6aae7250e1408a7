package client

import (
	"fmt"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
)

// copyInto copies a shared object of the storage version into out, of the kind that out wants.
// The copy is shallow where the types agree.
func copyInto(res *api.Resource, shared runtime.Object, gvk schema.GroupVersionKind, out runtime.Object) error {
	switch o := out.(type) {
	case *unstructured.Unstructured:
		versioned, err := res.Codec().Convert(shared, gvk.GroupVersion())
		if err != nil {
			return err
		}
		if u, ok := versioned.(*unstructured.Unstructured); ok {
			o.Object = u.Object
			return nil
		}
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(versioned)
		if err != nil {
			return fmt.Errorf("read %s: %w", gvk, err)
		}
		o.Object = content
	case *metav1.PartialObjectMetadata:
		m, err := meta.Accessor(shared)
		if err != nil {
			return fmt.Errorf("read %s: %w", gvk, err)
		}
		partial := meta.AsPartialObjectMetadata(m)
		partial.SetGroupVersionKind(gvk)
		*o = *partial
	default:
		versioned, err := res.Codec().Convert(shared, gvk.GroupVersion())
		if err != nil {
			return err
		}
		return assign(versioned, out)
	}
	return nil
}

// assign copies the struct that from points to into the one that to points to.
func assign(from, to runtime.Object) error {
	src, dst := reflect.ValueOf(from), reflect.ValueOf(to)
	if src.Type() != dst.Type() || src.IsNil() || dst.IsNil() {
		return fmt.Errorf("cannot read a %T into a %T", from, to)
	}
	dst.Elem().Set(src.Elem())
	return nil
}

// newLike makes the object that followers of a sample get: shared if the types agree.
func newLike(res *api.Resource, shared runtime.Object, gvk schema.GroupVersionKind, sample client.Object) (client.Object, error) {
	if reflect.TypeOf(shared) == reflect.TypeOf(sample) && shared.GetObjectKind().GroupVersionKind() == gvk {
		obj, _ := shared.(client.Object)
		return obj, nil
	}
	out, ok := reflect.New(reflect.TypeOf(sample).Elem()).Interface().(client.Object)
	if !ok {
		return nil, fmt.Errorf("%T is not an object", sample)
	}
	return out, copyInto(res, shared, gvk, out)
}
