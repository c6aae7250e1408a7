package main

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/defaultpreemption"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/feature"
	"k8s.io/kubernetes/pkg/scheduler/metrics"
	"pgregory.net/rapid"

	"barque.dev/internal/scheduler"
)

// scenery is a cluster at random, which no scheduler need have made.
type scenery struct {
	nodes      []corev1.Node
	pods       []*corev1.Pod
	namespaces []corev1.Namespace
}

func oneOf[T any](t *rapid.T, what string, of ...T) T { return rapid.SampledFrom(of).Draw(t, what) }

// seldom is true once in n times.
func seldom(t *rapid.T, n int, what string) bool { return rapid.IntRange(1, n).Draw(t, what) == 1 }

func drawScenery(t *rapid.T) *scenery {
	s := &scenery{}
	for _, name := range []string{"default", "other"} {
		ns := corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if rapid.Bool().Draw(t, "team") {
			ns.Labels = map[string]string{"team": "red"}
		}
		s.namespaces = append(s.namespaces, ns)
	}
	for i := range rapid.IntRange(1, 6).Draw(t, "nodes") {
		s.nodes = append(s.nodes, drawAnyNode(t, "n"+strconv.Itoa(i)))
	}
	for i := range rapid.IntRange(0, 12).Draw(t, "pods") {
		pod := drawAnyPod(t, "p"+strconv.Itoa(i))
		pod.Status.StartTime = new(metav1.Unix(int64(i), 0))
		pod.Spec.NodeName = s.nodes[rapid.IntRange(0, len(s.nodes)-1).Draw(t, "on")].Name
		if slices.ContainsFunc(s.pods, func(o *corev1.Pod) bool {
			return o.Spec.NodeName == pod.Spec.NodeName && o.Spec.Containers[0].Ports != nil
		}) {
			pod.Spec.Containers[0].Ports = nil // one port is not taken twice, whatever else is odd
		}
		if seldom(t, 5, "ending") {
			pod.DeletionTimestamp = new(metav1.Now())
		}
		s.pods = append(s.pods, pod)
	}
	return s
}

func drawAnyNode(t *rapid.T, name string) corev1.Node {
	n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{}}}
	if !seldom(t, 6, "nameless") {
		n.Labels[corev1.LabelHostname] = name
	}
	if zone := oneOf(t, "zone", "east", "west", "north", ""); zone != "" {
		n.Labels[corev1.LabelTopologyZone] = zone
	}
	if rapid.Bool().Draw(t, "rack") {
		n.Labels["rack"] = "1"
	}
	if seldom(t, 5, "tainted") {
		n.Spec.Taints = []corev1.Taint{{Key: "k", Effect: oneOf(t, "effect", corev1.TaintEffectNoSchedule, corev1.TaintEffectPreferNoSchedule)}}
	}
	n.Spec.Unschedulable = seldom(t, 10, "cordoned")
	n.Status.Allocatable = corev1.ResourceList{
		"cpu": resource.MustParse(oneOf(t, "cpus", "2", "4")), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse(oneOf(t, "room", "2", "10")),
	}
	return n
}

func drawAnyPod(t *rapid.T, name string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: oneOf(t, "namespace", "default", "other"), Name: name, UID: types.UID(name), Labels: map[string]string{}}}
	if app := oneOf(t, "app", "x", "y", ""); app != "" {
		p.Labels["app"] = app
	}
	p.Spec.Priority = new(int32(rapid.IntRange(0, 3).Draw(t, "priority")))
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{"cpu": resource.MustParse(oneOf(t, "cpu", "0", "500m", "1", "3"))},
	}}}
	if seldom(t, 6, "port") {
		p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80, Protocol: corev1.ProtocolTCP}}
	}
	if seldom(t, 4, "picks zones") {
		p.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: "east"}
	}
	if seldom(t, 4, "tolerates") {
		p.Spec.Tolerations = []corev1.Toleration{{Key: "k", Operator: corev1.TolerationOpExists}}
	}
	for range max(rapid.IntRange(-1, 2).Draw(t, "constraints"), 0) {
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, drawSpread(t))
	}
	near, far := &corev1.PodAffinity{}, &corev1.PodAntiAffinity{}
	p.Spec.Affinity = &corev1.Affinity{PodAffinity: near, PodAntiAffinity: far}
	for range max(rapid.IntRange(-2, 2).Draw(t, "near"), 0) {
		near.RequiredDuringSchedulingIgnoredDuringExecution = append(near.RequiredDuringSchedulingIgnoredDuringExecution, drawAnyTerm(t))
	}
	for range max(rapid.IntRange(-2, 2).Draw(t, "far"), 0) {
		far.RequiredDuringSchedulingIgnoredDuringExecution = append(far.RequiredDuringSchedulingIgnoredDuringExecution, drawAnyTerm(t))
	}
	return p
}

func drawLabels(t *rapid.T) *metav1.LabelSelector {
	return oneOf(t, "selector", nil, &metav1.LabelSelector{},
		&metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}, &metav1.LabelSelector{MatchLabels: map[string]string{"app": "y"}},
		&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpExists}}},
		&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"x"}}}})
}

func drawDomain(t *rapid.T) string {
	return oneOf(t, "key", corev1.LabelHostname, corev1.LabelTopologyZone, "rack")
}

func drawAnyTerm(t *rapid.T) corev1.PodAffinityTerm {
	term := corev1.PodAffinityTerm{TopologyKey: drawDomain(t), LabelSelector: drawLabels(t)}
	term.Namespaces = oneOf(t, "namespaces", nil, nil, []string{"other", "default"}, []string{"other"})
	term.NamespaceSelector = oneOf(t, "namespace selector", nil, nil, &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"team": "red"}})
	return term
}

func drawSpread(t *rapid.T) corev1.TopologySpreadConstraint {
	c := corev1.TopologySpreadConstraint{
		MaxSkew: int32(rapid.IntRange(1, 3).Draw(t, "skew")), TopologyKey: drawDomain(t), WhenUnsatisfiable: corev1.DoNotSchedule, LabelSelector: drawLabels(t),
		NodeAffinityPolicy: oneOf(t, "by affinity", nil, new(corev1.NodeInclusionPolicyHonor), new(corev1.NodeInclusionPolicyIgnore)),
		NodeTaintsPolicy:   oneOf(t, "by taints", nil, new(corev1.NodeInclusionPolicyHonor), new(corev1.NodeInclusionPolicyIgnore)),
		MinDomains:         oneOf(t, "domains", nil, new(int32(1)), new(int32(2)), new(int32(4))),
	}
	if seldom(t, 3, "match keys") {
		c.MatchLabelKeys = []string{"app"}
	}
	return c
}

// model is the cluster as Barque's scheduler sees it.
func (s *scenery) model() *scheduler.Cluster {
	c := scheduler.NewCluster()
	for i := range s.namespaces {
		c.SetNamespace(s.namespaces[i].Name, labels.Set(s.namespaces[i].Labels))
	}
	for i := range s.nodes {
		c.SetNode(&s.nodes[i])
	}
	for _, p := range s.pods {
		c.SetPod(scheduler.NewPod(p), p.Spec.NodeName)
	}
	return c
}

// checkOften checks what many things together decide: a hundred cases don't show all of it.
func checkOften(t *testing.T, check func(*rapid.T)) {
	for range 20 {
		rapid.Check(t, check)
	}
}

// reasons are those of a status, which is nil if all is well.
func reasons(status *fwk.Status) []string {
	if status == nil {
		return nil
	}
	return status.Reasons()
}

// Whatever the cluster and the pod are: each node takes the pod, or refuses it, for the reasons and with the hope
// for preemption that upstream's filters have.
func TestVerdictsAreStocks(t *testing.T) {
	metrics.Register()
	said := map[string]int{}
	checkOften(t, func(t *rapid.T) {
		s := drawScenery(t)
		pod := drawAnyPod(t, "asks")
		b, err := newBench(t.Context(), s.nodes, s.pods, s.namespaces)
		if err != nil {
			t.Fatal(err)
		}
		d := scheduler.Decide(scheduler.NewPod(pod), s.model().Snapshot(), nil, 0, func(int) int { return 0 })
		state := framework.NewCycleState()
		if _, status, _ := b.filters.RunPreFilterPlugins(t.Context(), state, pod); !status.IsSuccess() {
			t.Fatalf("upstream refuses before it looks at nodes: %v", status)
		}
		for i := range s.nodes {
			node, err := b.snapshot.NodeInfos().Get(s.nodes[i].Name)
			if err != nil {
				t.Fatal(err)
			}
			status := b.filters.RunFilterPlugins(t.Context(), state, pod, node)
			k := slices.IndexFunc(d.Refusals, func(r scheduler.Refusal) bool { return r.Node.Name == s.nodes[i].Name })
			ours := scheduler.Refusal{}
			if k >= 0 {
				ours = d.Refusals[k]
			}
			theirs := reasons(status)
			for _, reason := range theirs {
				said[reason]++
			}
			if !slices.Equal(ours.Reasons, theirs) || !status.IsSuccess() && ours.Final != (status.Code() == fwk.UnschedulableAndUnresolvable) {
				t.Fatalf("node %s: %q (final: %v), upstream %q (%v)", s.nodes[i].Name, ours.Reasons, ours.Final, theirs, status.Code())
			}
		}
	})
	for _, reason := range []string{
		"node(s) didn't match pod topology spread constraints", "node(s) didn't match pod topology spread constraints (missing required label)",
		"node(s) didn't match pod affinity rules", "node(s) didn't match pod anti-affinity rules", "node(s) didn't satisfy existing pods anti-affinity rules",
		"Insufficient cpu", "Too many pods",
	} {
		if said[reason] == 0 {
			t.Errorf("no cluster had a node that refused because of %q: %v", reason, said)
		}
	}
}

// Whatever the cluster and the pod are: on each node that has room once others go, upstream would have the same ones go,
// and says the same where there is no way.
func TestVictimsAreStocks(t *testing.T) {
	metrics.Register()
	found := 0
	checkOften(t, func(t *rapid.T) {
		s := drawScenery(t)
		for _, p := range s.pods {
			p.DeletionTimestamp = nil // of ending ones upstream takes off its counts what it did not add
		}
		pod := drawAnyPod(t, "asks")
		pod.Spec.Priority = new(int32(3))
		for i := range pod.Spec.TopologySpreadConstraints {
			if c := &pod.Spec.TopologySpreadConstraints[i]; c.LabelSelector != nil && len(c.LabelSelector.MatchLabels)+len(c.LabelSelector.MatchExpressions) == 0 {
				c.LabelSelector = nil // likewise of those that an empty selector does not select
			}
		}
		pdb := &policyv1.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "budget"}}
		pdb.Spec.Selector = &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}
		pdb.Status.DisruptionsAllowed = int32(rapid.IntRange(0, 2).Draw(t, "allowed"))
		budget, _ := scheduler.NewBudget(pdb)

		b, err := newBench(t.Context(), s.nodes, s.pods, s.namespaces)
		if err != nil {
			t.Fatal(err)
		}
		upstream, err := defaultpreemption.New(t.Context(), &config.DefaultPreemptionArgs{MinCandidateNodesPercentage: 10, MinCandidateNodesAbsolute: 100}, b.filters, feature.Features{})
		if err != nil {
			t.Fatal(err)
		}
		state := framework.NewCycleState()
		if _, status, _ := b.filters.RunPreFilterPlugins(t.Context(), state, pod); !status.IsSuccess() {
			t.Fatalf("upstream refuses before it looks at nodes: %v", status)
		}
		p, snapshot := scheduler.NewPod(pod), s.model().Snapshot()
		d := scheduler.Decide(p, snapshot, nil, 0, func(int) int { return 0 })
		for _, r := range d.Refusals {
			if r.Final {
				continue
			}
			alone := d
			alone.Refusals = []scheduler.Refusal{r}
			ours := scheduler.Preempt(p, snapshot, nil, alone, []scheduler.Budget{budget}, 0, time.Now())
			node, err := b.snapshot.NodeInfos().Get(r.Node.Name)
			if err != nil {
				t.Fatal(err)
			}
			possible, err := upstream.Evaluator.GetVictimsOnNode(t.Context(), node)
			if err != nil {
				t.Fatal(err)
			}
			victims, violations, status := upstream.SelectVictimsOnNode(t.Context(), state.Clone(), pod, node.Snapshot(), possible, []*policyv1.PodDisruptionBudget{pdb})
			found += len(victims)
			compareVictims(t, ours, victims, violations, reasons(status))
		}
	})
	if found == 0 {
		t.Error("no cluster had anybody to go")
	}
}

func compareVictims(t *rapid.T, ours scheduler.Preemption, victims []*corev1.Pod, violations int, why []string) {
	var theirs, chosen []string
	for _, v := range victims {
		theirs = append(theirs, v.Name)
	}
	for _, v := range ours.Victims {
		chosen = append(chosen, v.Name)
	}
	if !slices.Equal(chosen, theirs) || ours.Violations != violations {
		t.Fatalf("node %s: %v with %d violations (%s), upstream %v with %d (%v)", ours.Node, chosen, ours.Violations, ours.Message, theirs, violations, why)
	}
	for _, reason := range why {
		if !strings.Contains(ours.Message, "1 "+reason) {
			t.Fatalf("%q, upstream %q", ours.Message, reason)
		}
	}
}
