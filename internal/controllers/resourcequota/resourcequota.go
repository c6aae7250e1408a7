// Package resourcequota keeps the statuses of quotas: what they limit, and what is used of it.
// New objects charge quotas themselves, in the transaction that makes them; here a quota is
// counted when it is new or changes, and when objects that it counts go or need less.
//
// A count is exact. The quota is read before the objects, so that it is written only if nothing
// has charged it since; and a quota whose limits have just begun to hold is counted once more,
// since an object may have been let in without it just before.
package resourcequota

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	stock "k8s.io/apiserver/pkg/quota/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api/quota"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

type controller struct {
	deps     kit.Deps
	measures quota.Measures
	follow   *follow
}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps}
	c.measures = quota.Measures{Reader: deps.Client, Kind: c.kind, Clock: deps.Clock}
	c.follow = &follow{watcher: deps.Client, sample: c.sample, affected: c.affected, all: c.all, kinds: deps.Kinds.Changed, log: deps.Log}
	return kit.Controller{
		Name:      "resourcequota",
		Watches:   []kit.Watch{{Kind: &corev1.ResourceQuota{}, Requests: changed}},
		Source:    c.follow.run,
		Reconcile: c.reconcile,
	}
}

// changed requests a quota that is new, or whose limits change or begin to hold.
func changed(e barqueclient.Event) []reconcile.Request {
	old, _ := e.Old.(*corev1.ResourceQuota)
	now, _ := e.New.(*corev1.ResourceQuota)
	if now == nil || old != nil && old.Generation == now.Generation &&
		stock.Equals(old.Spec.Hard, now.Spec.Hard) && stock.Equals(old.Status.Hard, now.Status.Hard) {
		return nil
	}
	return kit.Self(e)
}

// kind finds the kind of a namespaced resource that is served.
func (c *controller) kind(gr schema.GroupResource) (schema.GroupVersionKind, bool) {
	mapper := c.deps.Client.RESTMapper()
	gvk, err := mapper.KindFor(gr.WithVersion(""))
	if err != nil {
		return schema.GroupVersionKind{}, false
	}
	mapping, err := mapper.RESTMapping(gvk.GroupKind(), gvk.Version)
	return gvk, err == nil && mapping.Scope.Name() == meta.RESTScopeNameNamespace
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var q corev1.ResourceQuota
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &q); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if q.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	evaluators, err := c.measures.For(ctx, q.Spec.Hard)
	if err != nil {
		return reconcile.Result{}, err
	}
	// What changes after the count must be seen.
	for _, e := range evaluators {
		if err := c.follow.ensure(ctx, e.GroupResource()); err != nil {
			return reconcile.Result{}, fmt.Errorf("follow %s for ResourceQuota %s: %w", e.GroupResource(), req.NamespacedName, err)
		}
	}
	used, err := c.measures.Used(ctx, &q)
	if err != nil {
		return reconcile.Result{}, err
	}
	later := reconcile.Result{}
	if counted(evaluators, corev1.Resource("pods")) {
		if later.RequeueAfter, err = c.nextToLeave(ctx, q.Namespace); err != nil {
			return reconcile.Result{}, err
		}
	}
	if q.Status.Hard != nil && stock.Equals(q.Status.Hard, q.Spec.Hard) && stock.Equals(q.Status.Used, used) {
		return later, nil
	}
	counted := q.DeepCopy()
	counted.Status = corev1.ResourceQuotaStatus{Hard: q.Spec.Hard.DeepCopy(), Used: used}
	if err := client.IgnoreNotFound(c.deps.Client.Status().Update(ctx, counted)); err != nil {
		return reconcile.Result{}, fmt.Errorf("update the status of ResourceQuota %s: %w", req.NamespacedName, err)
	}
	return later, nil
}

func counted(evaluators []stock.Evaluator, gr schema.GroupResource) bool {
	return slices.ContainsFunc(evaluators, func(e stock.Evaluator) bool { return e.GroupResource() == gr })
}

// nextToLeave is when the next of the pods that are being deleted has had its time, and uses
// nothing from then on; 0 if none is.
func (c *controller) nextToLeave(ctx context.Context, namespace string) (time.Duration, error) {
	var pods corev1.PodList
	if err := c.deps.Client.List(ctx, &pods, client.InNamespace(namespace)); err != nil {
		return 0, fmt.Errorf("list pods of namespace %s: %w", namespace, err)
	}
	now := c.deps.Clock.Now()
	var next time.Duration
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.DeletionTimestamp == nil || p.DeletionGracePeriodSeconds == nil {
			continue
		}
		leaves := p.DeletionTimestamp.Add(time.Duration(*p.DeletionGracePeriodSeconds) * time.Second).Sub(now)
		if leaves >= 0 && (next == 0 || leaves < next) {
			next = leaves + time.Millisecond
		}
	}
	return next, nil
}

// affected are the quotas that an object's change concerns: those that it may use less of. What
// is new has charged them already.
func (c *controller) affected(ctx context.Context, gr schema.GroupResource, e barqueclient.Event) []reconcile.Request {
	if e.Old == nil {
		return nil
	}
	var list corev1.ResourceQuotaList
	if err := c.deps.Client.List(ctx, &list, client.InNamespace(e.Old.GetNamespace())); kit.Readable(err) != nil || len(list.Items) == 0 {
		return nil
	}
	evaluator, err := c.measures.Of(ctx, gr)
	if err != nil || evaluator == nil {
		return nil
	}
	var requests []reconcile.Request
	for i := range list.Items {
		if q := &list.Items[i]; len(evaluator.MatchingResources(stock.ResourceNames(q.Spec.Hard))) > 0 && differs(evaluator, q, e) {
			requests = append(requests, kit.RequestFor(q))
		}
	}
	return requests
}

// all are the quotas that there are.
func (c *controller) all(ctx context.Context) []reconcile.Request {
	var list corev1.ResourceQuotaList
	if err := kit.Readable(c.deps.Client.List(ctx, &list)); err != nil {
		c.deps.Log.Warn("resource quotas can't be listed", "error", err)
		return nil
	}
	requests := make([]reconcile.Request, 0, len(list.Items))
	for i := range list.Items {
		requests = append(requests, kit.RequestFor(&list.Items[i]))
	}
	return requests
}

// differs tells whether a change makes a difference to a quota. What cannot be told does.
func differs(evaluator stock.Evaluator, q *corev1.ResourceQuota, e barqueclient.Event) bool {
	if e.New == nil || e.New.GetUID() != e.Old.GetUID() || (e.Old.GetDeletionTimestamp() == nil) != (e.New.GetDeletionTimestamp() == nil) {
		return true
	}
	was, err := evaluator.Usage(e.Old)
	if err != nil {
		return true
	}
	is, err := evaluator.Usage(e.New)
	if err != nil || !stock.Equals(was, is) {
		return true
	}
	before, err := evaluator.Matches(q, e.Old)
	if err != nil {
		return true
	}
	after, err := evaluator.Matches(q, e.New)
	return err != nil || before != after
}
