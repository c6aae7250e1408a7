package podspec_test

import (
	"fmt"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"

	"barque.dev/internal/agent/podspec"
)

// asking returns a pod of one container that was promised some thousandths of a CPU and wants others.
func asking(name string, promised, wants int64, priority int32) podspec.Resizable {
	amount := func(milli int64) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceCPU: *resource.NewMilliQuantity(milli, resource.DecimalSI)}}
	}
	p := &corev1.Pod{}
	p.UID, p.Spec.Priority = types.UID(name), &priority
	p.Spec.Containers = []corev1.Container{{Name: "c", Resources: amount(promised)}}
	allocated := podspec.Asked(p)
	p.Spec.Containers[0].Resources = amount(wants)
	return podspec.Resizable{Pod: p, Allocated: allocated}
}

func TestResize(t *testing.T) {
	node := corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")}
	for name, tt := range map[string]struct {
		pods    []podspec.Resizable
		granted []int
		refused map[int]podspec.Refusal
	}{
		"nobody asks": {pods: []podspec.Resizable{asking("a", 100, 100, 0)}},
		"room":        {pods: []podspec.Resizable{asking("a", 100, 600, 0), asking("b", 400, 400, 0)}, granted: []int{0}},
		"no room": {
			pods:    []podspec.Resizable{asking("a", 100, 601, 0), asking("b", 400, 400, 0)},
			refused: map[int]podspec.Refusal{0: {Reason: "Deferred", Message: "Node didn't have enough resource: cpu, requested: 601, used: 400, capacity: 1000"}},
		},
		"never room": {
			pods:    []podspec.Resizable{asking("a", 100, 1001, 0)},
			refused: map[int]podspec.Refusal{0: {Reason: "Infeasible", Message: "Node didn't have enough capacity: cpu, requested: 1001, capacity: 1000"}},
		},
		"one makes room for the other":         {pods: []podspec.Resizable{asking("a", 100, 700, 9), asking("b", 800, 300, 0)}, granted: []int{1, 0}},
		"less fits on a node that is too full": {pods: []podspec.Resizable{asking("a", 900, 800, 0), asking("b", 900, 900, 0)}, granted: []int{0}},
		"the more important one": {
			pods: []podspec.Resizable{asking("a", 100, 700, 1), asking("b", 100, 800, 2)}, granted: []int{1},
			refused: map[int]podspec.Refusal{0: {Reason: "Deferred", Message: "Node didn't have enough resource: cpu, requested: 700, used: 800, capacity: 1000"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			granted, refused := podspec.Resize(tt.pods, node)
			if !slices.Equal(granted, tt.granted) || fmt.Sprint(refused) != fmt.Sprint(tt.refused) {
				t.Errorf("granted %v, want %v; refused %v, want %v", granted, tt.granted, refused, tt.refused)
			}
		})
	}
}

// TestResizeProperty: a node that is not overbooked does not get so, every pod that asks is answered, and
// what was refused does not fit.
func TestResizeProperty(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var pods []podspec.Resizable
		used := int64(0)
		for i := range rapid.IntRange(1, 6).Draw(t, "pods") {
			promised := rapid.Int64Range(0, 1000-used).Draw(t, "promised")
			used += promised
			wants := rapid.OneOf(rapid.Just(promised), rapid.Int64Range(0, 1200)).Draw(t, "wants")
			pods = append(pods, asking(fmt.Sprint(i), promised, wants, rapid.Int32Range(0, 2).Draw(t, "priority")))
		}
		granted, refused := podspec.Resize(pods, corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("1")})
		cpu := func(p *corev1.Pod) int64 { return p.Spec.Containers[0].Resources.Requests.Cpu().MilliValue() }
		sum, asked := int64(0), 0
		for i, p := range pods {
			now := p.Allocated.Of(p.Pod)
			if now != p.Pod {
				asked++
			}
			if slices.Contains(granted, i) {
				now = p.Pod
			}
			sum += cpu(now)
		}
		if sum > 1000 || asked != len(granted)+len(refused) {
			t.Fatalf("%d of 1000 are taken; %d asked, granted %v, refused %v", sum, asked, granted, refused)
		}
		for i := range refused {
			if sum-cpu(pods[i].Allocated.Of(pods[i].Pod))+cpu(pods[i].Pod) <= 1000 {
				t.Fatalf("pod %d was refused and would fit", i)
			}
		}
	})
}
