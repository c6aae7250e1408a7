package api

import (
	"context"
	"reflect"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/registry/rest"

	"barque.dev/internal/api/alike"
)

// sparing is a strategy whose preparation and validation of updates cost as much as the update changes. It comes to the
// same: what is alike is shared by the new object and the old one before they are compared again and again.
func sparing(s rest.RESTUpdateStrategy) rest.RESTUpdateStrategy {
	if d, ok := s.(rest.DeclarativeValidationStrategy); ok {
		return struct {
			sharing
			rest.DeclarativeValidationStrategy
		}{sharing{s}, d}
	}
	return sharing{s}
}

// sharing is a strategy that has the new object of an update share memory with the old one. Both are
// [Rules.PrepareUpdate]'s own. Preparation may change either in place, which is found out, so that it is done again with objects
// that share nothing. Nothing after it does: validation must not, and canonical forms concern the new object
// alone, after which nobody looks at the old one.
type sharing struct{ rest.RESTUpdateStrategy }

// PrepareForUpdate implements rest.RESTUpdateStrategy.
func (s sharing) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	u, ok := ctx.Value(updateKey{}).(*update)
	if !ok {
		s.RESTUpdateStrategy.PrepareForUpdate(ctx, obj, old)
		return
	}
	given := u.given(obj)
	alike.Share(obj, old)
	s.RESTUpdateStrategy.PrepareForUpdate(ctx, obj, old)
	if !u.untouched(old) {
		if u.restore(obj, old, given); u.err != nil {
			return
		}
		s.RESTUpdateStrategy.PrepareForUpdate(ctx, obj, old)
	}
	alike.Share(obj, old)
}

// update is an update under way: what its hub objects were made of.
type update struct {
	rules    *Rules
	obj, old runtime.Object
	err      error // of making them again
}

type updateKey struct{}

// granted is what is set in the new object before it is prepared.
type granted struct {
	namespace  string
	generation int64
}

func (u *update) given(obj runtime.Object) granted {
	m, err := meta.Accessor(obj)
	if err != nil {
		return granted{} // rest.BeforeUpdate has looked
	}
	return granted{m.GetNamespace(), m.GetGeneration()}
}

// untouched tells whether the old object is what it was. Conversions to a version write nothing.
func (u *update) untouched(hub runtime.Object) bool {
	now, err := u.rules.storage(hub)
	if err != nil {
		return false
	}
	a, b := reflect.ValueOf(now), reflect.ValueOf(u.old)
	return a.Type() == b.Type() && alike.Equal(a, b)
}

// restore makes both objects what they were, in memory of their own.
func (u *update) restore(obj, old runtime.Object, given granted) {
	for into, from := range map[runtime.Object]runtime.Object{obj: u.obj, old: u.old} {
		again, err := u.rules.hub(from)
		if err != nil {
			u.err = err
			return
		}
		reflect.ValueOf(into).Elem().Set(reflect.ValueOf(again).Elem())
	}
	if m, err := meta.Accessor(obj); err == nil {
		m.SetNamespace(given.namespace)
		m.SetGeneration(given.generation)
	}
}
