package scheduler

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	barqueclient "barque.dev/internal/client"
)

// on is a pod that is on a node.
func on(node, name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	return aPod(name, append(edit, func(p *corev1.Pod) { p.Spec.NodeName = node })...).Pod
}

// A pod of high priority sends one of low priority away, waits until it has gone, and gets its room, which
// nobody else does meanwhile.
func TestTakesTheRoomOfLesserPods(t *testing.T) {
	s := newStage()
	stop := start(t, s)
	defer stop()
	s.tell(aNode("a"))
	victim := on("a", "low", withPriority(1), requests("2", "1Gi"))
	s.tell(victim)
	high := pending("high", withPriority(10), requests("2", "1Gi"))
	s.tell(high)

	said := <-s.patched
	if c := <-s.statuses; said.Name != "high" || said.Status.NominatedNodeName != "a" || !strings.HasPrefix(c.Message, "0/1 nodes are available: 1 Insufficient cpu. preemption: ") {
		t.Errorf("pod %s nominated to %q: %s", said.Name, said.Status.NominatedNodeName, c.Message)
	}
	marked := <-s.patched
	if c := marked.Status.Conditions[0]; marked.Name != "low" || c.Type != corev1.DisruptionTarget || c.Status != corev1.ConditionTrue ||
		c.Reason != corev1.PodReasonPreemptionByScheduler || c.Message != "default-scheduler: preempting to accommodate a higher priority pod" {
		t.Errorf("pod %s has condition %+v", marked.Name, c)
	}
	if name := <-s.deleted; name != "low" {
		t.Errorf("%s was deleted", name)
	}
	// It is going; one that comes now must not have its room, nor may the first send more away.
	ending := marked.DeepCopy()
	now := metav1.Now()
	ending.DeletionTimestamp = &now
	s.event(barqueclient.Event{Old: victim, New: ending})
	s.event(barqueclient.Event{Old: high, New: said})
	s.tell(pending("medium", withPriority(5), requests("1", "1Gi")))
	if c := <-s.statuses; !strings.Contains(c.Message, "Insufficient cpu") {
		t.Errorf("the one that came later: %s", c.Message)
	}
	s.event(barqueclient.Event{Old: ending})
	if bound := <-s.bound; bound != "high → a" {
		t.Error(bound)
	}
	if len(s.deleted) > 0 {
		t.Errorf("%s was deleted too", <-s.deleted)
	}
}

// A nomination gives way to one of higher priority, and is told so.
func TestANominationGivesWay(t *testing.T) {
	s := newStage()
	sched := New(Config{Client: s, Recorder: nothing{}, Log: quiet()})
	sched.nodeChanged(barqueclient.Event{New: aNode("a")})
	sched.podChanged(barqueclient.Event{New: on("a", "low", withPriority(1), requests("2", "1Gi"))})
	try := func(pod *corev1.Pod) {
		t.Helper()
		sched.podChanged(barqueclient.Event{New: pod})
		p, _ := sched.queue.take()
		if p == nil || p.Name != pod.Name {
			t.Fatalf("%v has its turn, want %s", p, pod.Name)
		}
		sched.schedule(t.Context(), p, func(tell func()) { tell() })
	}
	try(pending("medium", withPriority(5), requests("2", "1Gi")))
	if got := sched.cluster.Nomination("medium"); got != "a" {
		t.Fatalf("nominated to %q", got)
	}
	try(pending("high", withPriority(9), requests("2", "1Gi")))
	if medium, high := sched.cluster.Nomination("medium"), sched.cluster.Nomination("high"); medium != "" || high != "a" {
		t.Errorf("medium is nominated to %q, high to %q", medium, high)
	}
	last := map[string]string{}
	for len(s.patched) > 0 {
		p := <-s.patched
		last[p.Name] = p.Status.NominatedNodeName
	}
	if last["medium"] != "" || last["high"] != "a" {
		t.Errorf("the API was told: %v", last)
	}
	// The API's older word does not bring it back, its newer one counts.
	stale := pending("medium", withPriority(5), requests("2", "1Gi"), nominatedNode("a"))
	sched.podChanged(barqueclient.Event{Old: stale, New: stale})
	if got := sched.cluster.Nomination("medium"); got != "" {
		t.Errorf("an old event nominated it to %q", got)
	}
	sched.podChanged(barqueclient.Event{Old: pending("medium"), New: stale})
	if got := sched.cluster.Nomination("medium"); got != "a" {
		t.Errorf("after a new word it is nominated to %q", got)
	}
	// Who is gone holds nothing, whenever that is heard.
	sched.podChanged(barqueclient.Event{Old: stale})
	sched.podChanged(barqueclient.Event{Old: stale})
	if got := sched.cluster.Nomination("medium"); got != "" {
		t.Errorf("a deleted pod is nominated to %q", got)
	}
}

// A nomination does not outlive a pod that vanishes while it is made.
func TestNominationOfAVanishedPod(t *testing.T) {
	s := newStage()
	sched := New(Config{Client: s, Recorder: nothing{}, Log: quiet()})
	sched.nodeChanged(barqueclient.Event{New: aNode("a")})
	sched.podChanged(barqueclient.Event{New: on("a", "low", withPriority(1), requests("2", "1Gi"))})
	high := pending("high", withPriority(9), requests("2", "1Gi"))
	sched.podChanged(barqueclient.Event{New: high})
	p, _ := sched.queue.take()
	sched.podChanged(barqueclient.Event{Old: high})
	sched.schedule(t.Context(), p, func(tell func()) { tell() })
	if got := sched.cluster.Nomination("high"); got != "" {
		t.Errorf("nominated to %q", got)
	}
}

func TestFreedRoomWakesItsNomineeAtOnce(t *testing.T) {
	q, now := newTestQueue()
	for _, name := range []string{"here", "there"} {
		q.Set(aPod(name))
		q.take()
	}
	q.Nominate("here", "a")
	q.Failed("here", true)
	q.Failed("there", true)
	q.Freed("a")
	if p, _ := q.take(); p == nil || p.Name != "here" {
		t.Fatalf("%v has its turn", p)
	}
	q.Freed("a") // while it is tried
	q.Failed("here", true)
	if p, _ := q.take(); p == nil || p.Name != "here" {
		t.Fatalf("%v has its turn after room became free while it was tried", p)
	}
	q.Failed("here", true)
	*now = now.Add(lastBackoff)
	if p, _ := q.take(); p != nil {
		t.Fatalf("%s has its turn although nothing happened", p.Name)
	}
}
