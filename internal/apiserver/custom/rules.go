package custom

import (
	"context"

	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/apiserver/pkg/storage/names"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// strategy is what package customresource exports for a version.
type strategy interface {
	rest.RESTCreateStrategy
	rest.RESTUpdateStrategy
	rest.ResetFieldsStrategy
	GetAttrs(obj runtime.Object) (labels.Set, fields.Set, error)
}

// rules is a strategy that is made when something is first written or selected by fields: compiling the validation rules
// of a large definition takes time and memory, and most servers write few kinds.
type rules struct {
	runtime.ObjectTyper
	names.NameGenerator
	namespaced bool
	get        func() (strategy, error)
}

func newRules(typer runtime.ObjectTyper, namespaced bool, get func() (strategy, error)) *rules {
	return &rules{ObjectTyper: typer, NameGenerator: names.SimpleNameGenerator, namespaced: namespaced, get: get}
}

func (r *rules) NamespaceScoped() bool                         { return r.namespaced }
func (r *rules) AllowCreateOnUpdate(context.Context) bool      { return false }
func (r *rules) AllowUnconditionalUpdate(context.Context) bool { return false }
func (r *rules) Canonicalize(runtime.Object)                   {}
func (r *rules) PrepareForCreate(ctx context.Context, o runtime.Object) {
	if s, err := r.get(); err == nil { // validation tells of the error
		s.PrepareForCreate(ctx, o)
	}
}

func (r *rules) Validate(ctx context.Context, obj runtime.Object) field.ErrorList {
	s, err := r.get()
	if err != nil {
		return unusable(err)
	}
	return s.Validate(ctx, obj)
}

func (r *rules) WarningsOnCreate(ctx context.Context, obj runtime.Object) []string {
	s, err := r.get()
	if err != nil {
		return nil
	}
	return s.WarningsOnCreate(ctx, obj)
}

func (r *rules) PrepareForUpdate(ctx context.Context, obj, old runtime.Object) {
	if s, err := r.get(); err == nil {
		s.PrepareForUpdate(ctx, obj, old)
	}
}

func (r *rules) ValidateUpdate(ctx context.Context, obj, old runtime.Object) field.ErrorList {
	s, err := r.get()
	if err != nil {
		return unusable(err)
	}
	return s.ValidateUpdate(ctx, obj, old)
}

func (r *rules) WarningsOnUpdate(ctx context.Context, obj, old runtime.Object) []string {
	s, err := r.get()
	if err != nil {
		return nil
	}
	return s.WarningsOnUpdate(ctx, obj, old)
}

func (r *rules) GetResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	s, err := r.get()
	if err != nil {
		return nil
	}
	return s.GetResetFields()
}

// unusable refuses every write to a kind whose schema can't be compiled.
func unusable(err error) field.ErrorList {
	return field.ErrorList{field.InternalError(nil, err)}
}
