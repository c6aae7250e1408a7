package scheduler

import (
	"fmt"
	"slices"
	"strings"

	"k8s.io/klog/v2"
)

// noLog quiets helpers of Kubernetes that want klog's logger.
var noLog = klog.Logger{}

// Decision is where a pod goes, or why nowhere.
type Decision struct {
	// Node is the chosen node's name; empty when none fits.
	Node string
	// Total and Feasible count the nodes there are, and those found to fit; the search ends
	// when enough fit.
	Total, Feasible int
	// Refusals are of the nodes that were looked at and do not fit.
	Refusals []Refusal
	// Next is where the following decision's search should start, so that all nodes get
	// their turn in a large cluster.
	Next int
}

// Decide chooses a node for pod. It is a pure function: start is where the search begins
// (Decision.Next of the one before), and tie picks among n equally good nodes. books, which may be
// nil, make it faster and no different. The node that the pod is nominated to is taken without looking
// for a better one, if it fits.
func Decide(p *Pod, s Snapshot, books *Books, start int, tie func(n int) int) Decision {
	d := Decision{Total: len(s.Nodes), Next: start}
	if d.Total == 0 {
		return d
	}
	q := ask(p, s, books)
	r := &Refusal{}
	if n := s.find(p.Nominated); n != nil && !q.refuses(n, r) {
		d.Node, d.Feasible = n.Name, 1
		return d
	}
	enough := enoughNodes(d.Total)
	var fit []*Node
	seen := 0
	for ; seen < d.Total && len(fit) < enough; seen++ {
		n := s.Nodes[(start+seen)%d.Total]
		if q.refuses(n, r) {
			d.refused(*r)
		} else {
			fit = append(fit, n)
		}
	}
	d.Next = (start + seen) % d.Total
	d.Feasible = len(fit)
	if len(fit) > 0 {
		d.Node = best(q, fit, tie).Name
	}
	return d
}

// refused adds a refusal, whose reasons it shares with the one before if they are the same, as
// they mostly are.
func (d *Decision) refused(r Refusal) {
	if k := len(d.Refusals); k > 0 && slices.Equal(d.Refusals[k-1].Reasons, r.Reasons) {
		r.Reasons = d.Refusals[k-1].Reasons
	} else {
		r.Reasons = slices.Clone(r.Reasons)
	}
	d.Refusals = append(d.Refusals, r)
}

// enoughNodes is how many feasible nodes end the search: all up to 100, then a share that
// falls from 50% to 5% with the size of the cluster (stock's adaptive percentage).
func enoughNodes(total int) int {
	if total <= 100 {
		return total
	}
	percent := max(50-total/125, 5)
	return max(total*percent/100, 100)
}

// best ranks the nodes by the weighted sum of all scores.
func best(q *query, nodes []*Node, tie func(int) int) *Node {
	if len(nodes) == 1 {
		return nodes[0]
	}
	sum := make([]float64, len(nodes))
	points := make([]float64, len(nodes))
	for _, sc := range scores {
		sc.rank(q, nodes, points)
		for i := range sum {
			sum[i] += sc.weight * points[i]
		}
	}
	top := slices.Max(sum)
	var winners []*Node
	for i, v := range sum {
		if v == top {
			winners = append(winners, nodes[i])
		}
	}
	return winners[tie(len(winners))]
}

// Message explains a decision without a node, in stock's words.
func (d Decision) Message() string {
	if d.Total == 0 {
		return "no nodes available to schedule pods"
	}
	return unavailable(d.Total, d.Refusals, "")
}

// unavailable counts the reasons of refusals; rest is that of the nodes that none of them is of.
func unavailable(total int, refusals []Refusal, rest string) string {
	counts := map[string]int{}
	if others := total - len(refusals); others > 0 && rest != "" {
		counts[rest] = others
	}
	for i, same := 0, 0; i < len(refusals); i += same {
		same = alike(refusals[i:])
		for _, reason := range refusals[i].Reasons {
			counts[reason] += same
		}
	}
	lines := make([]string, 0, len(counts))
	for reason, n := range counts {
		lines = append(lines, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(lines)
	return fmt.Sprintf("0/%d nodes are available: %s.", total, strings.Join(lines, ", "))
}

// alike is how many of the first share their reasons.
func alike(refusals []Refusal) int {
	first := refusals[0].Reasons
	for i := 1; i < len(refusals); i++ {
		if r := refusals[i].Reasons; len(r) != len(first) || len(r) == 0 || &r[0] != &first[0] {
			return i
		}
	}
	return len(refusals)
}
