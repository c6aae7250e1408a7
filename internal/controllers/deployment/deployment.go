// Package deployment rolls out pod templates: it keeps one ReplicaSet for each template that a
// Deployment has had, and moves replicas from the old ones to the newest.
//
// Everything that is decided (sizes, revisions, conditions) is decided in pure functions over a
// [view], a deployment and its sets. The reconciler gathers the view, carries out one step,
// and writes the status once at the end; the ReplicaSets' own changes wake it for the next step.
package deployment

import (
	"context"
	"errors"
	"fmt"
	"maps"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

var kind = schema.GroupVersionKind{Group: appsv1.GroupName, Version: "v1", Kind: "Deployment"}

type reconciler struct {
	kit.Deps
	recorder record.EventRecorder
}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	r := &reconciler{Deps: deps, recorder: deps.Recorder("deployment-controller")}
	adopters := kit.Adopters(deps, &appsv1.DeploymentList{}, func(d *appsv1.Deployment) *metav1.LabelSelector { return d.Spec.Selector })
	return kit.Controller{
		Name:    "deployment",
		Workers: 5,
		Watches: []kit.Watch{
			{Kind: &appsv1.Deployment{}, Requests: kit.Self},
			{Kind: &appsv1.ReplicaSet{}, Requests: kit.Owner(kind.Kind, adopters)},
			{Kind: &corev1.Pod{}, Requests: r.podGone},
		},
		Reconcile: r.reconcile,
	}
}

// podGone requests the deployment of a pod that ended: with the Recreate strategy the new set
// waits for the last old pod.
func (r *reconciler) podGone(e barqueclient.Event) []reconcile.Request {
	pod, _ := e.Object().(*corev1.Pod)
	if pod == nil || e.New != nil && !pods.Terminal(pod) {
		return nil
	}
	ref := metav1.GetControllerOfNoCopy(pod)
	if ref == nil || ref.Kind != "ReplicaSet" {
		return nil
	}
	ctx := context.Background()
	var s appsv1.ReplicaSet
	if err := r.Client.Get(ctx, types.NamespacedName{Namespace: pod.Namespace, Name: ref.Name}, &s); err != nil {
		return nil // the set's own removal wakes its deployment
	}
	owner := metav1.GetControllerOfNoCopy(&s)
	if owner == nil || owner.Kind != kind.Kind {
		return nil
	}
	var d appsv1.Deployment
	key := types.NamespacedName{Namespace: pod.Namespace, Name: owner.Name}
	if err := r.Client.Get(ctx, key, &d); err != nil || d.Spec.Strategy.Type != appsv1.RecreateDeploymentStrategyType {
		return nil
	}
	return []reconcile.Request{{NamespacedName: key}}
}

func (r *reconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var seen appsv1.Deployment
	if err := r.Client.Get(ctx, req.NamespacedName, &seen); apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("get Deployment %s: %w", req, err)
	}
	d := seen.DeepCopy()
	if equality.Semantic.DeepEqual(d.Spec.Selector, &metav1.LabelSelector{}) {
		r.recorder.Event(d, corev1.EventTypeWarning, "SelectingAll", "This deployment is selecting all pods. A non-empty selector is required.")
		d.Status.ObservedGeneration = d.Generation
		return reconcile.Result{}, r.writeStatus(ctx, &seen, d)
	}
	sets, err := r.sets(ctx, d)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("deployment %s: %w", req, err)
	}
	v := look(d, sets)
	status, stepErr := r.step(ctx, &v)
	if stepErr == nil || !pods.Quiet(stepErr) {
		d.Status = status
		if err := r.writeStatus(ctx, &seen, d); err != nil {
			stepErr = errors.Join(stepErr, err)
		}
	}
	if stepErr != nil {
		return reconcile.Result{}, fmt.Errorf("deployment %s: %w", req, stepErr)
	}
	return reconcile.Result{RequeueAfter: nextCheck(d, &status, r.Clock.Now())}, nil
}

// step does the next thing for the deployment and says what its status is then, also after a
// failure.
func (r *reconciler) step(ctx context.Context, v *view) (appsv1.DeploymentStatus, error) {
	now := r.Clock.Now()
	if v.d.DeletionTimestamp != nil {
		return v.counts(now), nil
	}
	notePause(v.d, now)
	if v.newest != nil {
		if err := r.syncNewest(ctx, v); err != nil {
			return v.d.Status, err
		}
	}
	if v.d.Spec.Paused || v.scaled() {
		err := r.apply(ctx, v, v.scale())
		if err == nil && v.d.Spec.Paused {
			err = r.cleanUp(ctx, v)
		}
		return v.counts(now), err
	}
	var err error
	switch v.d.Spec.Strategy.Type {
	case appsv1.RecreateDeploymentStrategyType:
		err = r.recreate(ctx, v)
	case appsv1.RollingUpdateDeploymentStrategyType:
		err = r.roll(ctx, v)
	default:
		err = reconcile.TerminalError(fmt.Errorf("unknown strategy %q", v.d.Spec.Strategy.Type))
	}
	if err != nil {
		// A failure to create the newest set stands in d's own conditions.
		return v.d.Status, err
	}
	return v.rollout(r.Clock.Now()), nil
}

// roll moves on by one step; only when there is none is the rollout complete or waiting.
func (r *reconciler) roll(ctx context.Context, v *view) error {
	if v.newest == nil {
		if err := r.createNewest(ctx, v); err != nil {
			return err
		}
	}
	if steps := v.roll(); len(steps) > 0 {
		return r.apply(ctx, v, steps)
	}
	if complete(v.d, &v.d.Status) {
		return r.cleanUp(ctx, v)
	}
	return nil
}

// recreate ends all old pods before it makes new ones.
func (r *reconciler) recreate(ctx context.Context, v *view) error {
	if steps := v.shrinkAllOld(); len(steps) > 0 {
		return r.apply(ctx, v, steps)
	}
	running, err := r.oldPodsRunning(ctx, v)
	if err != nil || running {
		return err
	}
	if v.newest == nil {
		if err := r.createNewest(ctx, v); err != nil {
			return err
		}
	}
	if wanted(v.newest) != *v.d.Spec.Replicas {
		if err := r.apply(ctx, v, []resize{{v.newest, *v.d.Spec.Replicas}}); err != nil {
			return err
		}
	}
	if complete(v.d, &v.d.Status) {
		return r.cleanUp(ctx, v)
	}
	return nil
}

// oldPodsRunning tells whether a pod of an old set may still run, also one that is being deleted.
func (r *reconciler) oldPodsRunning(ctx context.Context, v *view) (bool, error) {
	old := map[types.UID]bool{}
	for _, s := range v.old {
		if s.Status.Replicas > 0 {
			return true, nil
		}
		old[s.UID] = true
	}
	if len(old) == 0 {
		return false, nil
	}
	all, err := pods.InNamespace(ctx, r.Client, v.d.Namespace)
	if err != nil {
		return false, err
	}
	return len(pods.Filter(all, func(p *corev1.Pod) bool {
		ref := metav1.GetControllerOfNoCopy(p)
		return ref != nil && old[ref.UID] && !pods.Terminal(p)
	})) > 0, nil
}

// writeStatus writes status and revision annotation, which the status subresource takes too.
func (r *reconciler) writeStatus(ctx context.Context, seen, d *appsv1.Deployment) error {
	if equality.Semantic.DeepEqual(seen.Status, d.Status) && maps.Equal(seen.Annotations, d.Annotations) {
		return nil
	}
	if err := r.Client.Status().Update(ctx, d); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}
