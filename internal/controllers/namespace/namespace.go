// Package namespace empties a namespace that is being deleted, and then lets it go.
//
// Pods go first, so that none runs longer than what protects it (KEP-5080); everything else
// follows, kind by kind. What remains, because of a grace period or a finalizer, is told in the
// namespace's conditions, as stock does.
package namespace

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	"barque.dev/internal/controllers/kit"
)

// again is how soon a namespace that is not empty yet is looked at again.
const again = 500 * time.Millisecond

// Elsewhere empties namespaces of what aggregated API servers keep.
type Elsewhere interface {
	// EmptyNamespace asks for the deletion of all of it, and returns what is left, and the APIServices of servers that do not
	// say what they have.
	EmptyNamespace(ctx context.Context, namespace string) (left map[schema.GroupResource][]metav1.PartialObjectMetadata, silent []string, err error)
}

type controller struct {
	client    client.Client
	deps      kit.Deps
	elsewhere Elsewhere
}

// New makes the controller.
func New(deps kit.Deps, elsewhere Elsewhere) kit.Controller {
	c := &controller{client: deps.Client, deps: deps, elsewhere: elsewhere}
	return kit.Controller{
		Name:      "namespace",
		Watches:   []kit.Watch{{Kind: &corev1.Namespace{}, Requests: kit.Self}},
		Reconcile: c.reconcile,
		Workers:   10,
	}
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var ns corev1.Namespace
	if err := c.client.Get(ctx, req.NamespacedName, &ns); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if ns.DeletionTimestamp == nil || !slices.Contains(ns.Spec.Finalizers, corev1.FinalizerKubernetes) {
		return reconcile.Result{}, nil
	}
	// What was made in it before it began to go is deleted with it, whichever server made it.
	if err := c.deps.CatchUp(ctx); err != nil {
		return reconcile.Result{}, fmt.Errorf("learn what is in namespace %s: %w", ns.Name, err)
	}
	left, err := c.empty(ctx, ns.Name)
	if statusErr := c.report(ctx, &ns, left, err); client.IgnoreNotFound(statusErr) != nil {
		err = errors.Join(err, statusErr)
	}
	if err != nil {
		return reconcile.Result{}, err
	}
	if len(left.silent) > 0 {
		return reconcile.Result{}, fmt.Errorf("empty namespace %s: %s", ns.Name, left.unknown())
	}
	if len(left.kinds) > 0 {
		return reconcile.Result{RequeueAfter: again}, nil
	}
	return reconcile.Result{}, c.finalize(ctx, req)
}

// empty asks for the deletion of everything in the namespace and tells what is left.
func (c *controller) empty(ctx context.Context, namespace string) (remaining, error) {
	left := remaining{finalizers: map[string]int{}, kinds: map[string]int{}}
	var errs []error
	seen := map[string]bool{}
	for _, r := range ordered(c.deps.Kinds.Resources()) {
		if !r.Namespaced || r.Virtual() || seen[r.Prefix] || !slices.Contains(r.Verbs, "deletecollection") {
			continue
		}
		seen[r.Prefix] = true
		objs, err := c.remove(ctx, r, namespace)
		if err != nil {
			errs = append(errs, fmt.Errorf("delete %s in namespace %s: %w", r.Resource, namespace, err))
			continue
		}
		left.count(r.GroupResource, accessors(objs))
		if r.Resource == "pods" && r.Group == "" {
			if len(objs) > 0 {
				return left, errors.Join(errs...) // whatever pods stand on outlives them
			}
		}
	}
	others, silent, err := c.elsewhere.EmptyNamespace(ctx, namespace)
	left.silent = silent
	for gr, objs := range others {
		metas := make([]metav1.Object, len(objs))
		for i := range objs {
			metas[i] = &objs[i]
		}
		left.count(gr, metas)
	}
	return left, errors.Join(append(errs, err)...)
}

// accessors are the metadata of objects, which all API objects have.
func accessors(objs []runtime.Object) []metav1.Object {
	var out []metav1.Object
	for _, obj := range objs {
		if m, err := meta.Accessor(obj); err == nil {
			out = append(out, m)
		}
	}
	return out
}

// ordered puts pods first.
func ordered(all []*api.Resource) []*api.Resource {
	all = slices.Clone(all)
	rank := func(r *api.Resource) int {
		if r.Group == "" && r.Resource == "pods" {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(all, func(a, b *api.Resource) int { return rank(a) - rank(b) })
	return all
}

// remove deletes the objects of one kind and returns those that are still there.
func (c *controller) remove(ctx context.Context, r *api.Resource, namespace string) ([]runtime.Object, error) {
	objs, err := c.list(ctx, r, namespace)
	if err != nil || len(objs) == 0 {
		return nil, err
	}
	sample, err := kit.Sample(r)
	if err != nil {
		return nil, err
	}
	if err := c.client.DeleteAllOf(ctx, sample, client.InNamespace(namespace)); client.IgnoreNotFound(err) != nil {
		return nil, err
	}
	return c.list(ctx, r, namespace)
}

func (c *controller) list(ctx context.Context, r *api.Resource, namespace string) ([]runtime.Object, error) {
	list, err := kit.SampleList(r)
	if err != nil {
		return nil, err
	}
	if err := c.client.List(ctx, list, client.InNamespace(namespace)); meta.IsNoMatchError(err) {
		return nil, nil // a kind that went meanwhile has no objects
	} else if err != nil {
		return nil, err
	}
	return meta.ExtractList(list)
}

// finalize takes the namespace's finalizer off, upon which it is gone.
func (c *controller) finalize(ctx context.Context, req reconcile.Request) error {
	var ns corev1.Namespace
	if err := c.client.Get(ctx, req.NamespacedName, &ns); err != nil {
		return client.IgnoreNotFound(err)
	}
	changed := ns.DeepCopy()
	changed.Spec.Finalizers = slices.DeleteFunc(changed.Spec.Finalizers, func(f corev1.FinalizerName) bool {
		return f == corev1.FinalizerKubernetes
	})
	err := c.client.SubResource("finalize").Update(ctx, changed)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("finalize namespace %s: %w", ns.Name, err)
	}
	return nil
}
