// Package cronjob starts jobs by the clock.
//
// The decision is decide, pure: a CronJob and a time in, what to start and when to look again
// out. A job's name is made of its scheduled minute, so that a time never gets two jobs, whoever
// leads.
package cronjob

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

var kind = schema.GroupVersionKind{Group: batchv1.GroupName, Version: "v1", Kind: "CronJob"}

type reconciler struct {
	kit.Deps
	recorder record.EventRecorder

	mu sync.Mutex
	// scheduleSet is when a CronJob's schedule was seen to change.
	scheduleSet map[types.NamespacedName]time.Time
}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	r := &reconciler{Deps: deps, recorder: deps.Recorder("cronjob-controller"), scheduleSet: map[types.NamespacedName]time.Time{}}
	return kit.Controller{
		Name:    "cronjob",
		Workers: 5,
		Watches: []kit.Watch{
			{Kind: &batchv1.CronJob{}, Requests: r.changed},
			{Kind: &batchv1.Job{}, Requests: kit.Owner(kind.Kind, nil)},
		},
		Reconcile: r.reconcile,
	}
}

// changed notes changes of the schedule: the new one does not make up for times before.
func (r *reconciler) changed(e barqueclient.Event) []reconcile.Request {
	before, _ := e.Old.(*batchv1.CronJob)
	after, _ := e.New.(*batchv1.CronJob)
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case after == nil:
		delete(r.scheduleSet, client.ObjectKeyFromObject(before))
	case before == nil:
	case before.Spec.Schedule != after.Spec.Schedule || !ptr.Equal(before.Spec.TimeZone, after.Spec.TimeZone):
		r.scheduleSet[client.ObjectKeyFromObject(after)] = r.Clock.Now()
	}
	return kit.Self(e)
}

func (r *reconciler) scheduleSetAt(key types.NamespacedName) time.Time {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.scheduleSet[key]
}

func (r *reconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var seen batchv1.CronJob
	if err := r.Client.Get(ctx, req.NamespacedName, &seen); apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("get CronJob %s: %w", req, err)
	}
	jobs, err := r.jobs(ctx, &seen)
	if err != nil {
		return reconcile.Result{}, err
	}
	cj := seen.DeepCopy()
	again, stepErr := r.step(ctx, cj, jobs)
	if stepErr != nil && pods.Quiet(stepErr) {
		return reconcile.Result{}, stepErr
	}
	if !equality.Semantic.DeepEqual(seen.Status, cj.Status) {
		if err := r.Client.Status().Update(ctx, cj); err != nil {
			stepErr = errors.Join(stepErr, fmt.Errorf("write status: %w", err))
		}
	}
	if stepErr != nil {
		return reconcile.Result{}, fmt.Errorf("CronJob %s: %w", req, stepErr)
	}
	return reconcile.Result{RequeueAfter: again}, nil
}

// jobs lists those that the CronJob controls.
func (r *reconciler) jobs(ctx context.Context, cj *batchv1.CronJob) ([]*batchv1.Job, error) {
	var list batchv1.JobList
	if err := r.Client.List(ctx, &list, client.InNamespace(cj.Namespace)); err != nil {
		return nil, fmt.Errorf("list jobs of %s: %w", cj.Namespace, err)
	}
	var own []*batchv1.Job
	for i := range list.Items {
		if metav1.IsControlledBy(&list.Items[i], cj) {
			own = append(own, &list.Items[i])
		}
	}
	return own, nil
}

// step does what is to be done, notes it in cj's status, and says when to look again.
func (r *reconciler) step(ctx context.Context, cj *batchv1.CronJob, jobs []*batchv1.Job) (time.Duration, error) {
	var errs []error
	for _, job := range surplus(cj, jobs) {
		errs = append(errs, r.deleteJob(ctx, cj, job))
	}
	r.record(cj, observe(cj, jobs))
	p := decide(cj, r.scheduleSetAt(client.ObjectKeyFromObject(cj)), r.Clock.Now())
	r.record(cj, p.notes)
	if p.start.IsZero() {
		return p.again, errors.Join(errs...)
	}
	if p.replace {
		if err := r.deleteActive(ctx, cj, jobs); err != nil {
			return 0, errors.Join(append(errs, err)...)
		}
	}
	errs = append(errs, r.start(ctx, cj, p.start))
	return p.again, errors.Join(errs...)
}

func (r *reconciler) record(cj *batchv1.CronJob, notes []note) {
	for _, n := range notes {
		r.recorder.Event(cj, n.kind, n.reason, n.message)
	}
}

func (r *reconciler) deleteActive(ctx context.Context, cj *batchv1.CronJob, jobs []*batchv1.Job) error {
	for _, job := range jobs {
		if isActive(cj, job.UID) {
			if err := r.deleteJob(ctx, cj, job); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *reconciler) deleteJob(ctx context.Context, cj *batchv1.CronJob, job *batchv1.Job) error {
	err := r.Client.Delete(ctx, job, client.PropagationPolicy(metav1.DeletePropagationBackground), client.Preconditions{UID: &job.UID})
	if client.IgnoreNotFound(err) != nil {
		if !pods.Quiet(err) {
			r.recorder.Eventf(cj, corev1.EventTypeWarning, "FailedDelete", "Deleted job: %v", err)
		}
		return fmt.Errorf("delete job %s: %w", job.Name, err)
	}
	drop(cj, job.UID)
	r.recorder.Eventf(cj, corev1.EventTypeNormal, "SuccessfulDelete", "Deleted job %v", job.Name)
	return nil
}

// start creates the job for the scheduled time. One that exists already is taken over if it is
// the CronJob's own: an earlier leader may have created it and not come to write it down.
func (r *reconciler) start(ctx context.Context, cj *batchv1.CronJob, scheduled time.Time) error {
	job := newJob(cj, scheduled)
	err := r.Client.Create(ctx, job)
	switch {
	case apierrors.IsAlreadyExists(err):
		var there batchv1.Job
		if err := r.Client.Get(ctx, client.ObjectKeyFromObject(job), &there); err != nil {
			return fmt.Errorf("get job %s: %w", job.Name, err)
		}
		if !metav1.IsControlledBy(&there, cj) {
			return nil
		}
		job = &there
	case err != nil:
		if !pods.Quiet(err) {
			r.recorder.Eventf(cj, corev1.EventTypeWarning, "FailedCreate", "Error creating job: %v", err)
		}
		return fmt.Errorf("create job %s: %w", job.Name, err)
	default:
		r.recorder.Eventf(cj, corev1.EventTypeNormal, "SuccessfulCreate", "Created job %v", job.Name)
	}
	cj.Status.LastScheduleTime = &metav1.Time{Time: scheduled}
	if end(job) == "" {
		cj.Status.Active = append(cj.Status.Active, corev1.ObjectReference{
			Kind: "Job", APIVersion: batchv1.SchemeGroupVersion.String(),
			Namespace: job.Namespace, Name: job.Name, UID: job.UID, ResourceVersion: job.ResourceVersion,
		})
	}
	return nil
}
