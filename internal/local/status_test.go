package local

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestNodeState: whoever looks sees why a node that is ready gets no pods.
func TestNodeState(t *testing.T) {
	var n corev1.Node
	if got := NodeState(&n); got != "NotReady" {
		t.Error(got)
	}
	n.Status.Conditions = []corev1.NodeCondition{
		{Type: corev1.NodeReady, Status: corev1.ConditionTrue},
		{Type: corev1.NodeMemoryPressure, Status: corev1.ConditionFalse, Message: "none"},
	}
	if got, why := NodeState(&n), whyNoPods(&n); got != "Ready" || why != "" {
		t.Error(got, why)
	}
	n.Status.Conditions = append(n.Status.Conditions, corev1.NodeCondition{Type: corev1.NodeDiskPressure, Status: corev1.ConditionTrue, Message: "less than 25Gi"})
	n.Spec.Unschedulable = true
	if got, why := NodeState(&n), whyNoPods(&n); got != "Ready,DiskPressure,SchedulingDisabled" || why != ", but gets no pods: less than 25Gi" {
		t.Error(got, why)
	}
}
