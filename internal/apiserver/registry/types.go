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
	res, _, ok := r.ForKind(gvk.GroupKind())
	if !ok || res.Custom == nil {
		return nil
	}
	types, err := res.Custom.Types()
	if err != nil {
		r.log.Error("the schema of a custom resource can't be used", "kind", gvk, "error", err)
		return nil
	}
	return types
}
