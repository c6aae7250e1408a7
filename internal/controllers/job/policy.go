package job

import (
	"fmt"
	"slices"
	"time"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/controllers/pods"
)

// A job's pods are replaced 10 s after the first failure since the last success, 20 s after the
// second, and so on, at most 10 minutes.
const (
	firstBackoff = 10 * time.Second
	maxBackoff   = 10 * time.Minute
)

// An outcome is what the pod failure policy (KEP-3329) says about a failed pod.
type outcome struct {
	// action is the matching rule's; "" if none matches, which counts the failure.
	action batchv1.PodFailurePolicyAction
	// message says why the job fails, for the action FailJob.
	message string
}

// counted tells whether the failure counts towards the back-off limits.
func (o outcome) counted() bool { return o.action != batchv1.PodFailurePolicyActionIgnore }

func judge(policy *batchv1.PodFailurePolicy, pod *corev1.Pod) outcome {
	if policy == nil {
		return outcome{}
	}
	for i, rule := range policy.Rules {
		why := ""
		if rule.OnExitCodes != nil {
			if c := exitMatching(&pod.Status, rule.OnExitCodes); c != nil {
				why = fmt.Sprintf("Container %s for pod %s/%s failed with exit code %v", c.Name, pod.Namespace, pod.Name, c.State.Terminated.ExitCode)
			}
		} else if c := conditionMatching(pod.Status.Conditions, rule.OnPodConditions); c != nil {
			why = fmt.Sprintf("Pod %s/%s has condition %v", pod.Namespace, pod.Name, c.Type)
		}
		if why == "" {
			continue
		}
		switch rule.Action {
		case batchv1.PodFailurePolicyActionFailJob:
			return outcome{rule.Action, fmt.Sprintf("%s matching %v rule at index %d", why, rule.Action, i)}
		case batchv1.PodFailurePolicyActionIgnore, batchv1.PodFailurePolicyActionFailIndex, batchv1.PodFailurePolicyActionCount:
			return outcome{action: rule.Action}
		}
	}
	return outcome{}
}

func exitMatching(s *corev1.PodStatus, want *batchv1.PodFailurePolicyOnExitCodesRequirement) *corev1.ContainerStatus {
	for _, list := range [][]corev1.ContainerStatus{s.ContainerStatuses, s.InitContainerStatuses} {
		for i := range list {
			t := list[i].State.Terminated
			if t == nil || t.ExitCode == 0 || want.ContainerName != nil && *want.ContainerName != list[i].Name {
				continue
			}
			listed := slices.Contains(want.Values, t.ExitCode)
			if want.Operator == batchv1.PodFailurePolicyOnExitCodesOpIn && listed ||
				want.Operator == batchv1.PodFailurePolicyOnExitCodesOpNotIn && !listed {
				return &list[i]
			}
		}
	}
	return nil
}

func conditionMatching(have []corev1.PodCondition, want []batchv1.PodFailurePolicyOnPodConditionsPattern) *corev1.PodCondition {
	for i := range have {
		for _, w := range want {
			if have[i].Type == w.Type && have[i].Status == w.Status {
				return &have[i]
			}
		}
	}
	return nil
}

// succeeds tells whether the indexes that succeeded meet the success policy (KEP-3998), and by
// which rule.
func succeeds(policy *batchv1.SuccessPolicy, completions int, succeeded indexes) (string, bool) {
	if policy == nil || len(succeeded) == 0 {
		return "", false
	}
	for i, rule := range policy.Rules {
		met := false
		if rule.SucceededIndexes != nil {
			required := parseIndexes(*rule.SucceededIndexes, completions)
			have := required.overlap(succeeded)
			met = len(required) > 0 && (have == required.total() || rule.SucceededCount != nil && have >= int(*rule.SucceededCount))
		} else {
			met = rule.SucceededCount != nil && succeeded.total() >= int(*rule.SucceededCount)
		}
		if met {
			return fmt.Sprintf("Matched rules at index %d", i), true
		}
	}
	return "", false
}

// finishedAt is when a pod ended, as well as can be told: when its last container did, when it
// ceased to be ready, when it was deleted, or when it was created.
func finishedAt(pod *corev1.Pod) time.Time {
	if t, ok := containersFinishedAt(pod); ok {
		return t
	}
	if c := pods.Condition(pod, corev1.PodReady); c != nil && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
		return c.LastTransitionTime.Time
	}
	if pod.DeletionTimestamp != nil {
		var grace int64
		if pod.DeletionGracePeriodSeconds != nil {
			grace = *pod.DeletionGracePeriodSeconds
		}
		return pod.DeletionTimestamp.Add(-time.Duration(grace) * time.Second)
	}
	return pod.CreationTimestamp.Time
}

// containersFinishedAt is when the last of the containers and sidecars ended, if all did.
func containersFinishedAt(pod *corev1.Pod) (time.Time, bool) {
	statuses := slices.Clone(pod.Status.ContainerStatuses)
	for _, c := range pod.Spec.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		for _, s := range pod.Status.InitContainerStatuses {
			if s.Name == c.Name {
				statuses = append(statuses, s)
			}
		}
	}
	var latest time.Time
	for _, s := range statuses {
		if s.State.Terminated == nil || s.State.Terminated.FinishedAt.IsZero() {
			return time.Time{}, false
		}
		if t := s.State.Terminated.FinishedAt.Time; t.After(latest) {
			latest = t
		}
	}
	return latest, len(statuses) > 0
}

// backoff is how long after now a replacement has to wait after so many failures, the last of
// which was at last.
func backoff(failures int32, last, now time.Time) time.Duration {
	if failures == 0 {
		return 0
	}
	delay := firstBackoff
	for i := int32(1); i < failures && delay < maxBackoff; i++ {
		delay *= 2
	}
	return max(0, min(delay, maxBackoff)-now.Sub(last))
}
