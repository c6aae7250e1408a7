package scheduler

import (
	"math"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// maxScore is the best that a score gives, after normalisation.
const maxScore = 100

// A score ranks the nodes that a pod fits on: rank gives each 0 to maxScore, into points.
type score struct {
	name   string
	weight float64
	rank   func(q *query, nodes []*Node, points []float64)
}

// scores and weights are those of stock's default profile.
var scores = []score{
	{"TaintToleration", 3, fewestTaints},
	{"NodeAffinity", 2, mostPreferred},
	{"PodTopologySpread", 2, spread},
	{"InterPodAffinity", 2, nearest},
	{"NodeResourcesFit", 1, each(leastAllocated)},
	{"NodeResourcesBalancedAllocation", 1, each(balancedAllocation)},
	{"ImageLocality", 1, each(imageLocality)},
}

// each is of a score that looks at one node at a time.
func each(points func(*Pod, *Node) float64) func(*query, []*Node, []float64) {
	return func(q *query, nodes []*Node, out []float64) {
		for i, n := range nodes {
			out[i] = points(q.pod, n)
		}
	}
}

// fewestTaints prefers nodes with few taints that would rather not have the pod.
func fewestTaints(q *query, nodes []*Node, points []float64) {
	for i, n := range nodes {
		points[i] = preferNoScheduleTaints(q.pod, n)
	}
	scale(points)
	for i := range points {
		points[i] = maxScore - points[i]
	}
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

// mostPreferred prefers nodes by the pod's preferred node affinity.
func mostPreferred(q *query, nodes []*Node, points []float64) {
	if q.pod.preferred == nil {
		clear(points)
		return
	}
	for i, n := range nodes {
		points[i] = float64(q.pod.preferred.Score(n.Node))
	}
	scale(points)
}

// scale stretches to 0..maxScore by the largest.
func scale(points []float64) {
	top := 0.0
	for _, v := range points {
		top = math.Max(top, v)
	}
	for i := range points {
		if top > 0 {
			points[i] = points[i] * maxScore / top
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
