package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/utils/ptr"

	"barque.dev/internal/controllers/pods"
)

// A state is all that decisions about a job are made of: the job, with a status that is its
// own to change, its pods, and what follows from them.
type state struct {
	job  *batchv1.Job
	pods []*corev1.Pod
	now  time.Time

	active             []*corev1.Pod
	ready, terminating int32
	// succeeded and failed count all pods that ended: those in the status' counters, those in
	// its uncounted lists and those that are in neither yet.
	succeeded, failed int32
	// completed are the indexes that succeeded, before those in the status only. broken are
	// those that failed for good, nil without a limit per index.
	before, completed indexes
	broken            indexes
	// last is the failed pod of an index that has no other pod yet; it stays until its
	// replacement has taken over its count of failures.
	last map[int]*corev1.Pod
}

func observe(job *batchv1.Job, all []*corev1.Pod, now time.Time) *state {
	if job.Status.UncountedTerminatedPods == nil {
		job.Status.UncountedTerminatedPods = &batchv1.UncountedTerminatedPods{}
	}
	s := &state{job: job, pods: slices.Clone(all), now: now}
	slices.SortStableFunc(s.pods, func(a, b *corev1.Pod) int { return indexOf(a) - indexOf(b) })
	s.active = pods.Filter(s.pods, pods.Active)
	s.ready = int32(len(pods.Filter(s.active, pods.Ready)))
	s.terminating = int32(len(pods.Filter(s.pods, pods.Terminating)))

	u := job.Status.UncountedTerminatedPods
	newSucceeded := s.fresh(u.Succeeded, func(p *corev1.Pod) bool { return p.Status.Phase == corev1.PodSucceeded })
	newFailed := s.fresh(u.Failed, s.podFailed)
	s.succeeded = job.Status.Succeeded + int32(len(u.Succeeded)+len(newSucceeded))
	s.failed = job.Status.Failed + int32(len(u.Failed))
	for _, p := range newFailed {
		if judge(job.Spec.PodFailurePolicy, p).counted() {
			s.failed++
		}
	}
	if s.indexed() {
		s.observeIndexes()
	}
	return s
}

func (s *state) observeIndexes() {
	n := s.completions()
	s.before = parseIndexes(s.job.Status.CompletedIndexes, n)
	s.completed = s.before
	for _, p := range s.pods {
		if s.validIndex(p) && p.Status.Phase == corev1.PodSucceeded && tracked(p) {
			s.completed = s.completed.with(indexOf(p))
		}
	}
	s.succeeded = int32(s.completed.total())
	if s.job.Spec.BackoffLimitPerIndex == nil {
		return
	}
	s.broken = parseIndexes(ptr.Deref(s.job.Status.FailedIndexes, ""), n)
	for _, p := range s.pods {
		if s.validIndex(p) && tracked(p) && s.indexFailed(p) {
			s.broken = s.broken.with(indexOf(p))
		}
	}
	s.last = s.lastFailures()
}

func (s *state) indexed() bool {
	return ptr.Deref(s.job.Spec.CompletionMode, batchv1.NonIndexedCompletion) == batchv1.IndexedCompletion
}

// completions is the wanted number of successes of an indexed job.
func (s *state) completions() int { return int(ptr.Deref(s.job.Spec.Completions, 0)) }

func (s *state) suspended() bool { return ptr.Deref(s.job.Spec.Suspend, false) }

// replaceEnded tells whether a pod is replaced only when it has ended, rather than as soon as
// it is being deleted (KEP-3939).
func (s *state) replaceEnded() bool {
	return ptr.Deref(s.job.Spec.PodReplacementPolicy, batchv1.TerminatingOrFailed) == batchv1.Failed
}

// validIndex is true for every pod of a job that is not indexed.
func (s *state) validIndex(p *corev1.Pod) bool {
	n := indexOf(p)
	return !s.indexed() || n != noIndex && n < s.completions()
}

// tracked tells whether the pod holds the finalizer: it is not counted in the status yet.
func tracked(p *corev1.Pod) bool { return slices.Contains(p.Finalizers, batchv1.JobTrackingFinalizer) }

// podFailed tells whether the pod counts as failed. One that is being deleted does, as it may
// never come to report its end, unless only ended pods are replaced.
func (s *state) podFailed(p *corev1.Pod) bool {
	if p.Status.Phase == corev1.PodFailed {
		return true
	}
	return !s.replaceEnded() && p.DeletionTimestamp != nil && p.Status.Phase != corev1.PodSucceeded
}

// fresh returns the pods that the filter takes and the status knows nothing of yet.
func (s *state) fresh(known []types.UID, filter func(*corev1.Pod) bool) []*corev1.Pod {
	listed := sets.New(known...)
	return pods.Filter(s.pods, func(p *corev1.Pod) bool {
		return tracked(p) && !listed.Has(p.UID) && s.validIndex(p) && filter(p)
	})
}

// indexFailed tells whether the pod's failure is the last that its index may have.
func (s *state) indexFailed(p *corev1.Pod) bool {
	if !s.podFailed(p) {
		return false
	}
	o := judge(s.job.Spec.PodFailurePolicy, p)
	return o.action == batchv1.PodFailurePolicyActionFailIndex ||
		o.counted() && annotated(p, batchv1.JobIndexFailureCountAnnotation) >= *s.job.Spec.BackoffLimitPerIndex
}

func (s *state) lastFailures() map[int]*corev1.Pod {
	activeIndexes := indexesOf(s.active)
	last := map[int]*corev1.Pod{}
	for _, p := range s.fresh(nil, s.podFailed) {
		n := indexOf(p)
		if s.completed.has(n) || s.broken.has(n) || activeIndexes.has(n) {
			continue
		}
		if other := last[n]; other == nil || allFailures(p) >= allFailures(other) && !finishedAt(p).Before(finishedAt(other)) {
			last[n] = p
		}
	}
	return last
}

// allFailures is how often the index had failed before the pod, ignored failures included.
func allFailures(p *corev1.Pod) int32 {
	return annotated(p, batchv1.JobIndexFailureCountAnnotation) + annotated(p, batchv1.JobIndexIgnoredFailureCountAnnotation)
}

func indexesOf(list []*corev1.Pod) indexes {
	var numbers []int
	for _, p := range list {
		if n := indexOf(p); n != noIndex {
			numbers = append(numbers, n)
		}
	}
	return indexes(nil).with(numbers...)
}

// failuresInARow counts the pods that failed after the last that succeeded, and tells when the
// last failed. It looks at the pods themselves, so that a new leader waits as the old one did.
// Pods that the controller itself took back, without their finalizer, did not fail.
func (s *state) failuresInARow() (int32, time.Time) {
	var success, last time.Time
	for _, p := range s.pods {
		if t := finishedAt(p); p.Status.Phase == corev1.PodSucceeded && t.After(success) {
			success = t
		}
	}
	var n int32
	for _, p := range s.pods {
		if !s.podFailed(p) || p.DeletionTimestamp != nil && !tracked(p) {
			continue
		}
		t := finishedAt(p)
		if !t.After(success) {
			continue
		}
		n++
		if t.After(last) {
			last = t
		}
	}
	return n, last
}

func condition(job *batchv1.Job, kind batchv1.JobConditionType) *batchv1.JobCondition {
	for i := range job.Status.Conditions {
		if job.Status.Conditions[i].Type == kind {
			return &job.Status.Conditions[i]
		}
	}
	return nil
}

func conditionTrue(job *batchv1.Job, kind batchv1.JobConditionType) *batchv1.JobCondition {
	if c := condition(job, kind); c != nil && c.Status == corev1.ConditionTrue {
		return c
	}
	return nil
}

// finished returns the condition Complete or Failed, if the job has it.
func finished(job *batchv1.Job) *batchv1.JobCondition {
	if c := conditionTrue(job, batchv1.JobComplete); c != nil {
		return c
	}
	return conditionTrue(job, batchv1.JobFailed)
}

func newCondition(kind batchv1.JobConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) *batchv1.JobCondition {
	t := metav1.Time{Time: now}
	return &batchv1.JobCondition{Type: kind, Status: status, Reason: reason, Message: message, LastProbeTime: t, LastTransitionTime: t}
}

// setCondition sets a condition and tells whether that changed anything. One that is not there
// need not be set to false.
func setCondition(job *batchv1.Job, c *batchv1.JobCondition) bool {
	have := condition(job, c.Type)
	switch {
	case have == nil && c.Status == corev1.ConditionFalse:
		return false
	case have == nil:
		job.Status.Conditions = append(job.Status.Conditions, *c)
	case have.Status == c.Status && have.Reason == c.Reason && have.Message == c.Message:
		return false
	default:
		*have = *c
	}
	return true
}
