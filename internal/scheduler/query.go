package scheduler

import (
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/labels"
)

// A Refusal is why a node does not take a pod.
type Refusal struct {
	Node *Node
	// Reasons are in stock's words.
	Reasons []string
	// Final is whether the node would not take the pod either if it had fewer pods.
	Final bool
}

// say adds a reason that fewer pods on the node may do away with; sayFinal one that they can't.
func (r *Refusal) say(reason string) { r.Reasons = append(r.Reasons, reason) }

func (r *Refusal) sayFinal(reason string) { r.Reasons, r.Final = append(r.Reasons, reason), true }

// query is one pod's question to the nodes of a snapshot.
type query struct {
	pod      *Pod
	snapshot Snapshot
	books    *Books
	hard     []spreading
	watched  []*tally // those that refusals depend on
	nearness
}

// ask prepares the question; a nil books begins with empty ones.
func ask(p *Pod, s Snapshot, books *Books) *query {
	if books == nil {
		books = NewBooks()
	}
	q := &query{pod: p, snapshot: s, books: books}
	if len(p.hard) > 0 {
		q.askSpread()
	}
	q.askNearness()
	return q
}

// watch has t follow what is supposed.
func (q *query) watch(t *tally) *tally {
	if !slices.Contains(q.watched, t) {
		q.watched = append(q.watched, t)
	}
	return t
}

// refuses tells whether n, one of the snapshot's nodes, does not take the pod; r then says why. Pods
// nominated to the node that are not below this one count as if they were there. Since
// they may go elsewhere in the end, and what they bring may be what this one
// needs, it must fit without them too.
func (q *query) refuses(n *Node, r *Refusal) bool {
	r.Node, r.Reasons, r.Final = n, r.Reasons[:0], false
	if len(n.nominated) > 0 {
		if coming := slices.DeleteFunc(slices.Clone(n.nominated), q.above); len(coming) > 0 {
			full := n.with(coming...)
			q.suppose(n, full)
			refused := q.filter(full, r)
			q.suppose(full, n)
			if refused {
				return true
			}
		}
	}
	return q.filter(n, r)
}

// above tells whether the pod need not heed another's nomination: it is before it, or it.
func (q *query) above(other *Pod) bool {
	return other.UID == q.pod.UID || other.Priority < q.pod.Priority
}

func (q *query) filter(n *Node, r *Refusal) bool {
	for i := range filters {
		if filters[i].refuse(q, n, r); len(r.Reasons) > 0 {
			return true
		}
	}
	return false
}

// suppose has what is known of the whole cluster be as if one node were another: was is replaced by
// is. Whoever supposes something takes it back in the end.
func (q *query) suppose(was, is *Node) {
	for _, t := range q.watched {
		t.add(was, -1)
		t.add(is, 1)
	}
	if len(q.hard) > 0 {
		q.balance()
	}
	if len(was.choosy)+len(is.choosy) > 0 {
		q.supposeNear(was, is)
	}
}

// find returns a node by its name, nil if there is none.
func (s Snapshot) find(name string) *Node {
	i, ok := slices.BinarySearchFunc(s.Nodes, name, func(n *Node, name string) int { return strings.Compare(n.Name, name) })
	if !ok {
		return nil
	}
	return s.Nodes[i]
}

// social tells whether there may be a pod that helps this one by coming to a node: constraints and
// affinity look at where others are.
func (p *Pod) social() bool { return len(p.hard) > 0 || p.terms != nil && len(p.terms.near) > 0 }

// helpedBy tells whether other may be such a pod.
func (p *Pod) helpedBy(other *Pod) bool {
	set := labels.Set(other.Labels)
	for i := range p.hard {
		if other.Namespace == p.Namespace && p.hard[i].selector.Matches(set) {
			return true
		}
	}
	return p.terms != nil && len(p.terms.near) > 0 && !slices.ContainsFunc(p.terms.near, func(t *term) bool { return !t.selector.Matches(set) })
}
