package job

import (
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

// verdict says how the job ends, if it does: FailureTarget or SuccessCriteriaMet, which come
// before Failed and Complete, or Failed if FailureTarget was set earlier. Earlier verdicts
// stand; failures go before successes.
func (s *state) verdict() *batchv1.JobCondition {
	if c := conditionTrue(s.job, batchv1.JobSuccessCriteriaMet); c != nil {
		return c.DeepCopy()
	}
	if c := conditionTrue(s.job, batchv1.JobFailureTarget); c != nil {
		return newCondition(batchv1.JobFailed, corev1.ConditionTrue, c.Reason, c.Message, s.now)
	}
	fail := func(reason, message string) *batchv1.JobCondition {
		return newCondition(batchv1.JobFailureTarget, corev1.ConditionTrue, reason, message, s.now)
	}
	for _, p := range s.pods {
		if s.podFailed(p) {
			if o := judge(s.job.Spec.PodFailurePolicy, p); o.action == batchv1.PodFailurePolicyActionFailJob {
				return fail(batchv1.JobReasonPodFailurePolicy, o.message)
			}
		}
	}
	if s.failed > *s.job.Spec.BackoffLimit || s.restartedTooOften() {
		return fail(batchv1.JobReasonBackoffLimitExceeded, "Job has reached the specified backoff limit")
	}
	if left, limited := s.deadline(); limited && left <= 0 {
		return fail(batchv1.JobReasonDeadlineExceeded, "Job was active longer than specified deadline")
	}
	if !s.indexed() {
		return nil
	}
	if s.job.Spec.BackoffLimitPerIndex != nil {
		broken := s.broken.total()
		if limit := s.job.Spec.MaxFailedIndexes; limit != nil && broken > int(*limit) {
			return fail(batchv1.JobReasonMaxFailedIndexesExceeded, "Job has exceeded the specified maximal number of failed indexes")
		}
		if broken > 0 && broken+s.completed.total() >= s.completions() {
			return fail(batchv1.JobReasonFailedIndexes, "Job has failed indexes")
		}
	}
	if message, met := succeeds(s.job.Spec.SuccessPolicy, s.completions(), s.completed); met {
		return newCondition(batchv1.JobSuccessCriteriaMet, corev1.ConditionTrue, batchv1.JobReasonSuccessPolicy, message, s.now)
	}
	return nil
}

// deadline is how long the job may still be active.
func (s *state) deadline() (left time.Duration, limited bool) {
	if s.job.Spec.ActiveDeadlineSeconds == nil || s.job.Status.StartTime == nil || s.suspended() {
		return 0, false
	}
	allowed := time.Duration(*s.job.Spec.ActiveDeadlineSeconds) * time.Second
	return s.job.Status.StartTime.Add(allowed).Sub(s.now), true
}

// restartedTooOften counts the restarts of containers towards the limit if it is they that are
// retried, not the pods.
func (s *state) restartedTooOften() bool {
	if s.job.Spec.Template.Spec.RestartPolicy != corev1.RestartPolicyOnFailure {
		return false
	}
	var n int32
	for _, p := range s.pods {
		if p.Status.Phase != corev1.PodRunning && p.Status.Phase != corev1.PodPending {
			continue
		}
		for _, c := range slices.Concat(p.Status.InitContainerStatuses, p.Status.ContainerStatuses) {
			n += c.RestartCount
		}
	}
	return n >= max(1, *s.job.Spec.BackoffLimit)
}

// complete tells whether the job has the successes that it wants, active pods being left.
func (s *state) complete(active int32) bool {
	if s.job.Spec.Completions == nil {
		return s.succeeded > 0 && active == 0
	}
	return s.succeeded >= *s.job.Spec.Completions && active == 0
}

// A plan is which pods to delete or to create, never both, for a job that goes on.
type plan struct {
	// delete lists pods that are taken back: they lose their finalizer first and count as
	// neither success nor failure.
	delete []*corev1.Pod
	// create holds the new pods' indexes, noIndex for jobs without.
	create []int
	// wait is how long creation has to be put off; 0 if it has not.
	wait time.Duration
}

func (s *state) plan() plan {
	active := int32(len(s.active))
	if s.suspended() {
		return plan{delete: s.active}
	}
	want := s.wantActive(active)
	if surplus := s.surplus(int(max(0, active-want))); len(surplus) > 0 {
		return plan{delete: surplus[:min(len(surplus), kit.MaxBurst)]}
	}
	if s.replaceEnded() {
		want -= s.terminating
	}
	lacking := int(want - active)
	if lacking <= 0 {
		return plan{}
	}
	perIndex := s.job.Spec.BackoffLimitPerIndex != nil
	if !perIndex {
		n, last := s.failuresInARow()
		if wait := backoff(n, last, s.now); wait > 0 {
			return plan{wait: wait}
		}
	}
	lacking = min(lacking, kit.MaxBurst)
	if !s.indexed() {
		create := make([]int, lacking)
		for i := range create {
			create[i] = noIndex
		}
		return plan{create: create}
	}
	taken := s.completed.union(indexesOf(s.active)).union(s.broken)
	if s.replaceEnded() {
		taken = taken.union(indexesOf(pods.Filter(s.pods, pods.Terminating)))
	}
	create := taken.missing(lacking, s.completions())
	if perIndex {
		return s.dueIndexes(create)
	}
	return plan{create: create}
}

// wantActive is how many pods should be active.
func (s *state) wantActive(active int32) int32 {
	parallelism := *s.job.Spec.Parallelism
	if s.job.Spec.Completions == nil {
		if s.succeeded > 0 {
			// After the first success what runs may run on, and nothing new is started.
			return active
		}
		return parallelism
	}
	return max(0, min(*s.job.Spec.Completions-s.succeeded, parallelism))
}

// dueIndexes leaves out the indexes whose back-off has not passed; if that is all of them, it
// says how long the first still has to wait.
func (s *state) dueIndexes(candidates []int) plan {
	var p plan
	for _, n := range candidates {
		var wait time.Duration
		if last := s.last[n]; last != nil {
			wait = backoff(allFailures(last)+1, finishedAt(last), s.now)
		}
		if wait == 0 {
			p.create = append(p.create, n)
		} else if p.wait == 0 || wait < p.wait {
			p.wait = wait
		}
	}
	if len(p.create) > 0 {
		p.wait = 0
	}
	return p
}

// surplus lists at least n active pods that are to go: of an indexed job all that have no valid
// index or share theirs with another, then those that are missed least.
func (s *state) surplus(n int) []*corev1.Pod {
	if !s.indexed() {
		return leastMissed(s.active, n)
	}
	var surplus, left []*corev1.Pod
	byIndex := map[int][]*corev1.Pod{}
	for _, p := range s.active {
		if s.validIndex(p) {
			byIndex[indexOf(p)] = append(byIndex[indexOf(p)], p)
		} else {
			surplus = append(surplus, p)
		}
	}
	for _, p := range s.active {
		same := byIndex[indexOf(p)]
		if !s.validIndex(p) || len(same) == 0 {
			continue
		}
		delete(byIndex, indexOf(p))
		sorted := leastMissed(same, len(same))
		surplus = append(surplus, sorted[:len(sorted)-1]...)
		left = append(left, sorted[len(sorted)-1])
	}
	if more := n - len(surplus); more > 0 {
		surplus = append(surplus, leastMissed(left, more)...)
	}
	return surplus
}

func leastMissed(list []*corev1.Pod, n int) []*corev1.Pod {
	if n == 0 {
		return nil
	}
	sorted := slices.Clone(list)
	slices.SortStableFunc(sorted, pods.CompareForDeletion)
	return sorted[:n]
}
