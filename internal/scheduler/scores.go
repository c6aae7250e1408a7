package scheduler

import (
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxScore is the best that a score gives, after normalisation.
const maxScore = 100

// A score ranks the nodes that a pod fits on. raw is any number; normalize, if any, turns the
// raw numbers of all feasible nodes into 0..maxScore in place.
type score struct {
	name      string
	weight    float64
	raw       func(p *Pod, n *Node) float64
	normalize func(p *Pod, nodes []*Node, s []float64)
}

// scores and weights are those of stock's default profile, as far as the features are here.
var scores = []score{
	{"TaintToleration", 3, preferNoScheduleTaints, invert},
	{"NodeAffinity", 2, preferredAffinity, scale},
	{"PodTopologySpread", 2, siblings, spread},
	{"NodeResourcesFit", 1, leastAllocated, nil},
	{"NodeResourcesBalancedAllocation", 1, balancedAllocation, nil},
	{"ImageLocality", 1, imageLocality, nil},
}

func preferNoScheduleTaints(p *Pod, n *Node) float64 {
	count := 0.0
	for i := range n.Spec.Taints {
		if t := &n.Spec.Taints[i]; t.Effect == corev1.TaintEffectPreferNoSchedule && !tolerated(p.Spec.Tolerations, t) {
			count++
		}
	}
	return count
}

func preferredAffinity(p *Pod, n *Node) float64 {
	if p.preferred == nil {
		return 0
	}
	return float64(p.preferred.Score(n.Node))
}

// scale stretches to 0..maxScore by the largest.
func scale(_ *Pod, _ []*Node, s []float64) {
	top := 0.0
	for _, v := range s {
		top = math.Max(top, v)
	}
	for i := range s {
		if top > 0 {
			s[i] = s[i] * maxScore / top
		}
	}
}

// invert is scale with the largest as the worst.
func invert(p *Pod, nodes []*Node, s []float64) {
	scale(p, nodes, s)
	for i := range s {
		s[i] = maxScore - s[i]
	}
}

// siblings counts pods of the same controller on the node.
func siblings(p *Pod, n *Node) float64 {
	if p.siblings == "" {
		return 0
	}
	return float64(n.siblings[p.siblings])
}

// zoneWeight is how much of the spreading score is about zones, when nodes have any.
const zoneWeight = 2.0 / 3

// spread prefers nodes, and zones, with few siblings.
func spread(p *Pod, nodes []*Node, s []float64) {
	if p.siblings == "" {
		clear(s)
		return
	}
	zones := map[string]float64{}
	for i, n := range nodes {
		if zone := n.Labels[corev1.LabelTopologyZone]; zone != "" {
			zones[zone] += s[i]
		}
	}
	worst, worstZone := 0.0, 0.0
	for _, v := range s {
		worst = math.Max(worst, v)
	}
	for _, v := range zones {
		worstZone = math.Max(worstZone, v)
	}
	few := func(v, worst float64) float64 {
		if worst == 0 {
			return maxScore
		}
		return maxScore * (worst - v) / worst
	}
	for i, n := range nodes {
		s[i] = few(s[i], worst)
		if zone := n.Labels[corev1.LabelTopologyZone]; zone != "" && len(zones) > 1 {
			s[i] = s[i]*(1-zoneWeight) + few(zones[zone], worstZone)*zoneWeight
		}
	}
}

// leastAllocated prefers nodes with much CPU and memory left.
func leastAllocated(p *Pod, n *Node) float64 {
	cpu := free(n.Allocatable.MilliCPU, n.Assumed.MilliCPU+p.Assumed.MilliCPU)
	mem := free(n.Allocatable.Memory, n.Assumed.Memory+p.Assumed.Memory)
	return (cpu + mem) / 2 * maxScore
}

// free is the share that is left, 0 to 1.
func free(have, used int64) float64 {
	if have <= 0 || used > have {
		return 0
	}
	return float64(have-used) / float64(have)
}

// balancedAllocation prefers nodes on which the pod leaves CPU and memory used alike.
func balancedAllocation(p *Pod, n *Node) float64 {
	cpu := 1 - free(n.Allocatable.MilliCPU, n.Requested.MilliCPU+p.Requests.MilliCPU)
	mem := 1 - free(n.Allocatable.Memory, n.Requested.Memory+p.Requests.Memory)
	return (1 - math.Abs(cpu-mem)/2) * maxScore
}

// Images below smallImage make no difference; above largeImage for each container, no more.
const (
	smallImage = 23 << 20
	largeImage = 1000 << 20
)

// imageLocality prefers nodes that hold the pod's images.
func imageLocality(p *Pod, n *Node) float64 {
	sum := int64(0)
	for i := range p.Spec.Containers {
		sum += n.images[normalizedImage(p.Spec.Containers[i].Image)]
	}
	most := int64(largeImage) * int64(len(p.Spec.Containers))
	sum = min(max(sum, smallImage), most)
	return float64(sum-smallImage) / float64(most-smallImage) * maxScore
}

// normalizedImage adds the tag that an image name without tag or digest means.
func normalizedImage(name string) string {
	if strings.LastIndexByte(name, ':') <= strings.LastIndexByte(name, '/') {
		return name + ":latest"
	}
	return name
}
