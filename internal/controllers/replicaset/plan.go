package replicaset

import (
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

// A plan is what to do next: create some pods, or delete some, never both.
type plan struct {
	create int
	delete []*corev1.Pod
}

// decide compares how many pods are wanted with those that are active. related are the pods of
// all ReplicaSets of the same owner; they matter only for which pods go first.
func decide(replicas int32, active, related []*corev1.Pod, now time.Time) plan {
	switch diff := int(replicas) - len(active); {
	case diff > 0:
		return plan{create: min(diff, kit.MaxBurst)}
	case diff < 0:
		return plan{delete: pods.Victims(active, related, min(-diff, kit.MaxBurst), now)}
	}
	return plan{}
}

// status says how set is doing. failure is what went wrong when its plan was carried out.
func status(set *appsv1.ReplicaSet, active, terminating []*corev1.Pod, failure error, now time.Time) appsv1.ReplicaSetStatus {
	s := *set.Status.DeepCopy()
	s.ObservedGeneration = set.Generation
	s.Replicas = int32(len(active))
	s.FullyLabeledReplicas, s.ReadyReplicas, s.AvailableReplicas = 0, 0, 0
	n := int32(len(terminating))
	s.TerminatingReplicas = &n
	ofTemplate := labels.SelectorFromSet(set.Spec.Template.Labels)
	for _, p := range active {
		if ofTemplate.Matches(labels.Set(p.Labels)) {
			s.FullyLabeledReplicas++
		}
		if pods.Ready(p) {
			s.ReadyReplicas++
		}
		if pods.Available(p, set.Spec.MinReadySeconds, now) {
			s.AvailableReplicas++
		}
	}
	s.Conditions = failureCondition(s.Conditions, len(active) < int(*set.Spec.Replicas), failure, now)
	return s
}

// failureCondition keeps an earlier ReplicaFailure while the failure lasts, so that its time
// and message tell of the first.
func failureCondition(conditions []appsv1.ReplicaSetCondition, creating bool, failure error, now time.Time) []appsv1.ReplicaSetCondition {
	var kept []appsv1.ReplicaSetCondition
	for _, c := range conditions {
		if c.Type != appsv1.ReplicaSetReplicaFailure {
			kept = append(kept, c)
		} else if failure != nil {
			return conditions
		}
	}
	if failure == nil {
		return kept
	}
	reason := "FailedDelete"
	if creating {
		reason = "FailedCreate"
	}
	return append(kept, appsv1.ReplicaSetCondition{
		Type:               appsv1.ReplicaSetReplicaFailure,
		Status:             corev1.ConditionTrue,
		LastTransitionTime: metav1.Time{Time: now},
		Reason:             reason,
		Message:            failure.Error(),
	})
}
