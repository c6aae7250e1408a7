package nodelifecycle

import (
	"slices"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/cluster/liveness"
)

func TestJudge(t *testing.T) {
	const fence, grace = 2500 * time.Millisecond, 40 * time.Second
	dead := func() evidence {
		return evidence{
			leaseSilence: 4 * time.Second, bounds: Bounds{Fence: fence, Grace: grace}, silentNodes: 1, nodes: 3, connectedOnce: true,
			opinion: &liveness.Opinion{Servers: 3, Asked: 2, Silence: 4 * time.Second},
		}
	}
	tests := []struct {
		name string
		edit func(*evidence)
		want verdict
	}{
		{"machine is gone", func(*evidence) {}, lost},
		{"its kernel answers one server", func(e *evidence) { e.opinion.Answering = 1 }, suspect},
		{"another server heard it", func(e *evidence) { e.opinion.Silence = time.Second }, suspect},
		{"its agent may not have fenced itself yet", func(e *evidence) { e.opinion.Silence = fence }, suspect},
		{"it renewed its lease", func(e *evidence) { e.leaseSilence = time.Second }, alive},
		{"only a minority of servers looked", func(e *evidence) { e.opinion.Asked = 1 }, suspect},
		{"it never held a connection", func(e *evidence) { e.opinion.Silence, e.connectedOnce = -1, false }, alive},
		{"its agent is gone, a moment ago", func(e *evidence) { e.leaseSilence, e.opinion, e.refused = 0, nil, true }, suspect},
		{"most nodes are silent: it is us", func(e *evidence) { e.silentNodes = 2 }, suspect},
		{"nobody was asked", func(e *evidence) { e.opinion = nil }, suspect},
		{"stock: silent for long", func(e *evidence) { e.opinion, e.leaseSilence = nil, grace }, unknown},
		{"silent for long, but answering", func(e *evidence) { e.opinion.Answering, e.leaseSilence = 1, grace }, unknown},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e := dead()
			tt.edit(&e)
			if got := judge(e); got != tt.want {
				t.Errorf("verdict %d, want %d", got, tt.want)
			}
		})
	}
}

func TestDesiredTaints(t *testing.T) {
	now := metav1.Unix(1000, 0)
	node := func(ready corev1.ConditionStatus, taints ...corev1.Taint) *corev1.Node {
		n := &corev1.Node{}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		n.Spec.Taints = taints
		return n
	}
	lostBefore := func(n *corev1.Node) *corev1.Node {
		n.Annotations = map[string]string{LostAnnotation: "x"}
		return n
	}
	custom := corev1.Taint{Key: "mine", Effect: corev1.TaintEffectNoSchedule}
	admins := corev1.Taint{Key: corev1.TaintNodeOutOfService, Value: "nodeshutdown", Effect: corev1.TaintEffectNoExecute}
	tests := []struct {
		name string
		node *corev1.Node
		v    verdict
		want []string
	}{
		{"ready", node(corev1.ConditionTrue), alive, nil},
		{"others' taints stay", node(corev1.ConditionTrue, custom), alive, []string{"mine:NoSchedule"}},
		{"not ready", node(corev1.ConditionFalse), alive, []string{"node.kubernetes.io/not-ready:NoSchedule", "node.kubernetes.io/not-ready:NoExecute"}},
		{"unknown", node(corev1.ConditionUnknown), unknown, []string{"node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"}},
		{"suspect", node(corev1.ConditionTrue), suspect, []string{"node.kubernetes.io/unreachable:NoSchedule"}},
		{"suspect, and unknown already", node(corev1.ConditionUnknown), suspect, []string{"node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"}},
		{"lost", node(corev1.ConditionUnknown), lost, []string{
			"node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute", "node.kubernetes.io/out-of-service:NoExecute"}},
		{"back", lostBefore(node(corev1.ConditionTrue, admins)), alive, nil},
		{"heard, but not ready yet", lostBefore(node(corev1.ConditionUnknown, admins)), alive, []string{
			"node.kubernetes.io/out-of-service:NoExecute", "node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"}},
		{"an administrator's out-of-service stays", node(corev1.ConditionTrue, admins), alive, []string{"node.kubernetes.io/out-of-service:NoExecute"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			taints := desiredTaints(tt.node, tt.v, now)
			for _, taint := range taints {
				got = append(got, taint.Key+":"+string(taint.Effect))
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %v\nwant %v", got, tt.want)
			}
			tt.node.Spec.Taints = taints
			if again := desiredTaints(tt.node, tt.v, now); len(again) != len(taints) {
				t.Errorf("a second look changes them: %v", again)
			}
		})
	}
}
