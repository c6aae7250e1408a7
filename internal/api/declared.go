package api

import (
	"context"
	"reflect"
	"strings"

	"k8s.io/apimachinery/pkg/api/operation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/registry/rest"
)

// declared asks what a type's tags declare of its fields (KEP-5073) at the price of the answer alone. Upstream validates a
// version that it converts a copy of the object to; nothing that validates writes, so that a version which shares the object's
// memory does as well, and is made in a fraction of the time. Only where it finds nothing wrong, which is nearly always, that is
// the answer. Everything else is asked again of upstream, which knows how errors of both kinds of validation go together.
type declared struct {
	rest.DeclarativeValidationStrategy
}

// declaredOf is the short way for a strategy that validates by the built-in kinds' scheme, as upstream's do.
func declaredOf(s any) (declared, bool) {
	d, ok := s.(rest.DeclarativeValidationStrategy)
	if !ok {
		return declared{}, false
	}
	v := reflect.Indirect(reflect.ValueOf(s))
	if v.Kind() != reflect.Struct {
		return declared{}, false
	}
	field, ok := v.Type().FieldByName(reflect.TypeFor[rest.DeclarativeValidation]().Name())
	if !ok || field.Type != reflect.TypeFor[rest.DeclarativeValidation]() {
		return declared{}, false
	}
	own, err := v.FieldByIndexErr(field.Index)
	if err != nil || own.Field(0).Pointer() != reflect.ValueOf(Scheme()).Pointer() {
		return declared{}, false
	}
	return declared{d}, true
}

// declaredCreation has a strategy ask the short way.
func declaredCreation(s rest.RESTCreateStrategy) rest.RESTCreateStrategy {
	if d, ok := declaredOf(s); ok {
		return struct {
			rest.RESTCreateStrategy
			declared
		}{s, d}
	}
	return s
}

// declaredUpdate has a strategy ask the short way.
func declaredUpdate(s rest.RESTUpdateStrategy) rest.RESTUpdateStrategy {
	if d, ok := declaredOf(s); ok {
		return struct {
			rest.RESTUpdateStrategy
			declared
		}{s, d}
	}
	return s
}

// ValidateDeclaratively implements rest.DeclarativeValidationStrategy.
func (d declared) ValidateDeclaratively(
	ctx context.Context, obj, old runtime.Object, errs field.ErrorList, op operation.Type, config rest.DeclarativeValidationConfig,
) field.ErrorList {
	if len(errs) == 0 && passes(ctx, obj, old, op, config) {
		return errs
	}
	return d.DeclarativeValidationStrategy.ValidateDeclaratively(ctx, obj, old, errs, op, config)
}

// passes tells whether declarative validation finds nothing wrong. It is false, too, when that can't be told.
func passes(ctx context.Context, obj, old runtime.Object, op operation.Type, config rest.DeclarativeValidationConfig) (ok bool) {
	defer func() {
		if recover() != nil {
			ok = false // upstream's own attempt fails in the same way, and says so
		}
	}()
	info, found := request.RequestInfoFrom(ctx)
	if !found {
		return false
	}
	gv := schema.GroupVersion{Group: info.APIGroup, Version: info.APIVersion}
	if config.SubresourceGVKMapper != nil {
		gv = config.SubresourceGVKMapper.GroupVersionKind(gv).GroupVersion()
	}
	var subresources []string
	if info.Subresource != "" {
		subresources = strings.Split(info.Subresource, "/")
	}
	scheme := Scheme()
	versioned, err := scheme.UnsafeConvertToVersion(obj, gv)
	if err != nil {
		return false
	}
	switch op {
	case operation.Create:
		return len(scheme.Validate(ctx, config.Options, versioned, subresources...)) == 0
	case operation.Update:
		before, err := scheme.UnsafeConvertToVersion(old, gv)
		return err == nil && len(scheme.ValidateUpdate(ctx, config.Options, versioned, before, subresources...)) == 0
	default:
		return false
	}
}
