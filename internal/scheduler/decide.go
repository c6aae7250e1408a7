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
	// Reasons says, by node name, why nodes do not fit.
	Reasons map[string][]string
	// Next is where the following decision's search should start, so that all nodes get
	// their turn in a large cluster.
	Next int
}

// Decide chooses a node for pod. It is a pure function: start is where the search begins
// (Decision.Next of the one before), and tie picks among n equally good nodes.
func Decide(p *Pod, s Snapshot, start int, tie func(n int) int) Decision {
	d := Decision{Total: len(s.Nodes), Reasons: map[string][]string{}}
	if d.Total == 0 {
		return d
	}
	enough := enoughNodes(d.Total)
	var fit []*Node
	var why []string
	seen := 0
	for ; seen < d.Total && len(fit) < enough; seen++ {
		n := s.Nodes[(start+seen)%d.Total]
		why = why[:0]
		for i := range filters {
			if why = filters[i].reasons(p, n, why); len(why) > 0 {
				break
			}
		}
		if len(why) == 0 {
			fit = append(fit, n)
		} else {
			d.Reasons[n.Name] = slices.Clone(why)
		}
	}
	d.Next = (start + seen) % d.Total
	d.Feasible = len(fit)
	if len(fit) > 0 {
		d.Node = best(p, fit, tie).Name
	}
	return d
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
func best(p *Pod, nodes []*Node, tie func(int) int) *Node {
	if len(nodes) == 1 {
		return nodes[0]
	}
	sum := make([]float64, len(nodes))
	raw := make([]float64, len(nodes))
	for _, sc := range scores {
		for i, n := range nodes {
			raw[i] = sc.raw(p, n)
		}
		if sc.normalize != nil {
			sc.normalize(p, nodes, raw)
		}
		for i := range sum {
			sum[i] += sc.weight * raw[i]
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
	counts := map[string]int{}
	for _, why := range d.Reasons {
		for _, reason := range why {
			counts[reason]++
		}
	}
	lines := make([]string, 0, len(counts))
	for reason, n := range counts {
		lines = append(lines, fmt.Sprintf("%d %s", n, reason))
	}
	slices.Sort(lines)
	return fmt.Sprintf("0/%d nodes are available: %s.", d.Total, strings.Join(lines, ", "))
}
