package registry

import (
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"

	"barque.dev/internal/api"
)

// TypeConverter returns what knows the schema of a kind's objects, for merging them; nil if nothing does.
func (r *Registry) TypeConverter(gvk schema.GroupVersionKind) managedfields.TypeConverter {
	if api.Scheme().Recognizes(gvk) {
		return r.fields.types
	}
	return nil
}
