package job

import (
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
)

// How a pod is counted exactly once, whatever fails in between (KEP-2307):
//
//  1. A pod is created with a finalizer, so that it cannot vanish uncounted.
//  2. When it has ended, its UID is written to status.uncountedTerminatedPods.
//  3. Then its finalizer is removed.
//  4. When it is seen without a finalizer, its UID leaves the list and the counter goes up, in
//     one write of the status.
//
// A UID that is in the list is not added again, and a pod without a finalizer and not in the
// list has been counted. A success of an indexed job needs no UID: its index counts once.

// maxUncounted bounds the UIDs in the status, and with it the status' size (20 KB).
const maxUncounted = 500

// A tracking is step 2: pods that can be released when the status has been written.
type tracking struct {
	release []*corev1.Pod
	// more tells that there are pods left for the next time.
	more bool
}

// track counts what can be counted (step 4), and puts ended pods into the status (step 2).
// end is the verdict, nil while the job goes on.
func (s *state) track(end *batchv1.JobCondition) tracking {
	var t tracking
	count(&s.job.Status, s.trackedUIDs())
	u := s.job.Status.UncountedTerminatedPods
	succeeded, failed := sets.New(u.Succeeded...), sets.New(u.Failed...)
	var done []int
	for _, p := range s.pods {
		if !tracked(p) || !s.releasable(p, end) {
			continue
		}
		t.release = append(t.release, p)
		switch isFailed := s.podFailed(p); {
		case p.Status.Phase == corev1.PodSucceeded && !failed.Has(p.UID):
			if s.indexed() {
				if s.validIndex(p) && !s.before.has(indexOf(p)) {
					done = append(done, indexOf(p))
				}
			} else if !succeeded.Has(p.UID) {
				u.Succeeded = append(u.Succeeded, p.UID)
			}
		case isFailed, end != nil && end.Type != batchv1.JobSuccessCriteriaMet:
			// When a job has failed, pods that it had to stop have failed too.
			if s.validIndex(p) && !failed.Has(p.UID) && judge(s.job.Spec.PodFailurePolicy, p).counted() {
				u.Failed = append(u.Failed, p.UID)
			}
		}
		if len(done)+len(u.Succeeded)+len(u.Failed) >= maxUncounted {
			t.more = true
			break
		}
	}
	if s.indexed() {
		completed := s.before.with(done...)
		s.job.Status.Succeeded = int32(completed.total())
		s.job.Status.CompletedIndexes = completed.String()
		s.job.Status.FailedIndexes = nil
		if s.job.Spec.BackoffLimitPerIndex != nil {
			f := s.broken.String()
			s.job.Status.FailedIndexes = &f
		}
	}
	return t
}

func (s *state) trackedUIDs() sets.Set[types.UID] {
	uids := sets.New[types.UID]()
	for _, p := range s.pods {
		if tracked(p) {
			uids.Insert(p.UID)
		}
	}
	return uids
}

// releasable tells whether the pod may lose its finalizer: it has succeeded or failed, or the
// job has ended or is being deleted. The last failed pod of an index stays for its replacement.
func (s *state) releasable(p *corev1.Pod, end *batchv1.JobCondition) bool {
	if s.job.DeletionTimestamp != nil || end != nil || p.Status.Phase == corev1.PodSucceeded {
		return true
	}
	if !s.podFailed(p) {
		return false
	}
	last := s.last[indexOf(p)]
	return last == nil || last.UID != p.UID
}

// count is step 4: UIDs whose pods hold no finalizer any more leave the lists and count.
func count(status *batchv1.JobStatus, holding sets.Set[types.UID]) {
	u := status.UncountedTerminatedPods
	move := func(list []types.UID, counter *int32) []types.UID {
		var kept []types.UID
		for _, uid := range list {
			if holding.Has(uid) {
				kept = append(kept, uid)
			} else {
				*counter++
			}
		}
		return kept
	}
	u.Succeeded = move(u.Succeeded, &status.Succeeded)
	u.Failed = move(u.Failed, &status.Failed)
}

// announce puts the condition that precedes the end into the status, and returns the one that
// follows when all is counted.
func (s *state) announce(end *batchv1.JobCondition) *batchv1.JobCondition {
	if end == nil {
		return nil
	}
	final := batchv1.JobFailed
	switch end.Type {
	case batchv1.JobFailed:
		return end
	case batchv1.JobSuccessCriteriaMet:
		final = batchv1.JobComplete
	}
	if conditionTrue(s.job, end.Type) == nil {
		setCondition(s.job, end)
	}
	return newCondition(final, corev1.ConditionTrue, end.Reason, end.Message, s.now)
}

// finish puts the final condition into the status, unless pods are still to be counted or still
// terminating. It tells whether it did.
func (s *state) finish(final *batchv1.JobCondition) bool {
	u := s.job.Status.UncountedTerminatedPods
	if final == nil || len(u.Succeeded)+len(u.Failed) > 0 || s.terminating > 0 {
		return false
	}
	setCondition(s.job, final)
	if final.Type == batchv1.JobComplete {
		t := final.LastTransitionTime
		s.job.Status.CompletionTime = &t
	}
	return true
}
