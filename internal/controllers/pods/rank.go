package pods

import (
	"cmp"
	"math"
	"slices"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Victims returns the n of active pods that are missed least, in the order in which upstream
// deletes: pods without a node, pending before unknown before running, not ready before ready,
// lower controller.kubernetes.io/pod-deletion-cost, more siblings on the node, ready for a
// shorter time, more restarts, younger. Times count by the power of two of their age, and UIDs
// break such ties, which makes the choice among equals random. related are the siblings that
// count: all pods of the ReplicaSets that have the same owner.
func Victims(active, related []*corev1.Pod, n int, now time.Time) []*corev1.Pod {
	if n >= len(active) {
		return active
	}
	onNode := map[string]int{}
	for _, p := range related {
		if Active(p) {
			onNode[p.Spec.NodeName]++
		}
	}
	sorted := slices.Clone(active)
	slices.SortStableFunc(sorted, func(a, b *corev1.Pod) int { return compareForDeletion(a, b, onNode, now) })
	return sorted[:n]
}

func compareForDeletion(a, b *corev1.Pod, onNode map[string]int, now time.Time) int {
	ready := Ready(a)
	if c := cmp.Or(
		falseFirst(a.Spec.NodeName != "", b.Spec.NodeName != ""),
		cmp.Compare(phaseRank(a), phaseRank(b)),
		falseFirst(ready, Ready(b)),
		cmp.Compare(deletionCost(a), deletionCost(b)),
		cmp.Compare(onNode[b.Spec.NodeName], onNode[a.Spec.NodeName]),
	); c != 0 {
		return c
	}
	if ready {
		if c := compareAges(a, b, readySince(a), readySince(b), now); c != 0 {
			return c
		}
	}
	regularA, sidecarA := restarts(a)
	regularB, sidecarB := restarts(b)
	return cmp.Or(
		cmp.Compare(regularB, regularA),
		cmp.Compare(sidecarB, sidecarA),
		compareAges(a, b, a.CreationTimestamp.Time, b.CreationTimestamp.Time, now),
	)
}

func falseFirst(a, b bool) int {
	switch {
	case a == b:
		return 0
	case !a:
		return -1
	}
	return 1
}

func phaseRank(p *corev1.Pod) int {
	switch p.Status.Phase {
	case corev1.PodUnknown:
		return 1
	case corev1.PodRunning:
		return 2
	}
	return 0
}

// deletionCost reads the annotation as KEP-2255 has it: a plain int32, else 0.
func deletionCost(p *corev1.Pod) int32 {
	v := p.Annotations[corev1.PodDeletionCost]
	if v == "" || v[0] == '+' || len(v) > 1 && v[0] == '0' {
		return 0
	}
	n, err := strconv.ParseInt(v, 10, 32)
	if err != nil {
		return 0
	}
	return int32(n)
}

func readySince(p *corev1.Pod) time.Time {
	if c := Condition(p, corev1.PodReady); c != nil {
		return c.LastTransitionTime.Time
	}
	return time.Time{}
}

// compareAges puts the younger first, and a time that is not known before all.
func compareAges(a, b *corev1.Pod, ta, tb, now time.Time) int {
	switch {
	case ta.Equal(tb):
		return 0
	case ta.IsZero() || tb.IsZero():
		return falseFirst(!ta.IsZero(), !tb.IsZero())
	}
	return cmp.Or(cmp.Compare(ageRank(ta, now), ageRank(tb, now)), cmp.Compare(a.UID, b.UID))
}

func ageRank(t, now time.Time) int {
	age := now.Sub(t)
	if age <= 0 {
		return -1
	}
	return int(math.Log2(float64(age)))
}

// restarts returns the most restarts of any container, and of any sidecar.
func restarts(p *corev1.Pod) (regular, sidecar int32) {
	for _, c := range p.Status.ContainerStatuses {
		regular = max(regular, c.RestartCount)
	}
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy == nil || *c.RestartPolicy != corev1.ContainerRestartPolicyAlways {
			continue
		}
		for _, s := range p.Status.InitContainerStatuses {
			if s.Name == c.Name {
				sidecar = max(sidecar, s.RestartCount)
			}
		}
	}
	return regular, sidecar
}

// CompareForDeletion orders active pods as upstream's job controller deletes them: as
// [Victims], but regardless of siblings and costs, and with times as they are.
func CompareForDeletion(a, b *corev1.Pod) int {
	ready := Ready(a)
	if c := cmp.Or(
		falseFirst(a.Spec.NodeName != "", b.Spec.NodeName != ""),
		cmp.Compare(phaseRank(a), phaseRank(b)),
		falseFirst(ready, Ready(b)),
	); c != 0 {
		return c
	}
	if ready {
		if c := youngerFirst(readySince(a), readySince(b)); c != 0 {
			return c
		}
	}
	regularA, sidecarA := restarts(a)
	regularB, sidecarB := restarts(b)
	return cmp.Or(
		cmp.Compare(regularB, regularA),
		cmp.Compare(sidecarB, sidecarA),
		youngerFirst(a.CreationTimestamp.Time, b.CreationTimestamp.Time),
	)
}

func youngerFirst(a, b time.Time) int {
	if a.IsZero() || b.IsZero() {
		return falseFirst(!a.IsZero(), !b.IsZero())
	}
	return b.Compare(a)
}
