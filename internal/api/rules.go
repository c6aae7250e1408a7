package api

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Rules are what a change must obey: Kubernetes' strategy of a resource or subresource, behind
// versioned types. The context of every call carries the namespace, user and RequestInfo
// (k8s.io/apiserver/pkg/endpoints/request), and a warning recorder where warnings are wanted.
type Rules struct {
	create rest.RESTCreateStrategy
	update rest.RESTUpdateStrategy
	remove rest.RESTDeleteStrategy
	reset  rest.ResetFieldsStrategy

	// hub converts to the version that the strategies work on, in memory of its own. takeover does so with an object that
	// nobody else needs any more, whose memory lives on in the result; storage converts back in the same manner.
	hub      func(obj runtime.Object) (runtime.Object, error)
	takeover func(obj runtime.Object) (runtime.Object, error)
	storage  func(obj runtime.Object) (runtime.Object, error)
}

// NewRules makes rules of strategies that work on unconverted objects, as those of custom
// resources do. Any of them may be nil.
func NewRules(create rest.RESTCreateStrategy, update rest.RESTUpdateStrategy, remove rest.RESTDeleteStrategy, reset rest.ResetFieldsStrategy) *Rules {
	clone := func(obj runtime.Object) (runtime.Object, error) { return obj.DeepCopyObject(), nil }
	same := func(obj runtime.Object) (runtime.Object, error) { return obj, nil }
	return &Rules{create: create, update: update, remove: remove, reset: reset, hub: clone, takeover: same, storage: same}
}

// GenerateName makes a name of a prefix.
func (r *Rules) GenerateName(base string) string { return r.create.GenerateName(base) }

// AllowCreateOnUpdate tells whether PUT may create.
func (r *Rules) AllowCreateOnUpdate(ctx context.Context) bool {
	return r.update.AllowCreateOnUpdate(ctx)
}

// AllowUnconditionalUpdate tells whether PUT may leave out the resource version.
func (r *Rules) AllowUnconditionalUpdate(ctx context.Context) bool {
	return r.update.AllowUnconditionalUpdate(ctx)
}

// ResetFields returns what an update through these rules never changes, by API version; nil
// when there is nothing of the kind.
func (r *Rules) ResetFields() map[fieldpath.APIVersion]*fieldpath.Set {
	if r.reset == nil {
		return nil
	}
	return r.reset.GetResetFields()
}

// PrepareCreate prepares and validates a new object whose metadata is complete. It returns the
// object as it will be kept, of the storage version. obj belongs to it: what it points to may be changed, and live on in the
// result.
func (r *Rules) PrepareCreate(ctx context.Context, obj runtime.Object) (runtime.Object, error) {
	hub, err := r.takeover(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if err := rest.BeforeCreate(r.create, ctx, hub); err != nil {
		return nil, err
	}
	return r.toStorage(hub)
}

// PrepareUpdate prepares and validates a change from old to obj. It returns the object as it
// will be kept, of the storage version, in memory of its own.
func (r *Rules) PrepareUpdate(ctx context.Context, obj, old runtime.Object) (runtime.Object, error) {
	hub, err := r.hub(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	oldHub, err := r.hub(old)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	u := &update{rules: r, obj: obj, old: old}
	err = rest.BeforeUpdate(r.update, context.WithValue(ctx, updateKey{}, u), hub, oldHub)
	if u.err != nil {
		return nil, apierrors.NewInternalError(u.err)
	}
	if err != nil {
		return nil, err
	}
	return r.toStorage(hub)
}

// PrepareDelete decides how obj, which the caller owns and which is of the storage version, is
// deleted, and sets the deletion time and grace period when it is deleted gracefully. pending
// tells that a graceful deletion is under way already. options may be filled in.
func (r *Rules) PrepareDelete(ctx context.Context, obj runtime.Object, options *metav1.DeleteOptions) (graceful, pending bool, err error) {
	strategy := r.remove
	if g, ok := strategy.(rest.RESTGracefulDeleteStrategy); ok {
		strategy = gracefulDelete{RESTDeleteStrategy: r.remove, graceful: g, hub: r.hub}
	}
	return rest.BeforeDelete(strategy, ctx, obj, options)
}

// GarbageCollection returns what becomes of dependents when a deletion does not say, and
// whether the resource takes part in garbage collection at all.
func (r *Rules) GarbageCollection(ctx context.Context) (orphan, supported bool) {
	g, ok := r.remove.(rest.GarbageCollectionDeleteStrategy)
	if !ok {
		return false, true
	}
	switch g.DefaultGarbageCollectionPolicy(ctx) {
	case rest.Unsupported:
		return false, false
	case rest.OrphanDependents:
		return true, true
	default:
		return false, true
	}
}

func (r *Rules) toStorage(hub runtime.Object) (runtime.Object, error) {
	out, err := r.storage(hub)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("convert to the storage version: %w", err))
	}
	return out, nil
}

// gracefulDelete lets a strategy that knows the hub type alone look at a versioned object.
type gracefulDelete struct {
	rest.RESTDeleteStrategy
	graceful rest.RESTGracefulDeleteStrategy
	hub      func(runtime.Object) (runtime.Object, error)
}

func (g gracefulDelete) CheckGracefulDelete(ctx context.Context, obj runtime.Object, options *metav1.DeleteOptions) bool {
	hub, err := g.hub(obj)
	if err != nil {
		return false
	}
	return g.graceful.CheckGracefulDelete(ctx, hub, options)
}

// strategy is what the packages under k8s.io/kubernetes/pkg/registry export.
type strategy interface {
	rest.RESTCreateStrategy
	rest.RESTUpdateStrategy
}

// rulesFor wraps a strategy whose objects are kept in the storage version.
func rulesFor(s strategy, storage schema.GroupVersion) *Rules {
	r := &Rules{create: declaredCreation(s), update: sparing(declaredUpdate(s)), remove: s}
	r.reset, _ = s.(rest.ResetFieldsStrategy)
	bindHub(r, storage)
	return r
}

// updateRulesFor wraps a strategy of a subresource.
func updateRulesFor(s rest.RESTUpdateStrategy, storage schema.GroupVersion) *Rules {
	r := &Rules{update: sparing(declaredUpdate(s))}
	r.reset, _ = s.(rest.ResetFieldsStrategy)
	bindHub(r, storage)
	return r
}

func bindHub(r *Rules, storage schema.GroupVersion) {
	scheme := Scheme()
	internal := schema.GroupVersion{Group: storage.Group, Version: runtime.APIVersionInternal}
	r.hub = func(obj runtime.Object) (runtime.Object, error) {
		return scheme.ConvertToVersion(obj, internal)
	}
	r.takeover = func(obj runtime.Object) (runtime.Object, error) {
		return scheme.UnsafeConvertToVersion(obj, internal)
	}
	r.storage = func(obj runtime.Object) (runtime.Object, error) {
		// The hub object is ours alone from here on: its memory may live on in the result.
		return scheme.UnsafeConvertToVersion(obj, storage)
	}
}
