package scheduler

import (
	"slices"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/selection"
)

// A term is one of a pod's affinity or anti-affinity terms: which other pods it is about, and what
// domains it means. Keys that match or mismatch are in the selector already: the API server puts them there.
type term struct {
	key        string
	namespaces []string // sorted
	// namespaceSelector selects further namespaces, by their labels.
	namespaceSelector labels.Selector
	selector          labels.Selector
	// name is the same for terms that are about the same pods and domains.
	name string
	// pair is a label, as key=value, that every pod that the term is about has; empty if there is none.
	pair string
}

// weighted is a term that is preferred, or with a negative weight, avoided.
type weighted struct {
	*term
	weight int
}

// terms are all of a pod's.
type terms struct {
	near, far []*term // required affinity and anti-affinity
	liked     []weighted
}

// requiredWeight is how much a pod's required affinity counts for others that it is about, so that
// they come near it (stock's hardPodAffinityWeight).
const requiredWeight = 1

// newTerms reads a pod's terms, nil if it has none.
func newTerms(pod *corev1.Pod) *terms {
	a := pod.Spec.Affinity
	if a == nil || a.PodAffinity == nil && a.PodAntiAffinity == nil {
		return nil
	}
	t := &terms{}
	read := func(required []corev1.PodAffinityTerm, preferred []corev1.WeightedPodAffinityTerm, sign int) (out []*term) {
		for i := range required {
			out = append(out, newTerm(pod, &required[i]))
		}
		for i := range preferred {
			t.liked = append(t.liked, weighted{newTerm(pod, &preferred[i].PodAffinityTerm), sign * int(preferred[i].Weight)})
		}
		return out
	}
	if x := a.PodAffinity; x != nil {
		t.near = read(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution, 1)
	}
	if x := a.PodAntiAffinity; x != nil {
		t.far = read(x.RequiredDuringSchedulingIgnoredDuringExecution, x.PreferredDuringSchedulingIgnoredDuringExecution, -1)
	}
	if len(t.near)+len(t.far)+len(t.liked) == 0 {
		return nil
	}
	return t
}

func newTerm(pod *corev1.Pod, in *corev1.PodAffinityTerm) *term {
	t := &term{key: in.TopologyKey, namespaces: slices.Clone(in.Namespaces)}
	t.selector, t.namespaceSelector = selectorOf(in.LabelSelector), selectorOf(in.NamespaceSelector)
	if len(t.namespaces) == 0 && in.NamespaceSelector == nil {
		t.namespaces = []string{pod.Namespace}
	}
	slices.Sort(t.namespaces)
	t.namespaces = slices.Compact(t.namespaces)
	t.name = strings.Join([]string{
		t.key, describeSelector(t.selector), describeSelector(t.namespaceSelector), strings.Join(t.namespaces, "\x01"),
	}, "\x00")
	t.pair = oneLabel(t.selector)
	return t
}

// selectorOf is nothing of a selector that isn't there. Validation has refused those that do not
// parse; one that slipped through selects nothing.
func selectorOf(s *metav1.LabelSelector) labels.Selector {
	selector, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return selector
}

// describeSelector tells apart the selectors of everything and of nothing, whose texts are both empty.
func describeSelector(s labels.Selector) string { return s.String() + strconv.FormatBool(s.Empty()) }

// oneLabel is a label that everything that the selector selects has.
func oneLabel(s labels.Selector) string {
	requirements, _ := s.Requirements()
	for i := len(requirements) - 1; i >= 0; i-- {
		r := &requirements[i]
		switch r.Operator() {
		case selection.In, selection.Equals, selection.DoubleEquals:
			if values := r.ValuesUnsorted(); len(values) == 1 {
				return r.Key() + "=" + values[0]
			}
		}
	}
	return ""
}

// about tells whether the term of another pod, which is on a node, is about p. namespaces are the labels of all
// namespaces.
func (t *term) about(p *Pod, namespaces map[string]labels.Set) bool {
	if !t.selector.Matches(labels.Set(p.Labels)) {
		return false
	}
	_, named := slices.BinarySearch(t.namespaces, p.Namespace)
	return named || t.namespaceSelector.Matches(namespaces[p.Namespace])
}

// A scope is a term whose namespaces are known by name.
type scope struct {
	*term
	everywhere bool
	names      []string // sorted
	// name is the same for scopes that are about the same pods.
	name string
}

func (t *term) in(namespaces map[string]labels.Set) scope {
	s := scope{term: t, everywhere: t.namespaceSelector.Empty(), names: t.namespaces, name: t.name}
	if _, some := t.namespaceSelector.Requirements(); !some || s.everywhere {
		return s
	}
	s.names = slices.Clone(t.namespaces)
	for name, set := range namespaces {
		if t.namespaceSelector.Matches(set) {
			s.names = append(s.names, name)
		}
	}
	slices.Sort(s.names)
	s.names = slices.Compact(s.names)
	s.name += "\x00" + strings.Join(s.names, "\x01")
	return s
}

func (s *scope) covers(p *Pod) bool {
	if !s.everywhere {
		if _, named := slices.BinarySearch(s.names, p.Namespace); !named {
			return false
		}
	}
	return s.selector.Matches(labels.Set(p.Labels))
}

// A termIndex knows the terms of all pods on nodes, and in which domains those pods are: by it a pod
// finds the terms of others that are about it.
type termIndex struct {
	sum
	entries map[string]*entry
	// by files the entries under the label that those have whom they are about; those without such a
	// label under the empty one.
	by map[string][]*entry
	// made counts entries ever made.
	made int
	idle []*entry // may have no pods any more
}

// entry is a term, by name, with the pods that have it.
type entry struct {
	*term
	pods    int
	forbids map[string]int // pods with it as required anti-affinity, by the value of the key
	weights map[string]int // what it adds to a node's score, likewise
}

func newTermIndex() *termIndex {
	x := &termIndex{entries: map[string]*entry{}, by: map[string][]*entry{}}
	x.add = x.tell
	return x
}

func (x *termIndex) tell(n *Node, sign int) {
	for _, p := range n.choosy {
		for _, t := range p.terms.far {
			x.entry(n, t, sign).forbid(n, sign)
		}
		for _, t := range p.terms.near {
			x.entry(n, t, sign).weigh(n, sign*requiredWeight)
		}
		for _, w := range p.terms.liked {
			x.entry(n, w.term, sign).weigh(n, sign*w.weight)
		}
	}
}

func (x *termIndex) entry(n *Node, t *term, sign int) *entry {
	e := x.entries[t.name]
	if e == nil {
		e = &entry{term: t, forbids: map[string]int{}, weights: map[string]int{}}
		x.entries[t.name] = e
		x.by[t.pair] = append(x.by[t.pair], e)
		x.made++
	}
	if e.pods += sign; e.pods == 0 {
		x.idle = append(x.idle, e)
	}
	return e
}

func (e *entry) forbid(n *Node, count int) { bump(e.forbids, n, e.key, count) }
func (e *entry) weigh(n *Node, weight int) { bump(e.weights, n, e.key, weight) }

func bump(counts map[string]int, n *Node, key string, by int) {
	value, ok := n.Labels[key]
	if !ok {
		return
	}
	if counts[value] += by; counts[value] == 0 {
		delete(counts, value)
	}
}

// tidy drops the entries of terms that no pod has any more. Nobody holds one meanwhile.
func (x *termIndex) tidy() {
	for _, e := range x.idle {
		if e.pods != 0 || x.entries[e.name] != e {
			continue
		}
		delete(x.entries, e.name)
		x.by[e.pair] = slices.DeleteFunc(x.by[e.pair], func(o *entry) bool { return o == e })
		if len(x.by[e.pair]) == 0 {
			delete(x.by, e.pair)
		}
	}
	x.idle = nil
}

// about appends the entries that are about p.
func (x *termIndex) about(p *Pod, namespaces map[string]labels.Set, out []*entry) []*entry {
	take := func(pair string) {
		for _, e := range x.by[pair] {
			if e.about(p, namespaces) {
				out = append(out, e)
			}
		}
	}
	take("")
	for key, value := range p.Labels {
		take(key + "=" + value)
	}
	return out
}
