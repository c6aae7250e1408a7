package scheduler

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Of the nodes where a pod could take the room of others, so many are compared: a share of those
// that could come into question, but not fewer than that (stock values).
const (
	candidatePercent = 10
	candidatesLeast  = 100
)

// Preemption is which pods have to go for another to fit, or why that is of no use.
type Preemption struct {
	// Node is where; empty when nowhere.
	Node string
	// Victims are the pods to end, the most important first. Some may be ending already.
	Victims []*Pod
	// Displaced are pods of lower priority that were nominated to the node.
	Displaced []*Pod
	// Violations counts the victims whose disruption budgets do not allow it.
	Violations int
	// Waits is whether pods that were told to go have not gone yet: the nomination stays.
	Waits bool
	// Message is in stock's words.
	Message string
}

// Budget is a PodDisruptionBudget as far as preemption heeds it.
type Budget struct {
	UID       types.UID
	Namespace string
	selector  labels.Selector
	allowed   int32
	disrupted map[string]metav1.Time
}

// NewBudget computes what a decision needs of a budget; false if it covers no pod.
func NewBudget(b *policyv1.PodDisruptionBudget) (Budget, bool) {
	selector, err := metav1.LabelSelectorAsSelector(b.Spec.Selector)
	// The API server refuses selectors that do not parse; one that slipped through covers nothing.
	if err != nil || selector.Empty() {
		return Budget{}, false
	}
	return Budget{UID: b.UID, Namespace: b.Namespace, selector: selector, allowed: b.Status.DisruptionsAllowed, disrupted: b.Status.DisruptedPods}, true
}

// Preempt decides which pods of lower priority should make room for p, which d found no node for. It
// is a pure function, as Decide is: start is at which of the nodes that come into question it begins to look,
// now is when pods that have not started are taken to start.
func Preempt(p *Pod, s Snapshot, books *Books, d Decision, budgets []Budget, start int, now time.Time) Preemption {
	if why, waits := ineligible(p, s, d); why != "" {
		return Preemption{Waits: waits, Message: "preemption: not eligible due to " + why}
	}
	var open []Refusal
	for i := range d.Refusals {
		if !d.Refusals[i].Final {
			open = append(open, d.Refusals[i])
		}
	}
	candidates := ask(p, s, books).candidates(open, budgets, start, now)
	if len(candidates) == 0 {
		return Preemption{Message: "preemption: " + unavailable(d.Total, open, "Preemption is not helpful for scheduling")}
	}
	c := slices.MinFunc(candidates, func(a, b Preemption) int { return milder(a, b, now) })
	for _, other := range s.find(c.Node).nominated {
		if other.Priority < p.Priority {
			c.Displaced = append(c.Displaced, other)
		}
	}
	c.Message = fmt.Sprintf("preemption: found a potential placement for pod on node %s, preempting %d victims", c.Node, len(c.Victims))
	return c
}

// candidates are what to do on the nodes that refused, as far as enough of them are looked at. Each that is of
// no use then says why.
func (q *query) candidates(open []Refusal, budgets []Budget, start int, now time.Time) (out []Preemption) {
	enough := min(max(len(open)*candidatePercent/100, candidatesLeast), len(open))
	respectful := false // some candidate violates no budget
	for k := range open {
		r := &open[(start+k)%len(open)]
		c, ok := q.candidate(r.Node, budgets, now, r)
		if !ok {
			continue
		}
		out = append(out, c)
		respectful = respectful || c.Violations == 0
		if respectful && len(out) >= enough {
			break
		}
	}
	return out
}

var nobody = []string{"No preemption victims found for incoming pod"}

// ineligible says why the pod may not make others go: it does not want to, or it waits for those
// that it made go.
func ineligible(p *Pod, s Snapshot, d Decision) (why string, waits bool) {
	if policy := p.Spec.PreemptionPolicy; policy != nil && *policy == corev1.PreemptNever {
		return "preemptionPolicy=Never.", false
	}
	n := s.find(p.Nominated)
	if n == nil || slices.ContainsFunc(d.Refusals, func(r Refusal) bool { return r.Node == n && r.Final }) {
		return "", false
	}
	if slices.ContainsFunc(n.Pods, func(o *Pod) bool { return o.Priority < p.Priority && preempted(o) }) {
		return "a terminating pod on the nominated node.", true
	}
	return "", false
}

// preempted tells whether the pod is ending because a scheduler wanted its room.
func preempted(p *Pod) bool {
	return p.DeletionTimestamp != nil && slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue && c.Reason == corev1.PodReasonPreemptionByScheduler
	})
}

// candidate finds the least important pods that have to leave the node for the pod to fit. If it
// does not fit however many leave, why is told.
func (q *query) candidate(n *Node, budgets []Budget, now time.Time, why *Refusal) (Preemption, bool) {
	if n.lowest >= q.pod.Priority {
		why.Reasons = nobody
		return Preemption{}, false
	}
	rest, victims := n.split(func(o *Pod) bool { return o.Priority >= q.pod.Priority })
	q.suppose(n, rest)
	defer func() { q.suppose(rest, n) }()
	r := &Refusal{}
	if q.refuses(rest, r) {
		why.Reasons = slices.Clone(r.Reasons)
		return Preemption{}, false
	}
	slices.SortStableFunc(victims, func(a, b *Pod) int { return moreImportant(a, b, now) })
	protected, others := covered(victims, budgets)
	c := Preemption{Node: n.Name}
	for i, group := range [][]*Pod{protected, others} {
		for _, v := range group {
			back := rest.with(v)
			q.suppose(rest, back)
			if !q.refuses(back, r) {
				rest = back // reprieved
				continue
			}
			q.suppose(back, rest)
			c.Victims = append(c.Victims, v)
			if i == 0 {
				c.Violations++
			}
		}
	}
	slices.SortStableFunc(c.Victims, func(a, b *Pod) int { return moreImportant(a, b, now) })
	return c, len(c.Victims) > 0
}

// moreImportant orders by falling priority, then by age.
func moreImportant(a, b *Pod, now time.Time) int {
	return cmp.Or(cmp.Compare(b.Priority, a.Priority), started(a, now).Compare(started(b, now)))
}

func started(p *Pod, now time.Time) time.Time {
	if p.Status.StartTime == nil {
		return now
	}
	return p.Status.StartTime.Time
}

// covered parts the pods into those that budgets do not allow to be disrupted, if all before
// them are, and the others. The order stays.
func covered(pods []*Pod, budgets []Budget) (protected, others []*Pod) {
	if len(budgets) == 0 {
		return nil, pods
	}
	left := make([]int32, len(budgets))
	for i := range budgets {
		left[i] = budgets[i].allowed
	}
	for _, p := range pods {
		if violates(p, budgets, left) {
			protected = append(protected, p)
		} else {
			others = append(others, p)
		}
	}
	return protected, others
}

// violates takes a disruption from what is left of each budget that covers the pod, until one
// has none left.
func violates(p *Pod, budgets []Budget, left []int32) bool {
	for i := range budgets {
		b := &budgets[i]
		if b.Namespace != p.Namespace || len(p.Labels) == 0 || !b.selector.Matches(labels.Set(p.Labels)) {
			continue
		}
		if _, counted := b.disrupted[p.Name]; counted {
			continue
		}
		if left[i]--; left[i] < 0 {
			return true
		}
	}
	return false
}

// milder orders candidates: the fewest violated budgets, then the lowest of the highest priorities,
// then the lowest sum of priorities, then the fewest victims, then the latest start of the
// longest running among the most important.
func milder(a, b Preemption, now time.Time) int {
	return cmp.Or(
		cmp.Compare(a.Violations, b.Violations),
		cmp.Compare(a.Victims[0].Priority, b.Victims[0].Priority),
		cmp.Compare(sumOfPriorities(a.Victims), sumOfPriorities(b.Victims)),
		cmp.Compare(len(a.Victims), len(b.Victims)),
		started(b.Victims[0], now).Compare(started(a.Victims[0], now)),
	)
}

// sumOfPriorities shifts each to be positive, so that more victims are never milder than fewer of
// the same priority.
func sumOfPriorities(pods []*Pod) int64 {
	sum := int64(0)
	for _, p := range pods {
		sum += int64(p.Priority) - math.MinInt32
	}
	return sum
}
