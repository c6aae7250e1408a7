package pods_test

import (
	"math/rand/v2"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"barque.dev/internal/controllers/pods"
)

var noon = time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)

type opt func(*corev1.Pod)

func newPod(name string, opts ...opt) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, UID: types.UID(name), CreationTimestamp: metav1.Time{Time: noon.Add(-time.Hour)}}}
	p.Spec.NodeName, p.Status.Phase = "node-"+name, corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue, LastTransitionTime: metav1.Time{Time: noon.Add(-time.Hour)}}}
	for _, o := range opts {
		o(p)
	}
	return p
}

func onNode(n string) opt          { return func(p *corev1.Pod) { p.Spec.NodeName = n } }
func phase(ph corev1.PodPhase) opt { return func(p *corev1.Pod) { p.Status.Phase = ph } }
func notReady(p *corev1.Pod)       { p.Status.Conditions[0].Status = corev1.ConditionFalse }
func readyFor(d time.Duration) opt {
	return func(p *corev1.Pod) { p.Status.Conditions[0].LastTransitionTime.Time = noon.Add(-d) }
}
func createdBefore(d time.Duration) opt {
	return func(p *corev1.Pod) { p.CreationTimestamp.Time = noon.Add(-d) }
}
func cost(c string) opt {
	return func(p *corev1.Pod) { p.Annotations = map[string]string{corev1.PodDeletionCost: c} }
}
func restarted(n int32) opt {
	return func(p *corev1.Pod) { p.Status.ContainerStatuses = []corev1.ContainerStatus{{RestartCount: n}} }
}

// The order is that of upstream's documentation of ReplicaSets.
func TestVictimsAreOrdered(t *testing.T) {
	want := []*corev1.Pod{
		newPod("unassigned", onNode("")),
		newPod("pending", phase(corev1.PodPending)),
		newPod("unknown", phase(corev1.PodUnknown)),
		newPod("unready", notReady),
		newPod("cheap", cost("-5")),
		newPod("crowded", onNode("crowded")),
		newPod("fresh", readyFor(time.Minute)),
		newPod("restarted", restarted(3)),
		newPod("young", createdBefore(20*time.Minute)),
		newPod("old"),
		newPod("dear", cost("7")),
		newPod("malformed cost", cost("+9"), createdBefore(1000*time.Hour)),
	}
	// A malformed cost counts as none.
	want[10], want[11] = want[11], want[10]
	related := append([]*corev1.Pod{newPod("sibling", onNode("crowded"))}, want...)
	for range 50 {
		shuffled := append([]*corev1.Pod(nil), want...)
		rand.Shuffle(len(shuffled), func(i, j int) { shuffled[i], shuffled[j] = shuffled[j], shuffled[i] })
		got := pods.Victims(shuffled, related, len(want)-1, noon)
		for i, p := range got {
			if p != want[i] {
				t.Fatalf("victim %d is %s, want %s", i, p.Name, want[i].Name)
			}
		}
	}
}

func TestEqualAgesAreDrawnByUID(t *testing.T) {
	a, b := newPod("a", readyFor(100*time.Minute)), newPod("b", readyFor(101*time.Minute))
	if got := pods.Victims([]*corev1.Pod{b, a}, nil, 1, noon); got[0] != a {
		t.Errorf("victim %s", got[0].Name)
	}
}

func TestAvailability(t *testing.T) {
	p := newPod("p", readyFor(5*time.Second))
	for _, c := range []struct {
		min  int32
		want bool
		next time.Duration
	}{{0, true, 0}, {5, true, 0}, {6, false, time.Second}, {60, false, 55 * time.Second}} {
		if got := pods.Available(p, c.min, noon); got != c.want {
			t.Errorf("available after %d s: %v", c.min, got)
		}
		if got := pods.NextAvailable([]*corev1.Pod{p}, c.min, noon); got != c.next {
			t.Errorf("next for %d s: %v, want %v", c.min, got, c.next)
		}
	}
	notReady(p)
	if pods.Available(p, 0, noon) {
		t.Error("a pod that is not ready is available")
	}
}

func TestOrdinal(t *testing.T) {
	for name, want := range map[string]struct {
		parent string
		n      int
		ok     bool
	}{
		"web-0": {"web", 0, true}, "a-b-12": {"a-b", 12, true}, "web": {}, "web-": {}, "web-x": {}, "web-1x": {}, "web-99999999999999": {},
	} {
		if parent, n, ok := pods.Ordinal(name); ok != want.ok || ok && (parent != want.parent || n != want.n) {
			t.Errorf("%s: %s %d %v", name, parent, n, ok)
		}
	}
}
