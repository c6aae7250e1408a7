package scheduler

import (
	"encoding/json"
	"math"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// A constraint is one of a pod's topology spread constraints (KEP-895, 3022, 3094, 3243).
type constraint struct {
	maxSkew, minDomains int
	key                 string
	selector            labels.Selector
	// selfish is whether the pod counts itself.
	selfish bool
	// Which nodes' pods count: those that the pod's node affinity allows, those whose taints it tolerates.
	byAffinity, byTaints bool
	// name tells apart what is counted for it.
	name string
	// all are the keys that a node must have to be counted.
	all []string
}

// systemConstraints are those of pods that have none.
var systemConstraints = []constraint{
	{key: corev1.LabelHostname, maxSkew: 3, byAffinity: true},
	{key: corev1.LabelTopologyZone, maxSkew: 5, byAffinity: true},
}

// addSpread reads the pod's constraints.
func (p *Pod) addSpread() {
	for i := range p.Spec.TopologySpreadConstraints {
		c := newConstraint(p.Pod, &p.Spec.TopologySpreadConstraints[i])
		if p.Spec.TopologySpreadConstraints[i].WhenUnsatisfiable == corev1.DoNotSchedule {
			p.hard = append(p.hard, c)
		} else {
			p.soft = append(p.soft, c)
		}
	}
	for _, list := range [][]constraint{p.hard, p.soft} {
		var keys []string
		for i := range list {
			keys = append(keys, list[i].key)
		}
		for i := range list {
			list[i].all = keys
			list[i].identify(p)
		}
	}
}

func newConstraint(pod *corev1.Pod, in *corev1.TopologySpreadConstraint) constraint {
	selector, err := metav1.LabelSelectorAsSelector(in.LabelSelector)
	if err != nil {
		// Validation has refused what does not parse; one that slipped through selects nothing.
		selector = labels.Nothing()
	}
	for _, key := range in.MatchLabelKeys {
		if value, ok := pod.Labels[key]; ok {
			if requirements, selectable := labels.SelectorFromSet(labels.Set{key: value}).Requirements(); selectable {
				selector = selector.Add(requirements...)
			}
		}
	}
	c := constraint{
		maxSkew: int(in.MaxSkew), minDomains: 1, key: in.TopologyKey, selector: selector,
		selfish: selector.Matches(labels.Set(pod.Labels)), byAffinity: true,
	}
	if in.MinDomains != nil {
		c.minDomains = int(*in.MinDomains)
	}
	if in.NodeAffinityPolicy != nil {
		c.byAffinity = *in.NodeAffinityPolicy == corev1.NodeInclusionPolicyHonor
	}
	if in.NodeTaintsPolicy != nil {
		c.byTaints = *in.NodeTaintsPolicy == corev1.NodeInclusionPolicyHonor
	}
	return c
}

// affinityChoice tells apart pods by which nodes their selectors and affinity allow.
func (p *Pod) affinityChoice() string {
	var required *corev1.NodeSelector
	if a := p.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		required = a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution
	}
	if len(p.Spec.NodeSelector) == 0 && required == nil {
		return ""
	}
	return p.asText([]any{p.Spec.NodeSelector, required})
}

// asText is text that only what is equal has; of what has no text, nothing else has it.
func (p *Pod) asText(v any) string {
	out, err := json.Marshal(v)
	if err != nil {
		return string(p.UID)
	}
	return string(out)
}

// identify names what is counted for the constraint.
func (c *constraint) identify(p *Pod) {
	nothing, affinity, taints := "", "", ""
	if c.selector.Empty() {
		nothing = "x"
	}
	if c.byAffinity {
		affinity = "x" + p.affinityChoice()
	}
	if c.byTaints {
		taints = "x" + p.asText(p.Spec.Tolerations)
	}
	parts := []string{"spread", p.Namespace, c.selector.String(), nothing, c.key, affinity, taints}
	c.name = strings.Join(append(parts, c.all...), "\x00")
}

// count is how many pods on the node the constraint is about. An empty selector selects none, and
// pods that are ending don't count.
func (c *constraint) count(namespace string, n *Node) int {
	if c.selector.Empty() {
		return 0
	}
	count := 0
	for _, p := range n.Pods {
		if p.DeletionTimestamp == nil && p.Namespace == namespace && c.selector.Matches(labels.Set(p.Labels)) {
			count++
		}
	}
	return count
}

// among tells whether the node's pods count.
func (c *constraint) among(p *Pod, n *Node) bool {
	return !lacks(n, c.all) && (!c.byAffinity || p.selects(n)) && (!c.byTaints || p.untolerated(n) == nil)
}

func lacks(n *Node, keys []string) bool {
	return slices.ContainsFunc(keys, func(key string) bool { _, ok := n.Labels[key]; return !ok })
}

// tallyOf counts the pods that a constraint of p is about.
func (q *query) tallyOf(c *constraint) *tally {
	p := q.pod
	return q.books.tally(c.name, q.snapshot.Nodes, func() *tally {
		return newTally(c.key, func(n *Node) bool { return c.among(p, n) }, func(n *Node) int { return c.count(p.Namespace, n) })
	})
}

// spreading is a hard constraint with what there is.
type spreading struct {
	*constraint
	tally *tally
	least int // how many pods the domain with the fewest has
}

// askSpread prepares the pod's hard constraints.
func (q *query) askSpread() {
	for i := range q.pod.hard {
		c := &q.pod.hard[i]
		q.hard = append(q.hard, spreading{constraint: c, tally: q.watch(q.tallyOf(c))})
	}
	q.balance()
}

// balance looks again for the domains with the fewest pods.
func (q *query) balance() {
	for i := range q.hard {
		s := &q.hard[i]
		if s.least = s.tally.fewest(); len(s.tally.domains) < s.minDomains {
			s.least = 0
		}
	}
}

const unbalanced = "node(s) didn't match pod topology spread constraints"

func topologySpread(q *query, n *Node, r *Refusal) {
	for i := range q.hard {
		s := &q.hard[i]
		value, ok := n.Labels[s.key]
		if !ok {
			r.sayFinal(unbalanced + " (missing required label)")
			return
		}
		pods := s.tally.pods(value)
		if s.selfish {
			pods++
		}
		if pods-s.least > s.maxSkew {
			r.say(unbalanced)
			return
		}
	}
}

// spread prefers nodes whose domains have few of the pods that the soft constraints are about; of
// pods without constraints, few siblings.
func spread(q *query, nodes []*Node, out []float64) {
	list, own := q.pod.soft, len(q.pod.Spec.TopologySpreadConstraints) > 0
	if !own && q.pod.siblings != "" {
		list = systemConstraints
	}
	if len(list) == 0 {
		clear(out)
		return
	}
	clear(out)
	for i := range list {
		q.addSkew(&list[i], own, nodes, out)
	}
	least, most := math.Inf(1), 0.0
	for i, n := range nodes {
		if own && lacks(n, list[0].all) {
			continue
		}
		out[i] = math.Round(out[i])
		least, most = math.Min(least, out[i]), math.Max(most, out[i])
	}
	for i, n := range nodes {
		switch {
		case own && lacks(n, list[0].all):
			out[i] = 0
		case most == 0:
			out[i] = maxScore
		default:
			out[i] = math.Floor(maxScore * (most + least - out[i]) / most)
		}
	}
}

// addSkew adds to the nodes what one constraint has against them. Domains weigh more the more of them
// there are, so that the counts of few large ones don't drown those of many small ones.
func (q *query) addSkew(c *constraint, own bool, nodes []*Node, out []float64) {
	values, ranked := map[string]bool{}, 0
	for _, n := range nodes {
		if own && lacks(n, c.all) {
			continue
		}
		ranked++
		if c.key != corev1.LabelHostname {
			values[n.Labels[c.key]] = true
		}
	}
	if c.key != corev1.LabelHostname {
		ranked = len(values)
		if !own && ranked == 1 && values[""] {
			return // no node has that label: nothing to compare
		}
	}
	pods := func(n *Node) int { return c.count(q.pod.Namespace, n) }
	if !own {
		pods = func(n *Node) int { return n.siblings[q.pod.siblings] }
	}
	if c.key != corev1.LabelHostname {
		var t *tally
		if own {
			t = q.tallyOf(c)
		} else {
			t = q.siblingsBy(c)
		}
		pods = func(n *Node) int { return t.pods(n.Labels[c.key]) }
	}
	weight := math.Log(float64(ranked + 2))
	for i, n := range nodes {
		if _, ok := n.Labels[c.key]; ok {
			out[i] += float64(pods(n))*weight + float64(c.maxSkew-1)
		}
	}
}

// siblingsBy counts the pod's siblings by domain.
func (q *query) siblingsBy(c *constraint) *tally {
	p := q.pod
	name := strings.Join([]string{"siblings", string(p.siblings), c.key, p.affinityChoice()}, "\x00")
	return q.books.tally(name, q.snapshot.Nodes, func() *tally {
		return newTally(c.key, p.selects, func(n *Node) int { return n.siblings[p.siblings] })
	})
}
