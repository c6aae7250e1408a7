package podspec

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Resizable is a pod on the node, with what it was promised.
type Resizable struct {
	Pod       *corev1.Pod
	Allocated Allocation
}

// wants tells whether the pod asks for something else than it was promised.
func (r Resizable) wants() bool {
	return r.Allocated.Containers != nil && r.Allocated.Of(r.Pod) != r.Pod
}

// Resize decides which of the pods get what they ask for now, beside each other and the rest, on a
// node that has so much to allocate. It returns the pods by their index: granted, and refused with the
// reason for it. Pods that ask for no more go first, then the more important ones, guaranteed before
// burstable ones, and those that have waited longer.
func Resize(pods []Resizable, allocatable corev1.ResourceList) (granted []int, refused map[int]Refusal) {
	refused = map[int]Refusal{}
	var order []int
	now := make([]*corev1.Pod, len(pods))
	for i, p := range pods {
		now[i] = p.Allocated.Of(p.Pod)
		if p.wants() {
			order = append(order, i)
		}
	}
	slices.SortStableFunc(order, func(a, b int) int { return urgency(pods[a], pods[b]) })
	for _, i := range order {
		if r := admitResize(pods[i].Pod, now, i, allocatable); r != nil {
			refused[i] = *r
			continue
		}
		granted = append(granted, i)
		now[i] = pods[i].Pod
	}
	return granted, refused
}

// resized are the resources that a running pod can have more of.
func resized() []corev1.ResourceName {
	return []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory}
}

func admitResize(wanted *corev1.Pod, now []*corev1.Pod, self int, allocatable corev1.ResourceList) *Refusal {
	before, after := total(now[self]), total(wanted)
	for _, name := range resized() {
		want, have := after[name], allocatable[name]
		if want.Cmp(before[name]) <= 0 {
			continue // what takes no more always fits
		}
		if want.Cmp(have) > 0 {
			return &Refusal{corev1.PodReasonInfeasible, fmt.Sprintf("Node didn't have enough capacity: %s, requested: %d, capacity: %d",
				name, unit(name, want), unit(name, have))}
		}
		used := resource.Quantity{}
		for i, o := range now {
			if i != self {
				used.Add(total(o)[name])
			}
		}
		sum := used.DeepCopy()
		sum.Add(want)
		if sum.Cmp(have) > 0 {
			return &Refusal{corev1.PodReasonDeferred, fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
				name, unit(name, want), unit(name, used), unit(name, have))}
		}
	}
	return nil
}

func total(pod *corev1.Pod) corev1.ResourceList {
	return resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
}

// urgency orders pods whose resize is to be decided on.
func urgency(a, b Resizable) int {
	rank := func(yes bool) int {
		if yes {
			return 0
		}
		return 1
	}
	priority := func(p *corev1.Pod) int32 {
		if p.Spec.Priority == nil {
			return 0
		}
		return *p.Spec.Priority
	}
	return cmp.Or(
		cmp.Compare(rank(!a.grows()), rank(!b.grows())),
		cmp.Compare(priority(b.Pod), priority(a.Pod)),
		cmp.Compare(rank(QOS(a.Pod) == corev1.PodQOSGuaranteed), rank(QOS(b.Pod) == corev1.PodQOSGuaranteed)),
		a.since().Compare(b.since()),
	)
}

func (r Resizable) grows() bool {
	before, after := total(r.Allocated.Of(r.Pod)), total(r.Pod)
	return slices.ContainsFunc(resized(), func(name corev1.ResourceName) bool {
		want := after[name]
		return want.Cmp(before[name]) > 0
	})
}

// since is when the pod began to wait; those that do not wait yet come last.
func (r Resizable) since() time.Time {
	for _, c := range r.Pod.Status.Conditions {
		if c.Type == corev1.PodResizePending {
			return c.LastTransitionTime.Time
		}
	}
	return time.Unix(1<<40, 0)
}

// ResizeMessage is what an event says about the resize that the pod's definition asks for: what, the
// resources of all containers, and why it failed or waits, if it does.
func ResizeMessage(what string, pod *corev1.Pod, generation int64, why string) string {
	type container struct {
		Name      string                      `json:"name"`
		Resources corev1.ResourceRequirements `json:"resources"`
	}
	summary := struct {
		InitContainers []container `json:"initContainers,omitempty"`
		Containers     []container `json:"containers,omitempty"`
		Generation     int64       `json:"generation"`
		Error          string      `json:"error,omitempty"`
	}{Generation: generation, Error: why}
	for i := range pod.Spec.InitContainers {
		summary.InitContainers = append(summary.InitContainers, container{pod.Spec.InitContainers[i].Name, pod.Spec.InitContainers[i].Resources})
	}
	for i := range pod.Spec.Containers {
		summary.Containers = append(summary.Containers, container{pod.Spec.Containers[i].Name, pod.Spec.Containers[i].Resources})
	}
	raw, err := json.Marshal(summary)
	if err != nil {
		return "Pod resize " + what
	}
	return "Pod resize " + what + ": " + string(raw)
}
