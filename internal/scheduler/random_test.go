package scheduler

import (
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

var apps = []string{"x", "y"}

func drawSelector(t *rapid.T) *metav1.LabelSelector {
	switch rapid.IntRange(0, 4).Draw(t, "selector") {
	case 0:
		return nil
	case 1:
		return &metav1.LabelSelector{}
	case 2:
		return &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpExists}}}
	}
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": rapid.SampledFrom(apps).Draw(t, "selected")}}
}

func drawKey(t *rapid.T) string {
	return rapid.SampledFrom([]string{corev1.LabelHostname, corev1.LabelTopologyZone, "rack"}).Draw(t, "key")
}

func drawTerm(t *rapid.T) corev1.PodAffinityTerm {
	term := corev1.PodAffinityTerm{TopologyKey: drawKey(t), LabelSelector: drawSelector(t)}
	switch rapid.IntRange(0, 3).Draw(t, "namespaces") {
	case 0:
		term.Namespaces = []string{"default", "other"}
	case 1:
		term.NamespaceSelector = rapid.SampledFrom([]*metav1.LabelSelector{{}, {MatchLabels: map[string]string{"team": "red"}}}).Draw(t, "namespace selector")
	}
	return term
}

func drawConstraint(t *rapid.T) corev1.TopologySpreadConstraint {
	policy := func(name string) *corev1.NodeInclusionPolicy {
		return rapid.SampledFrom([]*corev1.NodeInclusionPolicy{nil, new(corev1.NodeInclusionPolicyHonor), new(corev1.NodeInclusionPolicyIgnore)}).Draw(t, name)
	}
	c := corev1.TopologySpreadConstraint{
		MaxSkew: int32(rapid.IntRange(1, 2).Draw(t, "skew")), TopologyKey: drawKey(t), LabelSelector: drawSelector(t),
		WhenUnsatisfiable:  rapid.SampledFrom([]corev1.UnsatisfiableConstraintAction{corev1.DoNotSchedule, corev1.ScheduleAnyway}).Draw(t, "when"),
		NodeAffinityPolicy: policy("affinity policy"), NodeTaintsPolicy: policy("taints policy"),
	}
	if c.WhenUnsatisfiable == corev1.DoNotSchedule && rapid.Bool().Draw(t, "domains") {
		c.MinDomains = new(int32(rapid.IntRange(1, 4).Draw(t, "least domains")))
	}
	if rapid.IntRange(0, 3).Draw(t, "keys") == 0 {
		c.MatchLabelKeys = []string{"app"}
	}
	return c
}

// drawPod is a pod with any constraints and terms.
func drawPod(t *rapid.T, name string) *corev1.Pod {
	return aPod(name, func(p *corev1.Pod) {
		p.Namespace = rapid.SampledFrom([]string{"default", "other"}).Draw(t, "namespace")
		if app := rapid.SampledFrom(append(apps, "")).Draw(t, "app"); app != "" {
			p.Labels = map[string]string{"app": app}
		}
		priority := int32(rapid.IntRange(0, 3).Draw(t, "priority"))
		p.Spec.Priority = &priority
		if rapid.IntRange(0, 3).Draw(t, "picks zones") == 0 {
			p.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: "east"}
		}
		if rapid.IntRange(0, 3).Draw(t, "tolerates") == 0 {
			p.Spec.Tolerations = []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}
		}
		requests(strconv.Itoa(rapid.IntRange(0, 900).Draw(t, "cpu"))+"m", "1Mi")(p)
		for range max(rapid.IntRange(-1, 2).Draw(t, "constraints"), 0) {
			p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, drawConstraint(t))
		}
		near, far := &corev1.PodAffinity{}, &corev1.PodAntiAffinity{}
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: near, PodAntiAffinity: far}
		for range max(rapid.IntRange(-2, 2).Draw(t, "near"), 0) {
			near.RequiredDuringSchedulingIgnoredDuringExecution = append(near.RequiredDuringSchedulingIgnoredDuringExecution, drawTerm(t))
		}
		for range max(rapid.IntRange(-2, 2).Draw(t, "far"), 0) {
			far.RequiredDuringSchedulingIgnoredDuringExecution = append(far.RequiredDuringSchedulingIgnoredDuringExecution, drawTerm(t))
		}
		if rapid.IntRange(0, 2).Draw(t, "likes") == 0 {
			near.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{{Weight: 7, PodAffinityTerm: drawTerm(t)}}
			far.PreferredDuringSchedulingIgnoredDuringExecution = []corev1.WeightedPodAffinityTerm{{Weight: 3, PodAffinityTerm: drawTerm(t)}}
		}
	}).Pod
}

func drawNode(t *rapid.T, name string) *corev1.Node {
	return aNode(name, func(n *corev1.Node) {
		if zone := rapid.SampledFrom([]string{"east", "west", ""}).Draw(t, "zone"); zone != "" {
			n.Labels[corev1.LabelTopologyZone] = zone
		}
		if rapid.Bool().Draw(t, "in a rack") {
			n.Labels["rack"] = "1"
		}
		if rapid.IntRange(0, 3).Draw(t, "tainted") == 0 {
			n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
		}
		n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("6")
	})
}

// Whatever comes and goes, in whatever order, twice or not, books that were kept decide as books do that begin
// with what there is.
func TestBooksChangeNoDecision(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c, kept := NewCluster(), NewBooks()
		pods := map[string]*Pod{}
		drawName := func(t *rapid.T) string { return "p" + strconv.Itoa(rapid.IntRange(0, 12).Draw(t, "pod")) }
		node := func(t *rapid.T) string { return rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(t, "node") }
		t.Repeat(map[string]func(*rapid.T){
			"node":      func(t *rapid.T) { c.SetNode(drawNode(t, node(t))) },
			"lose node": func(t *rapid.T) { c.RemoveNode(node(t)) },
			"namespace": func(t *rapid.T) {
				c.SetNamespace("other", labels.Set{"team": rapid.SampledFrom([]string{"red", "blue"}).Draw(t, "team")})
			},
			"place": func(t *rapid.T) {
				name := drawName(t)
				pods[name] = NewPod(drawPod(t, name))
				c.SetPod(pods[name], node(t))
			},
			"end": func(t *rapid.T) { c.RemovePod(types.UID(drawName(t))) },
			"going": func(t *rapid.T) {
				if p := pods[drawName(t)]; p != nil {
					ending := p.Pod.DeepCopy()
					going(ending)
					c.SetPod(NewPod(ending), node(t))
				}
			},
			"nominate": func(t *rapid.T) {
				p := NewPod(drawPod(t, drawName(t))).nominatedTo(node(t))
				c.RemovePod(p.UID)
				c.Nominate(p)
			},
			"clear": func(*rapid.T) { kept.clear() },
			"": func(t *rapid.T) {
				p, s := NewPod(drawPod(t, "asks")), c.Snapshot()
				got, want := Decide(p, s, kept, 0, first), Decide(p, s, nil, 0, first)
				if !reflect.DeepEqual(got, want) {
					t.Fatalf("kept books decide %s\n   empty ones %s", told(got), told(want))
				}
				if got.Node != "" {
					return
				}
				if a, b := Preempt(p, s, kept, got, nil, 0, noon), Preempt(p, s, nil, want, nil, 0, noon); !reflect.DeepEqual(a, b) {
					t.Fatalf("kept books preempt %s on %q (%s)\n   empty ones %s on %q (%s)", names(a.Victims), a.Node, a.Message, names(b.Victims), b.Node, b.Message)
				}
				checkChoosy(t, c)
			},
		})
	})
}

func checkChoosy(t *rapid.T, c *Cluster) {
	count := 0
	for _, n := range c.Snapshot().Nodes {
		with := 0
		for _, p := range n.Pods {
			if p.terms != nil {
				with++
			}
		}
		if with != len(n.choosy) {
			t.Fatalf("node %s knows %d pods with terms of %d", n.Name, len(n.choosy), with)
		}
		count += min(with, 1)
	}
	if count != c.choosy {
		t.Fatalf("the cluster knows %d nodes with such pods of %d", c.choosy, count)
	}
}

func told(d Decision) string {
	out := fmt.Sprintf("%q of %d", d.Node, d.Feasible)
	for _, r := range d.Refusals {
		out += fmt.Sprintf("; %s: %v", r.Node.Name, r.Reasons)
	}
	return out
}

// What tallies hold is what a count of everything gives, and terms that nobody has any more are gone.
func TestSumsFollow(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		everything := func(*Node) bool { return true }
		count := func(n *Node) int { return len(n.Pods) }
		kept, index := newTally("rack", everything, count), newTermIndex()
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			c := NewCluster()
			for _, name := range []string{"a", "b", "c", "d"} {
				if rapid.Bool().Draw(t, "there") {
					c.SetNode(drawNode(t, name))
					for i := range rapid.IntRange(0, 2).Draw(t, "pods") {
						c.SetPod(NewPod(drawPod(t, name+strconv.Itoa(i))), name)
					}
				}
			}
			s := c.Snapshot()
			kept.follow(s.Nodes)
			afresh := newTally("rack", everything, count)
			for _, n := range s.Nodes {
				afresh.tell(n, 1)
			}
			if !reflect.DeepEqual(kept.domains, afresh.domains) || !reflect.DeepEqual(kept.sizes, afresh.sizes) || kept.total != afresh.total {
				t.Fatalf("kept %v %v %d, afresh %v %v %d", kept.domains, kept.sizes, kept.total, afresh.domains, afresh.sizes, afresh.total)
			}
			index.follow(s.Nodes)
			index.tidy()
			fresh := newTermIndex()
			fresh.follow(s.Nodes)
			if got, want := describeIndex(index), describeIndex(fresh); !slices.Equal(got, want) {
				t.Fatalf("kept %v\nafresh %v", got, want)
			}
		}
	})
}

func describeIndex(x *termIndex) []string {
	var out []string
	for pair, list := range x.by {
		for _, e := range list {
			out = append(out, fmt.Sprintf("%s %q %d %v %v %v", pair, e.name, e.pods, e.forbids, e.weights, x.entries[e.name] == e))
		}
	}
	slices.Sort(out)
	return out
}
