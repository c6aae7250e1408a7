package scheduler

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

func first(int) int { return 0 }

func aNode(name string, edit ...func(*corev1.Node)) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelHostname: name}}}
	n.Status.Allocatable = corev1.ResourceList{
		corev1.ResourceCPU:    resource.MustParse("2"),
		corev1.ResourceMemory: resource.MustParse("4Gi"),
		corev1.ResourcePods:   resource.MustParse("10"),
	}
	for _, e := range edit {
		e(n)
	}
	return n
}

func aPod(name string, edit ...func(*corev1.Pod)) *Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name)}}
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "app"}}
	for _, e := range edit {
		e(p)
	}
	return NewPod(p)
}

func requests(cpu, memory string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse(cpu), corev1.ResourceMemory: resource.MustParse(memory),
		}
	}
}

func tainted(key, value string, effect corev1.TaintEffect) func(*corev1.Node) {
	return func(n *corev1.Node) {
		n.Spec.Taints = append(n.Spec.Taints, corev1.Taint{Key: key, Value: value, Effect: effect})
	}
}

func labelled(key, value string) func(*corev1.Node) {
	return func(n *corev1.Node) { n.Labels[key] = value }
}

func owned(uid string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		yes := true
		p.OwnerReferences = []metav1.OwnerReference{{Kind: "ReplicaSet", Name: uid, UID: types.UID(uid), Controller: &yes}}
	}
}

func hostPortOf(port int32, ip string) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: port, HostIP: ip, Protocol: corev1.ProtocolTCP}}
	}
}

func TestDecide(t *testing.T) {
	tests := []struct {
		name    string
		nodes   []*corev1.Node
		there   map[string][]*Pod // already on nodes
		pod     *Pod
		want    string
		message string
	}{
		{name: "no nodes", pod: aPod("p"), message: "no nodes available to schedule pods"},
		{name: "one fits", nodes: []*corev1.Node{aNode("a")}, pod: aPod("p"), want: "a"},
		{
			name:    "each reason is counted, in order",
			nodes:   []*corev1.Node{aNode("a"), aNode("b", func(n *corev1.Node) { n.Spec.Unschedulable = true }), aNode("c")},
			pod:     aPod("p", requests("3", "1Gi")),
			message: "0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient cpu.",
		},
		{
			name: "cpu and memory both named", nodes: []*corev1.Node{aNode("a")}, pod: aPod("p", requests("3", "9Gi")),
			message: "0/1 nodes are available: 1 Insufficient cpu, 1 Insufficient memory.",
		},
		{
			name: "taint", nodes: []*corev1.Node{aNode("a", tainted("gpu", "yes", corev1.TaintEffectNoSchedule))}, pod: aPod("p"),
			message: "0/1 nodes are available: 1 node(s) had untolerated taint(s).",
		},
		{
			name: "taint tolerated", nodes: []*corev1.Node{aNode("a", tainted("gpu", "yes", corev1.TaintEffectNoExecute))},
			pod: aPod("p", func(p *corev1.Pod) {
				p.Spec.Tolerations = []corev1.Toleration{{Key: "gpu", Operator: corev1.TolerationOpExists}}
			}), want: "a",
		},
		{
			name: "unschedulable tolerated", nodes: []*corev1.Node{aNode("a", func(n *corev1.Node) { n.Spec.Unschedulable = true })},
			pod: aPod("p", func(p *corev1.Pod) {
				p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeUnschedulable, Operator: corev1.TolerationOpExists}}
			}), want: "a",
		},
		{
			name: "prefer no schedule is avoided", nodes: []*corev1.Node{aNode("a", tainted("slow", "", corev1.TaintEffectPreferNoSchedule)), aNode("b")},
			pod: aPod("p"), want: "b",
		},
		{
			name: "node selector", nodes: []*corev1.Node{aNode("a"), aNode("b", labelled("disk", "ssd"))},
			pod: aPod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }), want: "b",
		},
		{
			name: "node selector matches none", nodes: []*corev1.Node{aNode("a")},
			pod:     aPod("p", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }),
			message: "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
		},
		{
			name: "preferred affinity", nodes: []*corev1.Node{aNode("a"), aNode("b", labelled("disk", "ssd"))},
			pod: aPod("p", func(p *corev1.Pod) {
				p.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{
					PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 50, Preference: corev1.NodeSelectorTerm{
						MatchExpressions: []corev1.NodeSelectorRequirement{{Key: "disk", Operator: corev1.NodeSelectorOpIn, Values: []string{"ssd"}}},
					}}},
				}}
			}), want: "b",
		},
		{
			name: "host port taken", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {aPod("x", hostPortOf(80, ""))}}, pod: aPod("p", hostPortOf(80, "127.0.0.1")), want: "b",
		},
		{
			name: "host port on another address", nodes: []*corev1.Node{aNode("a")},
			there: map[string][]*Pod{"a": {aPod("x", hostPortOf(80, "10.0.0.1"))}}, pod: aPod("p", hostPortOf(80, "127.0.0.1")), want: "a",
		},
		{
			name: "siblings spread", nodes: []*corev1.Node{aNode("a"), aNode("b")},
			there: map[string][]*Pod{"a": {aPod("x", owned("rs"))}}, pod: aPod("p", owned("rs")), want: "b",
		},
		{
			name: "zones count more than nodes",
			nodes: []*corev1.Node{
				aNode("a1", labelled(corev1.LabelTopologyZone, "a")), aNode("a2", labelled(corev1.LabelTopologyZone, "a")),
				aNode("b1", labelled(corev1.LabelTopologyZone, "b")),
			},
			there: map[string][]*Pod{"a1": {aPod("x", owned("rs"))}}, pod: aPod("p", owned("rs")), want: "b1",
		},
		{
			name: "too many pods", nodes: []*corev1.Node{aNode("a", func(n *corev1.Node) {
				n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("1")
			})},
			there: map[string][]*Pod{"a": {aPod("x")}}, pod: aPod("p"), message: "0/1 nodes are available: 1 Too many pods.",
		},
		{
			name: "image is there", nodes: []*corev1.Node{aNode("a"), aNode("b", func(n *corev1.Node) {
				n.Status.Images = []corev1.ContainerImage{{Names: []string{"app:latest"}, SizeBytes: 800 << 20}}
			})}, pod: aPod("p"), want: "b",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := NewCluster()
			for _, n := range tt.nodes {
				c.SetNode(n)
			}
			for node, pods := range tt.there {
				for _, p := range pods {
					c.SetPod(p, node)
				}
			}
			d := Decide(tt.pod, c.Snapshot(), nil, 0, first)
			if d.Node != tt.want {
				t.Errorf("node %q, want %q (%v)", d.Node, tt.want, d.Refusals)
			}
			if tt.want == "" && d.Message() != tt.message {
				t.Errorf("message %q\n   want %q", d.Message(), tt.message)
			}
		})
	}
}

// Whatever comes and goes, no node is ever given more than it has, snapshots never change, and
// the sums equal those of a model built afresh.
func TestClusterProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := NewCluster()
		pods := map[string]*Pod{}
		where := map[string]string{}
		var kept Snapshot
		var keptText string
		names := []string{"a", "b", "c"}
		t.Repeat(map[string]func(*rapid.T){
			"node": func(t *rapid.T) { c.SetNode(aNode(rapid.SampledFrom(names).Draw(t, "node"))) },
			"lose": func(t *rapid.T) { c.RemoveNode(rapid.SampledFrom(names).Draw(t, "node")) },
			"schedule": func(t *rapid.T) {
				name := "p" + strconv.Itoa(rapid.IntRange(0, 30).Draw(t, "pod"))
				if where[name] != "" {
					return
				}
				cpu := strconv.Itoa(rapid.IntRange(0, 900).Draw(t, "cpu")) + "m"
				p := aPod(name, requests(cpu, "100Mi"), owned("rs"))
				if d := Decide(p, c.Snapshot(), nil, rapid.IntRange(0, 2).Draw(t, "start"), first); d.Node != "" {
					c.SetPod(p, d.Node)
					pods[name], where[name] = p, d.Node
				}
			},
			"end": func(t *rapid.T) {
				name := "p" + strconv.Itoa(rapid.IntRange(0, 30).Draw(t, "pod"))
				c.RemovePod(types.UID(name))
				delete(where, name)
			},
			"snapshot": func(*rapid.T) { kept = c.Snapshot(); keptText = describe(kept) },
			"": func(t *rapid.T) {
				if got := describe(kept); got != keptText {
					t.Fatalf("a snapshot changed: %s, was %s", got, keptText)
				}
				fresh := NewCluster()
				for _, n := range c.Snapshot().Nodes {
					fresh.SetNode(n.Node)
					if n.Requested.MilliCPU > n.Allocatable.MilliCPU || n.Requested.Memory > n.Allocatable.Memory {
						t.Fatalf("node %s is given more than it has: %+v of %+v", n.Name, n.Requested, n.Allocatable)
					}
				}
				for name, node := range where {
					fresh.SetPod(pods[name], node)
				}
				if got, want := describe(c.Snapshot()), describe(fresh.Snapshot()); got != want {
					t.Fatalf("model %s, afresh %s", got, want)
				}
			},
		})
	})
}

func describe(s Snapshot) string {
	var b strings.Builder
	for _, n := range s.Nodes {
		fmt.Fprintf(&b, "%s %d pods %+v %+v %v; ", n.Name, len(n.Pods), n.Requested, n.Assumed, n.siblings)
	}
	return b.String()
}
