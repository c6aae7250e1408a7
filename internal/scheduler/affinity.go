package scheduler

import (
	"math"
	"strings"
)

// nearness is what a query knows about affinity between pods.
type nearness struct {
	// near counts those that all of the pod's required terms are about, by each of their keys; first is whether
	// the pod may be the first of its kind: its terms are about itself.
	near  []*tally
	first bool
	// far counts for each required anti-affinity term those that it is about.
	far []*tally
	// others are terms of pods on nodes that are about the pod, as of when the index had made so many.
	others []*entry
	made   int
}

// askNearness prepares what concerns the pod of affinity between pods.
func (q *query) askNearness() {
	if x := q.books.terms; q.snapshot.choosy > 0 || len(x.entries) > 0 {
		x.tidy()
		x.follow(q.snapshot.Nodes)
		q.findOthers()
	}
	t := q.pod.terms
	if t == nil {
		return
	}
	if len(t.near) > 0 {
		q.askNear(t.near)
	}
	for _, term := range t.far {
		q.far = append(q.far, q.watch(q.tallyNear(term.key, term.in(q.snapshot.Namespaces))))
	}
}

func (q *query) findOthers() {
	x := q.books.terms
	q.others, q.made = x.about(q.pod, q.snapshot.Namespaces, q.others[:0]), x.made
}

func (q *query) askNear(near []*term) {
	scopes := make([]scope, len(near))
	q.first = true
	for i, t := range near {
		scopes[i] = t.in(q.snapshot.Namespaces)
		q.first = q.first && scopes[i].covers(q.pod)
	}
	for _, t := range near {
		q.near = append(q.near, q.watch(q.tallyNear(t.key, scopes...)))
	}
}

// tallyNear counts the pods that all scopes are about.
func (q *query) tallyNear(key string, scopes ...scope) *tally {
	parts := []string{"near", key}
	for i := range scopes {
		parts = append(parts, scopes[i].name)
	}
	return q.books.tally(strings.Join(parts, "\x02"), q.snapshot.Nodes, func() *tally {
		return newTally(key, func(*Node) bool { return true }, func(n *Node) int {
			count := 0
			for _, p := range n.Pods {
				if coveredBy(p, scopes) {
					count++
				}
			}
			return count
		})
	})
}

func coveredBy(p *Pod, scopes []scope) bool {
	for i := range scopes {
		if !scopes[i].covers(p) {
			return false
		}
	}
	return true
}

// supposeNear is the part of suppose that is about the terms of pods.
func (q *query) supposeNear(was, is *Node) {
	x := q.books.terms
	x.add(was, -1)
	x.add(is, 1)
	if x.made != q.made {
		q.findOthers()
	}
}

func interPodAffinity(q *query, n *Node, r *Refusal) {
	switch {
	case len(q.near) > 0 && !q.isNear(n):
		r.sayFinal("node(s) didn't match pod affinity rules")
	case q.isTooNear(n):
		r.say("node(s) didn't match pod anti-affinity rules")
	case q.isForbidden(n):
		r.say("node(s) didn't satisfy existing pods anti-affinity rules")
	}
}

// isNear tells whether the pod finds on the node, or in its domains, whom it wants to be near. The first
// of a kind that wants to be among its own finds nobody, and may go to any domain.
func (q *query) isNear(n *Node) bool {
	found, nobody := true, true
	for _, t := range q.near {
		value, ok := n.Labels[t.key]
		if !ok {
			return false
		}
		found = found && t.pods(value) > 0
		nobody = nobody && t.total == 0
	}
	return found || nobody && q.first
}

// isTooNear tells whether the node, or one of its domains, has one whom the pod avoids.
func (q *query) isTooNear(n *Node) bool {
	for _, t := range q.far {
		if value, ok := n.Labels[t.key]; ok && t.pods(value) > 0 {
			return true
		}
	}
	return false
}

// isForbidden tells whether the node, or one of its domains, has a pod that avoids this one.
func (q *query) isForbidden(n *Node) bool {
	for _, e := range q.others {
		if len(e.forbids) == 0 {
			continue
		}
		if value, ok := n.Labels[e.key]; ok && e.forbids[value] > 0 {
			return true
		}
	}
	return false
}

// nearest prefers nodes whose domains have pods that the pod prefers to be near, or that prefer to be near it, and
// avoids those of the opposite.
func nearest(q *query, nodes []*Node, points []float64) {
	clear(points)
	some := false
	if q.pod.terms != nil {
		for _, w := range q.pod.terms.liked {
			t := q.tallyNear(w.key, w.in(q.snapshot.Namespaces))
			for i, n := range nodes {
				if value, ok := n.Labels[w.key]; ok {
					points[i] += float64(w.weight * t.pods(value))
				}
			}
			some = true
		}
	}
	for _, e := range q.others {
		if len(e.weights) == 0 {
			continue
		}
		for i, n := range nodes {
			if value, ok := n.Labels[e.key]; ok {
				points[i] += float64(e.weights[value])
			}
		}
		some = true
	}
	if some {
		stretch(points)
	}
}

// stretch maps what lies between the least and the most to 0..maxScore.
func stretch(points []float64) {
	least, most := math.Inf(1), math.Inf(-1)
	for _, v := range points {
		least, most = math.Min(least, v), math.Max(most, v)
	}
	for i := range points {
		if most > least {
			points[i] = math.Trunc(maxScore * (points[i] - least) / (most - least))
		} else {
			points[i] = 0
		}
	}
}
