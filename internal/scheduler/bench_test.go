package scheduler

import (
	"fmt"
	"strconv"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// largeCluster has 5,000 nodes in ten zones.
func largeCluster() *Cluster {
	c := NewCluster()
	for i := range 5000 {
		c.SetNode(aNode(fmt.Sprintf("node-%04d", i), labelled(corev1.LabelTopologyZone, strconv.Itoa(i%10)), func(n *corev1.Node) {
			n.Status.Allocatable[corev1.ResourcePods] = resource.MustParse("110")
			n.Status.Allocatable[corev1.ResourceCPU] = resource.MustParse("64")
			n.Status.Allocatable[corev1.ResourceMemory] = resource.MustParse("256Gi")
		}))
	}
	return c
}

// decideOn places pod after pod; each 5,000 are on a cluster that has none at first.
func decideOn(b *testing.B, edit ...func(*corev1.Pod)) {
	edit = append(edit, requests("100m", "200Mi"), withLabel("app", "x"))
	var c *Cluster
	var books *Books
	start := 0
	for i := 0; b.Loop(); i++ {
		if i%5000 == 0 {
			b.StopTimer()
			c, books, start = largeCluster(), NewBooks(), 0
			b.StartTimer()
		}
		p := aPod("p"+strconv.Itoa(i), edit...)
		d := Decide(p, c.Snapshot(), books, start, first)
		if d.Node == "" {
			b.Fatal(d.Message())
		}
		start = d.Next
		c.SetPod(p, d.Node)
	}
}

func BenchmarkDecide5000Nodes(b *testing.B) { decideOn(b) }

func BenchmarkDecide5000NodesTopology(b *testing.B) {
	decideOn(b, func(p *corev1.Pod) {
		p.Spec.TopologySpreadConstraints = []corev1.TopologySpreadConstraint{{
			MaxSkew: 5, TopologyKey: corev1.LabelTopologyZone, WhenUnsatisfiable: corev1.DoNotSchedule,
			LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}},
		}}
	})
}

func termOn(key string) []corev1.PodAffinityTerm {
	return []corev1.PodAffinityTerm{{TopologyKey: key, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "x"}}}}
}

func BenchmarkDecide5000NodesAffinity(b *testing.B) {
	decideOn(b, func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAffinity: &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: termOn(corev1.LabelTopologyZone)}}
	})
}

func BenchmarkDecide5000NodesAntiAffinity(b *testing.B) {
	decideOn(b, func(p *corev1.Pod) {
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: termOn(corev1.LabelHostname)}}
	})
}

// BenchmarkPreempt5000Nodes finds room on nodes that ten pods of lower priority fill.
func BenchmarkPreempt5000Nodes(b *testing.B) {
	c := largeCluster()
	for i := range 50000 {
		c.SetPod(aPod("low"+strconv.Itoa(i), requests("6", "1Gi")), fmt.Sprintf("node-%04d", i%5000))
	}
	books, now := NewBooks(), time.Now()
	p := aPod("high", withPriority(10), requests("16", "1Gi"))
	for b.Loop() {
		s := c.Snapshot()
		d := Decide(p, s, books, 0, first)
		if room := Preempt(p, s, books, d, nil, 0, now); len(room.Victims) == 0 {
			b.Fatal(room.Message)
		}
	}
}
