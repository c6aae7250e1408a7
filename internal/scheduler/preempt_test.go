package scheduler

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

var noon = time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)

func startedAt(minutes int) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		t := metav1.NewTime(noon.Add(time.Duration(minutes) * time.Minute))
		p.Status.StartTime = &t
	}
}

func withLabel(key, value string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		if p.Labels == nil {
			p.Labels = map[string]string{}
		}
		p.Labels[key] = value
	}
}

// going is a pod that was told to go for another's sake and has not gone yet.
func going(p *corev1.Pod) {
	now := metav1.NewTime(noon)
	p.DeletionTimestamp = &now
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler}}
}

func nominatedNode(node string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Status.NominatedNodeName = node }
}

func budgetFor(label, value string, allowed int32, disrupted ...string) Budget {
	pdb := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: value, UID: types.UID(value)}}
	pdb.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{label: value}}
	pdb.Status.DisruptionsAllowed = allowed
	pdb.Status.DisruptedPods = map[string]metav1.Time{}
	for _, name := range disrupted {
		pdb.Status.DisruptedPods[name] = metav1.NewTime(noon)
	}
	b, ok := NewBudget(pdb)
	if !ok {
		panic("a budget that covers nothing")
	}
	return b
}

func names(pods []*Pod) string {
	var out []string
	for _, p := range pods {
		out = append(out, p.Name)
	}
	return strings.Join(out, " ")
}

// low is a pod of priority 1 with half a node.
func low(name string, edit ...func(*corev1.Pod)) *Pod {
	return aPod(name, append([]func(*corev1.Pod){withPriority(1), requests("1", "1Gi")}, edit...)...)
}

func TestPreempt(t *testing.T) {
	high := func(edit ...func(*corev1.Pod)) *Pod {
		return aPod("high", append([]func(*corev1.Pod){withPriority(10), requests("2", "1Gi")}, edit...)...)
	}
	half := requests("1", "1Gi")
	tests := []struct {
		name     string
		nodes    []*corev1.Node
		there    map[string][]*Pod
		coming   []*Pod // nominated
		pod      *Pod
		budgets  []Budget
		node     string
		victims  string
		displace string
		waits    bool
		message  string // as a part
	}{
		{
			name: "those below go", nodes: []*corev1.Node{aNode("a")}, there: map[string][]*Pod{"a": {low("1"), low("2")}}, pod: high(),
			node: "a", victims: "1 2", message: "preemption: found a potential placement for pod on node a, preempting 2 victims",
		},
		{
			name: "no more than needed, the youngest", nodes: []*corev1.Node{aNode("a")},
			there: map[string][]*Pod{"a": {low("young", startedAt(-5)), low("old", startedAt(-9))}}, pod: high(half), node: "a", victims: "young",
		},
		{
			name: "the lowest", nodes: []*corev1.Node{aNode("a")},
			there: map[string][]*Pod{"a": {low("1", withPriority(2)), low("2", withPriority(1))}}, pod: high(half), node: "a", victims: "2",
		},
		{
			name: "not one's equals", nodes: []*corev1.Node{aNode("a")}, there: map[string][]*Pod{"a": {low("1", withPriority(10)), low("2", withPriority(11))}}, pod: high(),
			message: "preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.",
		},
		{
			name: "of no use", nodes: []*corev1.Node{aNode("a"), aNode("b", tainted("k", "", corev1.TaintEffectNoSchedule)), aNode("c")},
			there: map[string][]*Pod{"a": {low("1"), low("2", withPriority(10))}, "b": {low("3")}, "c": {low("4", withPriority(10))}}, pod: high(),
			message: "preemption: 0/3 nodes are available: 1 Insufficient cpu, 1 No preemption victims found for incoming pod, 1 Preemption is not helpful for scheduling.",
		},
		{
			name: "more than a node has", nodes: []*corev1.Node{aNode("a")}, there: map[string][]*Pod{"a": {low("1")}}, pod: high(requests("3", "1Gi")),
			message: "preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling.",
		},
		{
			name: "a port", nodes: []*corev1.Node{aNode("a")}, there: map[string][]*Pod{"a": {aPod("1", hostPortOf(80, "")), aPod("2")}}, pod: aPod("high", withPriority(1), hostPortOf(80, "")),
			node: "a", victims: "1",
		},
		{
			name: "Never", nodes: []*corev1.Node{aNode("a")}, there: map[string][]*Pod{"a": {low("1"), low("2")}},
			pod:     high(func(p *corev1.Pod) { never := corev1.PreemptNever; p.Spec.PreemptionPolicy = &never }),
			message: "preemption: not eligible due to preemptionPolicy=Never.",
		},
		{
			name: "waits for those it sent away", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {low("1", going), low("2")}, "b": {low("3")}}, pod: high(nominatedNode("a")),
			waits: true, message: "preemption: not eligible due to a terminating pod on the nominated node.",
		},
		{
			name: "does not wait on a node that can't be", nodes: []*corev1.Node{aNode("a", tainted("k", "", corev1.TaintEffectNoSchedule)), aNode("b")},
			there: map[string][]*Pod{"a": {low("1", going)}, "b": {low("3")}}, pod: high(nominatedNode("a")), node: "b", victims: "3",
		},
		{
			name: "budgets, if there is a way", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {low("1", withLabel("app", "x"))}, "b": {low("2", withPriority(5)), low("3")}}, pod: high(),
			budgets: []Budget{budgetFor("app", "x", 0)}, node: "b", victims: "2 3",
		},
		{
			name: "budgets, if there is none", nodes: []*corev1.Node{aNode("a")},
			there: map[string][]*Pod{"a": {low("1", withLabel("app", "x")), low("2", withLabel("app", "x"))}}, pod: high(half),
			budgets: []Budget{budgetFor("app", "x", 1)}, node: "a", victims: "1",
		},
		{
			name: "what a budget counts already", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {low("1", withLabel("app", "x"))}, "b": {low("2", withPriority(5))}}, pod: high(),
			budgets: []Budget{budgetFor("app", "x", 0, "1")}, node: "a", victims: "1",
		},
		{
			name: "the node whose highest is lowest", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {low("1", withPriority(3))}, "b": {low("2", withPriority(2)), low("3", withPriority(2))}}, pod: high(), node: "b", victims: "2 3",
		},
		{
			name: "then the lowest sum", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {low("1", withPriority(3)), low("2", withPriority(2))}, "b": {low("3", withPriority(3)), low("4", withPriority(1))}}, pod: high(), node: "b", victims: "3 4",
		},
		{
			name: "then the latest start", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {low("1", startedAt(-8))}, "b": {low("2", startedAt(-3))}}, pod: high(), node: "b", victims: "2",
		},
		{
			name: "the room of lower nominees, that of others not", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there:  map[string][]*Pod{"a": {low("1")}, "b": {low("2")}},
			coming: []*Pod{low("lower", withPriority(5), nominatedNode("a")), low("higher", withPriority(10), nominatedNode("b"))},
			pod:    high(), node: "a", victims: "1", displace: "lower",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := clusterOf(tt.nodes, tt.there)
			for _, p := range tt.coming {
				c.Nominate(p)
			}
			s := c.Snapshot()
			d := Decide(tt.pod, s, nil, 0, first)
			if d.Node != "" {
				t.Fatalf("it fits on %s", d.Node)
			}
			got := Preempt(tt.pod, s, nil, d, tt.budgets, 0, noon)
			if got.Node != tt.node || names(got.Victims) != tt.victims || names(got.Displaced) != tt.displace || got.Waits != tt.waits {
				t.Errorf("node %q victims %q displaced %q waits %v, want %q %q %q %v (%s)",
					got.Node, names(got.Victims), names(got.Displaced), got.Waits, tt.node, tt.victims, tt.displace, tt.waits, got.Message)
			}
			if !strings.Contains(got.Message, tt.message) {
				t.Errorf("message %q\n   want %q", got.Message, tt.message)
			}
		})
	}
}

func clusterOf(nodes []*corev1.Node, there map[string][]*Pod) *Cluster {
	c := NewCluster()
	for _, n := range nodes {
		c.SetNode(n)
	}
	for node, pods := range there {
		for _, p := range pods {
			c.SetPod(p, node)
		}
	}
	return c
}

// Room that is being made for one is not given to another that is not above it.
func TestNominatedRoomIsTaken(t *testing.T) {
	nominee := low("nominee", withPriority(5), requests("2", "1Gi"), nominatedNode("a"))
	for priority, want := range map[int32]string{4: "", 5: "", 6: "a"} {
		c := clusterOf([]*corev1.Node{aNode("a")}, nil)
		c.Nominate(nominee)
		if d := Decide(low("other", withPriority(priority)), c.Snapshot(), nil, 0, first); d.Node != want {
			t.Errorf("priority %d goes to %q, want %q", priority, d.Node, want)
		}
	}
	c := clusterOf([]*corev1.Node{aNode("a"), aNode("b")}, nil)
	c.Nominate(nominee)
	if d := Decide(nominee, c.Snapshot(), nil, 1, first); d.Node != "a" {
		t.Errorf("the nominee itself goes to %q", d.Node)
	}
	c.RemoveNode("a")
	c.SetNode(aNode("a"))
	if got := names(c.Snapshot().find("a").nominated); got != "nominee" {
		t.Errorf("a node that came back is nominated to %q", got)
	}
	c.SetPod(nominee, "b")
	if got := names(c.Snapshot().find("a").nominated); got != "" {
		t.Errorf("a nomination of a pod that has a node stays: %q", got)
	}
}

// Whoever has to go is of lower priority, the pod fits once they have gone, and would not if any one
// of them stayed; where nobody is found, it fits on no node even if all of lower priority go.
func TestPreemptProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCluster()
		for i := range rapid.IntRange(1, 4).Draw(t, "nodes") {
			c.SetNode(aNode("n"+strconv.Itoa(i), func(n *corev1.Node) {
				n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse(strconv.Itoa(rapid.IntRange(1, 6).Draw(t, "room")))
			}))
		}
		count := 0
		draw := func() *Pod {
			count++
			p := aPod(fmt.Sprintf("p%d", count), withPriority(int32(rapid.IntRange(0, 3).Draw(t, "priority"))), withLabel("app", rapid.SampledFrom([]string{"x", "y"}).Draw(t, "app")),
				requests(strconv.Itoa(rapid.IntRange(0, 2000).Draw(t, "cpu"))+"m", "1Mi"), startedAt(rapid.IntRange(-3, 0).Draw(t, "start")))
			return p
		}
		for range rapid.IntRange(0, 14).Draw(t, "pods") {
			p := draw()
			if d := Decide(p, c.Snapshot(), nil, 0, first); d.Node != "" {
				c.SetPod(p, d.Node)
			}
		}
		budgets := []Budget{budgetFor("app", "x", int32(rapid.IntRange(0, 2).Draw(t, "allowed")))}
		p, s := draw(), c.Snapshot()
		d := Decide(p, s, nil, 0, first)
		if d.Node != "" {
			return
		}
		room := Preempt(p, s, nil, d, budgets, rapid.IntRange(0, 3).Draw(t, "start"), noon)
		fits := func(node string, stay func(*Pod) bool) bool {
			rest := NewCluster()
			n := s.find(node)
			rest.SetNode(n.Node)
			for _, o := range n.Pods {
				if stay(o) {
					rest.SetPod(o, node)
				}
			}
			return Decide(p, rest.Snapshot(), nil, 0, first).Node != ""
		}
		if room.Node == "" {
			for _, n := range s.Nodes {
				if fits(n.Name, func(o *Pod) bool { return o.Priority >= p.Priority }) {
					t.Fatalf("it would fit on %s if all below it went: %s", n.Name, room.Message)
				}
			}
			return
		}
		for _, v := range room.Victims {
			if v.Priority >= p.Priority {
				t.Fatalf("%s of priority %d has to go for one of %d", v.Name, v.Priority, p.Priority)
			}
			if fits(room.Node, func(o *Pod) bool { return o == v || !slices.Contains(room.Victims, o) }) {
				t.Fatalf("%s could have stayed", v.Name)
			}
		}
		if !fits(room.Node, func(o *Pod) bool { return !slices.Contains(room.Victims, o) }) {
			t.Fatalf("it does not fit on %s without %s", room.Node, names(room.Victims))
		}
	})
}
