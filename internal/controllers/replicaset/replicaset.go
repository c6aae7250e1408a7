// Package replicaset keeps as many pods running as a ReplicaSet, or a ReplicationController,
// asks for. Both are one controller: a ReplicationController is seen as a ReplicaSet, and only
// reading it and writing its status differ.
//
// The decision ([plan]) and the status are pure functions; the reconciler claims pods, carries
// the plan out and writes the status.
package replicaset

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

type reconciler struct {
	kit.Deps
	flavour
	pods pods.Control
}

// New makes the controller of ReplicaSets.
func New(deps kit.Deps) kit.Controller {
	return newController("replicaset", "", deps, replicaSets{deps.Client})
}

// NewReplicationController makes the controller of ReplicationControllers.
func NewReplicationController(deps kit.Deps) kit.Controller {
	return newController("replicationcontroller", "replication-controller", deps, replicationControllers{deps.Client})
}

func newController(name, account string, deps kit.Deps, f flavour) kit.Controller {
	component := name + "-controller"
	if account != "" {
		component = account
	}
	r := &reconciler{
		Deps:    deps,
		flavour: f,
		pods:    pods.Control{Client: deps.Client, Recorder: deps.Recorder(component)},
	}
	return kit.Controller{
		Name:    name,
		Account: account,
		Workers: 5,
		Watches: []kit.Watch{
			{Kind: f.sample(), Requests: kit.Self},
			{Kind: &corev1.Pod{}, Requests: kit.Owner(f.kind().Kind, f.adopters(deps))},
		},
		Reconcile: r.reconcile,
	}
}

func (r *reconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	set, object, err := r.get(ctx, req.NamespacedName)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get %s %s: %w", r.kind().Kind, req, err)
	}
	all, err := pods.OfOwner(ctx, r.Client, object)
	if err != nil {
		return reconcile.Result{}, err
	}
	selector := kit.Selector(set.Spec.Selector)
	active, err := kit.Claim(ctx, kit.Claimer{Client: r.Client, Owner: object, OwnerKind: r.kind(), Selector: selector},
		pods.Filter(all, pods.Active))
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("claim pods of %s %s: %w", r.kind().Kind, req, err)
	}
	terminating := pods.Filter(all, func(p *corev1.Pod) bool {
		return pods.Terminating(p) && kit.Relate(object, p, selector.Matches(labels.Set(p.Labels))) == kit.Owned
	})

	var failure error
	if set.DeletionTimestamp == nil {
		failure = r.scale(ctx, set, object, active)
	}
	now := r.Clock.Now()
	if failure == nil || !pods.Quiet(failure) {
		next := status(set, active, terminating, failure, now)
		if err := r.writeStatus(ctx, object, set.Status, next); err != nil {
			return reconcile.Result{}, fmt.Errorf("write status of %s %s: %w", r.kind().Kind, req, err)
		}
	}
	return reconcile.Result{RequeueAfter: pods.NextAvailable(active, set.Spec.MinReadySeconds, now)}, failure
}

// scale makes the plan and carries it out.
func (r *reconciler) scale(ctx context.Context, set *appsv1.ReplicaSet, object client.Object, active []*corev1.Pod) error {
	var related []*corev1.Pod
	if int(*set.Spec.Replicas) < len(active) {
		var err error
		if related, err = r.relatedPods(ctx, set); err != nil {
			return err
		}
	}
	p := decide(*set.Spec.Replicas, active, related, r.Clock.Now())
	ref := metav1.NewControllerRef(object, r.kind())
	if _, err := kit.SlowStart(p.create, func(int) error {
		return r.pods.Create(ctx, pods.FromTemplate(&set.Spec.Template, object, ref, ""), object)
	}); err != nil {
		return err
	}
	return kit.Each(len(p.delete), func(i int) error { return r.pods.Delete(ctx, p.delete[i], object) })
}

// relatedPods lists the pods of all sets that have the same controller as set.
func (r *reconciler) relatedPods(ctx context.Context, set *appsv1.ReplicaSet) ([]*corev1.Pod, error) {
	owner := metav1.GetControllerOfNoCopy(set)
	if owner == nil {
		return nil, nil
	}
	sets, err := r.list(ctx, set.Namespace)
	if err != nil {
		return nil, err
	}
	siblings := map[types.UID]bool{}
	for _, s := range sets {
		if ref := metav1.GetControllerOfNoCopy(s); ref != nil && ref.UID == owner.UID {
			siblings[s.UID] = true
		}
	}
	all, err := pods.InNamespace(ctx, r.Client, set.Namespace)
	if err != nil {
		return nil, err
	}
	return pods.Filter(all, func(p *corev1.Pod) bool {
		ref := metav1.GetControllerOfNoCopy(p)
		return ref != nil && siblings[ref.UID]
	}), nil
}

func sameStatus(a, b any) bool { return equality.Semantic.DeepEqual(a, b) }
