package disruption

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"barque.dev/internal/controllers/pods"
)

// deletionTimeout is how long after its eviction a pod that still lives counts as going (stock's).
const deletionTimeout = 2 * time.Minute

// view is what a budget's status depends on.
type view struct {
	// pods are those that the budget covers.
	pods []*corev1.Pod
	// scale is what their controllers are scaled to, together; unmanaged tells that some pods
	// have no controller. Both are only known if needsScale.
	scale     int32
	unmanaged bool
	now       time.Time
}

// needsScale tells whether the budget's promise depends on the scale of the pods' controllers. A
// plain number of pods that must be available does not.
func needsScale(pdb *policyv1.PodDisruptionBudget) bool {
	return pdb.Spec.MaxUnavailable != nil || pdb.Spec.MinAvailable != nil && pdb.Spec.MinAvailable.Type == intstr.String
}

// plan decides the budget's status. late are pods that should have been deleted by now; again is
// when, from now, the next pod is late, 0 for never.
func plan(pdb *policyv1.PodDisruptionBudget, w view) (status policyv1.PodDisruptionBudgetStatus, late []*corev1.Pod, again time.Duration, err error) {
	expected, desired, err := promised(pdb, w)
	if err != nil {
		return status, nil, 0, err
	}
	going, late, again := disrupted(pdb, w)
	healthy := int32(0)
	for _, pod := range w.pods {
		if _, goes := going[pod.Name]; !goes && pod.DeletionTimestamp == nil && pods.Ready(pod) {
			healthy++
		}
	}
	allowed := max(healthy-desired, 0)
	if expected <= 0 {
		// The first pods of a budget must not go before they have been counted.
		allowed = 0
	}
	status = policyv1.PodDisruptionBudgetStatus{
		ObservedGeneration: pdb.Generation, DisruptedPods: going,
		CurrentHealthy: healthy, DesiredHealthy: desired, ExpectedPods: expected, DisruptionsAllowed: allowed,
	}
	return withCondition(pdb, status, w.now), late, again, nil
}

// promised tells how many pods there should be and how many of them must be healthy. Fractions
// are rounded up, either way.
func promised(pdb *policyv1.PodDisruptionBudget, w view) (expected, desired int32, err error) {
	switch {
	case pdb.Spec.MaxUnavailable != nil:
		missing, err := intstr.GetScaledValueFromIntOrPercent(pdb.Spec.MaxUnavailable, int(w.scale), true)
		return w.scale, max(w.scale-int32(missing), 0), err
	case pdb.Spec.MinAvailable == nil:
		return 0, 0, nil
	case pdb.Spec.MinAvailable.Type == intstr.Int:
		return int32(len(w.pods)), pdb.Spec.MinAvailable.IntVal, nil
	default:
		available, err := intstr.GetScaledValueFromIntOrPercent(pdb.Spec.MinAvailable, int(w.scale), true)
		return w.scale, int32(available), err
	}
}

// disrupted sorts the pods whose eviction was granted: those that are still expected to go, and
// those for whom it is too late. A pod that is gone, or being deleted, needs no note any more.
func disrupted(pdb *policyv1.PodDisruptionBudget, w view) (going map[string]metav1.Time, late []*corev1.Pod, again time.Duration) {
	for _, pod := range w.pods {
		since, ok := pdb.Status.DisruptedPods[pod.Name]
		if !ok || pod.DeletionTimestamp != nil {
			continue
		}
		left := since.Add(deletionTimeout).Sub(w.now)
		if left <= 0 {
			late = append(late, pod)
			continue
		}
		if going == nil {
			going = map[string]metav1.Time{}
		}
		going[pod.Name] = since
		if again == 0 || left < again {
			again = left
		}
	}
	return going, late, again
}
