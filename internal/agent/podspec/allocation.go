package podspec

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	resourcehelper "k8s.io/component-helpers/resource"
)

// Allocation is what a node has promised to a pod. It differs from the pod's definition while a
// resize (KEP-1287) waits for room. Names that it does not hold have what the definition says.
type Allocation struct {
	// Pod are the resources of the pod as a whole, if its definition has any.
	Pod *corev1.ResourceRequirements `json:"pod,omitempty"`
	// Containers by name, init containers too.
	Containers map[string]corev1.ResourceRequirements `json:"containers"`
}

// Asked returns what the pod's definition asks for.
func Asked(pod *corev1.Pod) Allocation {
	a := Allocation{Pod: pod.Spec.Resources.DeepCopy(), Containers: map[string]corev1.ResourceRequirements{}}
	for _, list := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range list {
			a.Containers[list[i].Name] = *list[i].Resources.DeepCopy()
		}
	}
	return a
}

// Equal tells whether two allocations promise the same.
func (a Allocation) Equal(b Allocation) bool { return equality.Semantic.DeepEqual(a, b) }

// With returns the allocation with other resources for some containers.
func (a Allocation) With(containers map[string]corev1.ResourceRequirements) Allocation {
	out := Allocation{Pod: a.Pod, Containers: maps.Clone(a.Containers)}
	for name, r := range containers {
		if _, ok := out.Containers[name]; ok {
			out.Containers[name] = r
		}
	}
	return out
}

// Of returns the pod with the allocation in place of what it asks for: the pod itself if they are
// the same. The zero allocation is none.
func (a Allocation) Of(pod *corev1.Pod) *corev1.Pod {
	if a.Containers == nil || a.Equal(Asked(pod)) {
		return pod
	}
	out := *pod
	out.Spec.Resources = a.Pod
	put := func(list []corev1.Container) []corev1.Container {
		list = slices.Clone(list)
		for i := range list {
			if r, ok := a.Containers[list[i].Name]; ok {
				list[i].Resources = r
			}
		}
		return list
	}
	out.Spec.InitContainers, out.Spec.Containers = put(pod.Spec.InitContainers), put(pod.Spec.Containers)
	return &out
}

// Limits is what the control group of a pod is limited to. 0 is no limit.
type Limits struct {
	// Shares is the CPU weight, Quota the CPU time in microseconds of each QuotaPeriod, Memory
	// in bytes.
	Shares, Quota, Memory int64
}

// LimitsOf returns the limits of the pod's group. A sum of containers' limits bounds the pod only if
// every container has one.
func LimitsOf(pod *corev1.Pod) Limits {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	l := Limits{Shares: Shares(requests.Cpu().MilliValue())}
	if everyLimit(pod, corev1.ResourceCPU) {
		l.Quota = Quota(limits.Cpu().MilliValue())
	}
	if everyLimit(pod, corev1.ResourceMemory) {
		l.Memory = limits.Memory().Value()
	}
	return l
}

func everyLimit(pod *corev1.Pod, name corev1.ResourceName) bool {
	if pod.Spec.Resources != nil {
		if q, ok := pod.Spec.Resources.Limits[name]; ok && !q.IsZero() {
			return true
		}
	}
	for i := range pod.Spec.Containers {
		if q := pod.Spec.Containers[i].Resources.Limits[name]; q.IsZero() {
			return false
		}
	}
	return true
}

// Max returns limits that leave room for both.
func (l Limits) Max(o Limits) Limits {
	wider := func(a, b int64) int64 {
		if a == 0 || b == 0 {
			return 0
		}
		return max(a, b)
	}
	return Limits{Shares: max(l.Shares, o.Shares), Quota: wider(l.Quota, o.Quota), Memory: wider(l.Memory, o.Memory)}
}
