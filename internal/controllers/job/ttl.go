package job

import (
	"context"
	"fmt"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

// NewTTL makes the controller that deletes finished jobs whose time to live has passed, and
// their pods before them.
func NewTTL(deps kit.Deps) kit.Controller {
	return kit.Controller{
		Name:    "ttl-after-finished",
		Workers: 2,
		Watches: []kit.Watch{{Kind: &batchv1.Job{}, Requests: kit.Self}},
		Reconcile: func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
			var job batchv1.Job
			if err := deps.Client.Get(ctx, req.NamespacedName, &job); err != nil {
				return reconcile.Result{}, client.IgnoreNotFound(err)
			}
			left, applies := timeToLive(&job, deps.Clock.Now())
			if !applies || left > 0 {
				return reconcile.Result{RequeueAfter: left}, nil
			}
			err := deps.Client.Delete(ctx, &job, client.PropagationPolicy(metav1.DeletePropagationForeground),
				client.Preconditions{UID: &job.UID, ResourceVersion: &job.ResourceVersion})
			if client.IgnoreNotFound(err) != nil {
				return reconcile.Result{}, fmt.Errorf("delete Job %s: %w", req, err)
			}
			return reconcile.Result{}, nil
		},
	}
}

// timeToLive is how long after now a finished job may still stay, if its spec limits that.
func timeToLive(job *batchv1.Job, now time.Time) (left time.Duration, applies bool) {
	c := finished(job)
	if c == nil || job.Spec.TTLSecondsAfterFinished == nil || job.DeletionTimestamp != nil || c.LastTransitionTime.IsZero() {
		return 0, false
	}
	ttl := time.Duration(*job.Spec.TTLSecondsAfterFinished) * time.Second
	return max(0, c.LastTransitionTime.Add(ttl).Sub(now)), true
}
