package disruption

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

func pod(name string, ready bool) *corev1.Pod {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"app": "web"}},
		Status: corev1.PodStatus{Phase: corev1.PodRunning, Conditions: []corev1.PodCondition{{
			Type: corev1.PodReady, Status: status,
		}}},
	}
}

func budget(minAvailable, maxUnavailable string) *policyv1.PodDisruptionBudget {
	pdb := &policyv1.PodDisruptionBudget{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web", Generation: 3},
		Spec:       policyv1.PodDisruptionBudgetSpec{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}}},
	}
	if minAvailable != "" {
		v := intstr.Parse(minAvailable)
		pdb.Spec.MinAvailable = &v
	}
	if maxUnavailable != "" {
		v := intstr.Parse(maxUnavailable)
		pdb.Spec.MaxUnavailable = &v
	}
	return pdb
}

func TestPlan(t *testing.T) {
	deleted := pod("deleted", true)
	deleted.DeletionTimestamp = &metav1.Time{Time: noon}
	tests := []struct {
		name                               string
		pdb                                *policyv1.PodDisruptionBudget
		pods                               []*corev1.Pod
		scale                              int32
		expected, desired, healthy, allows int32
	}{
		{"a number must be available", budget("1", ""), []*corev1.Pod{pod("a", true), pod("b", true)}, 0, 2, 1, 2, 1},
		{"more than there are", budget("3", ""), []*corev1.Pod{pod("a", true), pod("b", true)}, 0, 2, 3, 2, 0},
		{"not ready ones don't count", budget("1", ""), []*corev1.Pod{pod("a", true), pod("b", false)}, 0, 2, 1, 1, 0},
		{"deleted ones don't count", budget("1", ""), []*corev1.Pod{pod("a", true), deleted}, 0, 2, 1, 1, 0},
		{"a fraction, rounded up", budget("50%", ""), []*corev1.Pod{pod("a", true), pod("b", true), pod("c", true)}, 3, 3, 2, 3, 1},
		{"some may be missing", budget("", "1"), []*corev1.Pod{pod("a", true), pod("b", true)}, 3, 3, 2, 2, 0},
		{"a fraction may be missing, rounded up", budget("", "30%"), []*corev1.Pod{pod("a", true), pod("b", true), pod("c", true)}, 3, 3, 2, 3, 1},
		{"more may be missing than there are", budget("", "5"), []*corev1.Pod{pod("a", true)}, 1, 1, 0, 1, 1},
		{"nothing is covered", budget("0", ""), nil, 0, 0, 0, 0, 0},
		{"nothing is promised", budget("", ""), []*corev1.Pod{pod("a", true)}, 0, 0, 0, 1, 0},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, late, again, err := plan(tt.pdb, view{pods: tt.pods, scale: tt.scale, now: noon})
			if err != nil || late != nil || again != 0 {
				t.Fatalf("late %v, again %v, error %v", late, again, err)
			}
			if status.ExpectedPods != tt.expected || status.DesiredHealthy != tt.desired || status.CurrentHealthy != tt.healthy || status.DisruptionsAllowed != tt.allows {
				t.Errorf("expected %d, desired %d, healthy %d, allowed %d", status.ExpectedPods, status.DesiredHealthy, status.CurrentHealthy, status.DisruptionsAllowed)
			}
			want := metav1.ConditionFalse
			if tt.allows > 0 {
				want = metav1.ConditionTrue
			}
			c := meta.FindStatusCondition(status.Conditions, policyv1.DisruptionAllowedCondition)
			if c == nil || c.Status != want || c.ObservedGeneration != 3 || !c.LastTransitionTime.Time.Equal(noon) {
				t.Errorf("condition %+v", c)
			}
		})
	}
}

// An evicted pod counts as gone until it is gone, but not for ever.
func TestDisruptedPodsAreForgotten(t *testing.T) {
	pdb := budget("1", "")
	pdb.Status.DisruptedPods = map[string]metav1.Time{
		"fresh": {Time: noon.Add(-30 * time.Second)}, "late": {Time: noon.Add(-deletionTimeout)}, "gone": {Time: noon},
	}
	status, late, again, err := plan(pdb, view{pods: []*corev1.Pod{pod("fresh", true), pod("late", true), pod("other", true)}, now: noon})
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := status.DisruptedPods["fresh"]; len(status.DisruptedPods) != 1 || !ok {
		t.Errorf("disrupted pods %v", status.DisruptedPods)
	}
	if len(late) != 1 || late[0].Name != "late" || again != 90*time.Second {
		t.Errorf("late %v, again in %v", late, again)
	}
	if status.CurrentHealthy != 2 || status.DisruptionsAllowed != 1 {
		t.Errorf("%d healthy, %d allowed", status.CurrentHealthy, status.DisruptionsAllowed)
	}
}

// Whatever is the case, taking the allowed number of healthy pods leaves what the budget promises.
func TestBudgetIsNeverOverdrawn(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 12).Draw(t, "pods")
		w := view{scale: int32(rapid.IntRange(0, 12).Draw(t, "scale")), now: noon}
		for i := range n {
			w.pods = append(w.pods, pod(string(rune('a'+i)), rapid.Bool().Draw(t, "ready")))
		}
		bound := rapid.SampledFrom([]string{"0", "1", "3", "9", "0%", "20%", "50%", "100%"}).Draw(t, "bound")
		pdb := budget(bound, "")
		if rapid.Bool().Draw(t, "max") {
			pdb = budget("", bound)
		}
		status, _, _, err := plan(pdb, w)
		if err != nil {
			t.Fatal(err)
		}
		if status.DisruptionsAllowed < 0 || status.DisruptionsAllowed > 0 && status.CurrentHealthy-status.DisruptionsAllowed < status.DesiredHealthy {
			t.Fatalf("%+v", status)
		}
		// A status that holds is left alone.
		pdb.Status = status
		w.now = noon.Add(time.Hour)
		if again, _, _, _ := plan(pdb, w); len(again.Conditions) != 1 || again.Conditions[0] != status.Conditions[0] {
			t.Fatalf("%+v, then %+v", status, again)
		}
	})
}
