// Package job runs pods until enough of them have succeeded, and counts each of them once.
//
// Decisions are methods of [state], pure: verdict says how the job ends, plan which pods to make
// or take back, track what to count. The reconciler carries them out in the order that track.go
// explains.
package job

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

var kind = schema.GroupVersionKind{Group: batchv1.GroupName, Version: "v1", Kind: "Job"}

type reconciler struct {
	kit.Deps
	recorder record.EventRecorder
	pods     pods.Control
}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	recorder := deps.Recorder("job-controller")
	r := &reconciler{Deps: deps, recorder: recorder, pods: pods.Control{Client: deps.Client, Recorder: recorder}}
	adopters := kit.Adopters(deps, &batchv1.JobList{}, func(job *batchv1.Job) *metav1.LabelSelector { return job.Spec.Selector })
	return kit.Controller{
		Name:    "job",
		Workers: 5,
		Watches: []kit.Watch{
			{Kind: &batchv1.Job{}, Requests: kit.Self},
			{Kind: &corev1.Pod{}, Requests: kit.Owner(kind.Kind, adopters)},
			{Kind: &corev1.Pod{}, Requests: r.strayFrom},
		},
		Reconcile: r.reconcile,
	}
}

func (r *reconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if pod, isStray := strayName(req); isStray {
		return reconcile.Result{}, r.releaseStray(ctx, req.Namespace, pod)
	}
	var job batchv1.Job
	if err := r.Client.Get(ctx, req.NamespacedName, &job); apierrors.IsNotFound(err) {
		return reconcile.Result{}, r.releaseFormer(ctx, req.NamespacedName)
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("get Job %s: %w", req, err)
	}
	if external(&job) {
		return reconcile.Result{}, nil
	}
	if finished(&job) != nil {
		return reconcile.Result{}, r.releaseFormer(ctx, req.NamespacedName)
	}
	switch mode := job.Spec.CompletionMode; {
	case mode == nil, *mode == batchv1.NonIndexedCompletion, *mode == batchv1.IndexedCompletion:
	default:
		r.recorder.Event(&job, corev1.EventTypeWarning, "UnknownCompletionMode", "Skipped Job sync because completion mode is unknown")
		return reconcile.Result{}, nil
	}
	result, err := r.sync(ctx, &job)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("job %s: %w", req, err)
	}
	return result, nil
}

// external tells whether another controller manages the job (KEP-4368).
func external(job *batchv1.Job) bool {
	return job.Spec.ManagedBy != nil && *job.Spec.ManagedBy != batchv1.JobControllerName
}

func (r *reconciler) sync(ctx context.Context, seen *batchv1.Job) (reconcile.Result, error) {
	all, err := pods.OfOwner(ctx, r.Client, seen)
	if err != nil {
		return reconcile.Result{}, err
	}
	claimed, err := kit.Claim(ctx, kit.Claimer{
		Client: r.Client, Owner: seen, OwnerKind: kind, Selector: kit.Selector(seen.Spec.Selector),
		OnAdopt:   func(obj client.Object) { withFinalizer(obj.(*corev1.Pod)) },
		OnRelease: func(obj client.Object) { obj.SetFinalizers(withoutTracking(obj.GetFinalizers())) },
	}, all)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("claim pods: %w", err)
	}
	s := observe(seen.DeepCopy(), claimed, r.Clock.Now())
	if s.job.Status.StartTime == nil && !s.suspended() {
		s.job.Status.StartTime = &metav1.Time{Time: s.now}
	}
	written := seen.Status.DeepCopy()
	end, wait, actErr := r.act(ctx, s)
	if actErr != nil && pods.Quiet(actErr) {
		return reconcile.Result{}, actErr
	}
	if err := r.settle(ctx, s, written, end); err != nil {
		return reconcile.Result{}, errors.Join(actErr, err)
	}
	return reconcile.Result{RequeueAfter: wait}, actErr
}

// act deletes or creates pods, and returns the verdict, if there is one that can be carried
// through now, and when to look again.
func (r *reconciler) act(ctx context.Context, s *state) (end *batchv1.JobCondition, wait time.Duration, err error) {
	active := int32(len(s.active))
	if end = s.verdict(); end != nil {
		deleted, ready, err := r.stop(ctx, s, s.active, false)
		s.setCounts(active-deleted, s.ready-ready, s.terminating+deleted)
		if deleted != active {
			// Pods that could not be deleted may still succeed.
			end = nil
		}
		return end, 0, err
	}
	if left, limited := s.deadline(); limited {
		wait = left
	}
	if s.job.DeletionTimestamp != nil {
		s.setCounts(active, s.ready, s.terminating)
		return nil, wait, nil
	}
	p := s.plan()
	if p.wait > 0 && (wait == 0 || p.wait < wait) {
		wait = p.wait
	}
	if len(p.delete) > 0 {
		deleted, ready, stopErr := r.stop(ctx, s, p.delete, true)
		s.setCounts(active-deleted, s.ready-ready, s.terminating+deleted)
		err = stopErr
	} else {
		created, createErr := r.create(ctx, s, p.create)
		s.setCounts(active+created, s.ready, s.terminating)
		err = createErr
	}
	if s.complete(s.job.Status.Active) {
		return newCondition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonCompletionsReached,
			"Reached expected number of succeeded pods", s.now), wait, err
	}
	r.noteSuspension(s)
	return nil, wait, err
}

func (s *state) setCounts(active, ready, terminating int32) {
	s.terminating = terminating
	s.job.Status.Active, s.job.Status.Ready, s.job.Status.Terminating = active, &ready, &terminating
}

// stop deletes pods. Those that are taken back lose their finalizer first, and are not counted.
func (r *reconciler) stop(ctx context.Context, s *state, list []*corev1.Pod, takeBack bool) (deleted, ready int32, err error) {
	var gone, wereReady atomic.Int32
	err = kit.Each(len(list), func(i int) error {
		if takeBack {
			if err := r.release(ctx, list[i]); err != nil {
				return err
			}
		}
		if err := r.pods.Delete(ctx, list[i], s.job); err != nil {
			return err
		}
		gone.Add(1)
		if pods.Ready(list[i]) {
			wereReady.Add(1)
		}
		return nil
	})
	return gone.Load(), wereReady.Load(), err
}

func (r *reconciler) create(ctx context.Context, s *state, list []int) (int32, error) {
	n, err := kit.SlowStart(len(list), func(i int) error { return r.pods.Create(ctx, s.newPod(list[i]), s.job) })
	return int32(n), err
}

// noteSuspension keeps the condition Suspended. A job that is resumed starts anew, so that its
// deadline does not count the time of its suspension.
func (r *reconciler) noteSuspension(s *state) {
	if s.suspended() {
		if setCondition(s.job, newCondition(batchv1.JobSuspended, corev1.ConditionTrue, "JobSuspended", "Job suspended", s.now)) {
			s.job.Status.StartTime = nil
			r.recorder.Event(s.job, corev1.EventTypeNormal, "Suspended", "Job suspended")
		}
		return
	}
	if setCondition(s.job, newCondition(batchv1.JobSuspended, corev1.ConditionFalse, "JobResumed", "Job resumed", s.now)) {
		s.job.Status.StartTime = &metav1.Time{Time: s.now}
		r.recorder.Event(s.job, corev1.EventTypeNormal, "Resumed", "Job resumed")
	}
}

// settle counts pods and ends the job, by the steps in track.go.
func (r *reconciler) settle(ctx context.Context, s *state, written *batchv1.JobStatus, end *batchv1.JobCondition) error {
	t := s.track(end)
	final := s.announce(end)
	if err := r.writeStatus(ctx, s, written); err != nil {
		return err
	}
	holding := s.trackedUIDs()
	released := make([]bool, len(t.release))
	releaseErr := kit.Each(len(t.release), func(i int) error {
		err := r.release(ctx, t.release[i])
		released[i] = err == nil
		return err
	})
	for i, p := range t.release {
		if released[i] {
			holding.Delete(p.UID)
		}
	}
	count(&s.job.Status, holding)
	isFinished := releaseErr == nil && !t.more && s.finish(final)
	if err := r.writeStatus(ctx, s, written); err != nil {
		return errors.Join(releaseErr, err)
	}
	if isFinished {
		r.recordEnd(s.job, final)
	}
	return releaseErr
}

// writeStatus writes the status if it differs from what was written last.
func (r *reconciler) writeStatus(ctx context.Context, s *state, written *batchv1.JobStatus) error {
	if equality.Semantic.DeepEqual(*written, s.job.Status) {
		return nil
	}
	next := s.job.DeepCopy()
	if err := r.Client.Status().Update(ctx, next); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	// What comes back may be shared memory, and the status is changed further here.
	s.job.ResourceVersion = next.ResourceVersion
	*written = *s.job.Status.DeepCopy()
	return nil
}

func (r *reconciler) recordEnd(job *batchv1.Job, final *batchv1.JobCondition) {
	if final.Type == batchv1.JobFailed {
		r.recorder.Event(job, corev1.EventTypeWarning, final.Reason, final.Message)
		return
	}
	if job.Spec.Completions != nil && job.Status.Succeeded > *job.Spec.Completions {
		r.recorder.Event(job, corev1.EventTypeWarning, "TooManySucceededPods", "Too many succeeded pods running after completion count reached")
	}
	r.recorder.Event(job, corev1.EventTypeNormal, "Completed", "Job completed")
}

func withoutTracking(finalizers []string) []string {
	return slices.DeleteFunc(slices.Clone(finalizers), func(f string) bool { return f == batchv1.JobTrackingFinalizer })
}
