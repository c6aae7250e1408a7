package scheduler

import (
	"cmp"
	"maps"
	"math"
	"slices"
)

// Books are sums over the nodes of a cluster that decisions need, kept from one to the next. They make
// decisions cheap, and never change one: what they hold is a function of the snapshot that
// was last looked at, and a decision begins by bringing those that it needs in step
// with its own. Not safe for concurrent use.
type Books struct {
	tallies map[string]*tally
	terms   *termIndex
	turn    uint64 // counts uses of tallies
	aged    uint64 // turn when the books were last cleared of what was not needed
}

// NewBooks returns empty ones.
func NewBooks() *Books { return &Books{tallies: map[string]*tally{}, terms: newTermIndex()} }

// manyTallies is how many are kept; beyond it, those go that were not needed for longest.
const manyTallies = 128

// tally returns the one of that name in step with the nodes. make is asked for it if there is none.
func (b *Books) tally(name string, nodes []*Node, make func() *tally) *tally {
	b.turn++
	t := b.tallies[name]
	if t == nil {
		if len(b.tallies) >= manyTallies {
			b.forget()
		}
		t = make()
		b.tallies[name] = t
	}
	t.used = b.turn
	t.follow(nodes)
	return t
}

// forget drops the half of the tallies that was not needed for longest.
func (b *Books) forget() {
	byUse := slices.SortedFunc(maps.Keys(b.tallies), func(x, y string) int {
		return cmp.Compare(b.tallies[x].used, b.tallies[y].used)
	})
	for _, name := range byUse[:len(byUse)/2] {
		delete(b.tallies, name)
	}
}

// clear drops the tallies that were not needed since it was called before: each holds on to the
// nodes that it has seen.
func (b *Books) clear() {
	maps.DeleteFunc(b.tallies, func(_ string, t *tally) bool { return t.used <= b.aged })
	b.aged = b.turn
}

// A sum adds up what nodes contribute. Nodes are immutable, so what one contributes never changes: to
// follow the cluster is to find the nodes that were replaced, which are other pointers
// now, and to replace what they contributed. Nothing is counted when pods and nodes come and
// go, and it does not matter in which order, how late or how often that is heard.
type sum struct {
	seen []*Node // what was added, by name
	// add adds what n contributes, sign times.
	add func(n *Node, sign int)
}

// follow brings the sum in step with the nodes, which are sorted by name.
func (s *sum) follow(nodes []*Node) {
	if len(nodes) == len(s.seen) && (len(nodes) == 0 || &nodes[0] == &s.seen[0]) {
		return
	}
	was, is := s.seen, nodes
	s.seen = nodes
	for len(was) > 0 || len(is) > 0 {
		switch {
		case len(was) > 0 && len(is) > 0 && was[0] == is[0]:
			was, is = was[1:], is[1:]
		case len(is) == 0 || len(was) > 0 && was[0].Name < is[0].Name:
			s.add(was[0], -1)
			was = was[1:]
		case len(was) == 0 || was[0].Name > is[0].Name:
			s.add(is[0], 1)
			is = is[1:]
		default:
			s.add(was[0], -1)
			s.add(is[0], 1)
			was, is = was[1:], is[1:]
		}
	}
}

// A tally counts pods by topology domain: the nodes that have the same value of a label.
type tally struct {
	sum
	key string
	// among tells whether a node is counted, and count how many pods on it are. Both depend on the node
	// alone.
	among func(n *Node) bool
	count func(n *Node) int

	domains map[string]*domain
	sizes   map[int]int // how many domains have so many pods
	total   int
	used    uint64
}

type domain struct{ nodes, pods int }

func newTally(key string, among func(*Node) bool, count func(*Node) int) *tally {
	t := &tally{key: key, among: among, count: count, domains: map[string]*domain{}, sizes: map[int]int{}}
	t.add = t.tell
	return t
}

func (t *tally) tell(n *Node, sign int) {
	value, ok := n.Labels[t.key]
	if !ok || !t.among(n) {
		return
	}
	d := t.domains[value]
	if d == nil {
		d = &domain{}
		t.domains[value] = d
	} else if t.sizes[d.pods]--; t.sizes[d.pods] == 0 {
		delete(t.sizes, d.pods)
	}
	pods := sign * t.count(n)
	d.nodes += sign
	d.pods += pods
	t.total += pods
	if d.nodes == 0 {
		delete(t.domains, value)
		return
	}
	t.sizes[d.pods]++
}

// pods is how many there are in a domain.
func (t *tally) pods(value string) int {
	if d := t.domains[value]; d != nil {
		return d.pods
	}
	return 0
}

// fewest is how many pods the domain with the fewest has; math.MaxInt32 if there is no domain.
func (t *tally) fewest() int {
	least := math.MaxInt32
	for pods := range t.sizes {
		least = min(least, pods)
	}
	return least
}
