package main

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func judgedNode(name, zone string) corev1.Node {
	room := corev1.ResourceList{"cpu": resource.MustParse("1"), "memory": resource.MustParse("4Gi"), "pods": resource.MustParse("10")}
	return corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{corev1.LabelTopologyZone: zone, corev1.LabelHostname: name}},
		Status:     corev1.NodeStatus{Capacity: room, Allocatable: room},
	}
}

func judgedPod(name, node, cpu string, edit ...func(*corev1.Pod)) corev1.Pod {
	pod := corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, UID: types.UID(name), Labels: map[string]string{"color": "blue"}},
		Spec: corev1.PodSpec{NodeName: node, Containers: []corev1.Container{{
			Name: "main", Image: "i", Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse(cpu)}},
		}}},
	}
	for _, e := range edit {
		e(&pod)
	}
	return pod
}

func inZone(zone string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: zone} }
}

func alone(p *corev1.Pod) {
	p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"color": "blue"}},
	}}}}
}

func spread(p *corev1.Pod) {
	p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
		MaxSkew: 1, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule,
		LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"color": "blue"}},
	}}
}

// TestJudge has upstream's filters look at placements that are right and at such that are not.
func TestJudge(t *testing.T) {
	nodes := []corev1.Node{judgedNode("a", "east"), judgedNode("b", "west")}
	tainted := judgedNode("c", "west")
	tainted.Spec.Taints = []corev1.Taint{{Key: "k", Effect: corev1.TaintEffectNoSchedule}}
	nodes = append(nodes, tainted)
	for name, c := range map[string]struct {
		pods []corev1.Pod
		why  string // of the refusals; none if empty
		n    int
	}{
		"nobody":           {},
		"as it should be":  {pods: []corev1.Pod{judgedPod("1", "a", "600m", spread), judgedPod("2", "b", "600m", spread), judgedPod("3", "a", "400m", inZone("east"))}},
		"too much":         {pods: []corev1.Pod{judgedPod("1", "a", "600m"), judgedPod("2", "a", "600m")}, why: "Insufficient cpu", n: 2},
		"the wrong zone":   {pods: []corev1.Pod{judgedPod("1", "a", "100m", inZone("west"))}, why: "node affinity/selector", n: 1},
		"a taint":          {pods: []corev1.Pod{judgedPod("1", "c", "100m")}, why: "untolerated taint", n: 1},
		"no such node":     {pods: []corev1.Pod{judgedPod("1", "x", "100m")}, why: "does not exist", n: 1},
		"anti-affinity":    {pods: []corev1.Pod{judgedPod("1", "a", "100m", alone), judgedPod("2", "a", "100m")}, why: "anti-affinity", n: 2},
		"uneven":           {pods: []corev1.Pod{judgedPod("1", "a", "100m", spread), judgedPod("2", "a", "100m", spread)}, why: "topology spread", n: 2},
		"waits for a node": {pods: []corev1.Pod{judgedPod("1", "", "100m")}},
	} {
		t.Run(name, func(t *testing.T) {
			checked, refused, err := judge(t.Context(), nodes, c.pods)
			if err != nil {
				t.Fatal(err)
			}
			placed := 0
			for _, p := range c.pods {
				if p.Spec.NodeName != "" {
					placed++
				}
			}
			if checked != placed || len(refused) != c.n {
				t.Fatalf("%d of %d checked; refused: %v", checked, placed, refused)
			}
			for _, why := range refused {
				if !strings.Contains(why, c.why) {
					t.Errorf("refused because of %q, want %q", why, c.why)
				}
			}
		})
	}
}

func TestTuningIsDocumented(t *testing.T) {
	for _, r := range rows() {
		text := tuning(r)
		wanted := append(append([]string{}, tunedEtcd...), tunedServer...)
		if r.untuned != "" {
			wanted = []string{r.untuned}
		}
		if r.elects {
			wanted = append(append(wanted, tunedElects...), tunedRaft...)
		}
		if r.node {
			for name, value := range tunedKubelet {
				wanted = append(wanted, fmt.Sprintf("%s: %v", name, value))
			}
		}
		for _, w := range wanted {
			if !strings.Contains(text, w) {
				t.Errorf("row %s: %q does not say %q", r.name, text, w)
			}
		}
	}
}

// TestWorkloads reads every benchmark that the rows name from upstream's own files.
func TestWorkloads(t *testing.T) {
	for _, w := range scheduled() {
		b, err := readBenchmark(w.folder, w.name)
		if err != nil {
			t.Error(err)
			continue
		}
		counts, err := b.counts(w.workload)
		if err != nil {
			t.Error(err)
			continue
		}
		for _, s := range b.Steps {
			if s.CountParam != "" && counts[s.CountParam] == 0 {
				t.Errorf("%s: step %s counts %s, which the workload does not set", w.name, s.Opcode, s.CountParam)
			}
			for _, path := range append([]string{s.PodTemplatePath, s.NodeTemplatePath}, s.TemplatePaths...) {
				if path == "" {
					continue
				}
				if _, err := b.template(path); err != nil {
					t.Errorf("%s: %v", w.name, err)
				}
			}
		}
	}
}
