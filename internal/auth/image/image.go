// Package image is how the decisions on access read the cluster's objects: from the store's
// shared image, by name or by index, without copying, blocking or failing.
package image

import (
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Reader reads objects of the storage version's types. Results are shared and must not be
// changed. It is safe for concurrent use.
type Reader interface {
	// Get returns the object, or nil when there is none. namespace is empty for
	// cluster-scoped resources.
	Get(gr schema.GroupResource, namespace, name string) runtime.Object
	// ByIndex calls f for the objects found under value in the resource's index, until f
	// returns false. A resource that is not served has none.
	ByIndex(gr schema.GroupResource, index, value string, f func(runtime.Object) bool)
}

// Get returns the object as a T (such as *corev1.Pod); ok tells whether it exists.
func Get[T runtime.Object](r Reader, gr schema.GroupResource, namespace, name string) (obj T, ok bool) {
	obj, ok = r.Get(gr, namespace, name).(T)
	return obj, ok
}

// An Index names an index and says under which values an object is found.
type Index struct {
	Resource schema.GroupResource
	Name     string
	Values   func(runtime.Object) []string
}
