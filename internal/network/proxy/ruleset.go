package proxy

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// State is what the kernel's table holds of services, by name and key.
type State struct {
	Chains   map[string]bool
	Affinity map[string]bool
	Elements map[ElementKey]string // to the name of a chain
	Hairpin  map[netip.Addr]bool
}

// NewState returns the state of an empty table.
func NewState() *State {
	return &State{
		Chains:   map[string]bool{},
		Affinity: map[string]bool{},
		Elements: map[ElementKey]string{},
		Hairpin:  map[netip.Addr]bool{},
	}
}

// Batch is a difference to apply to the table. Chains that others go to come first among those
// to add and last among those to delete.
type Batch struct {
	AddAffinity    []AffinitySet
	AddChains      []Chain
	DeleteElements []ElementKey
	AddElements    []Element
	DeleteHairpin  []netip.Addr
	AddHairpin     []netip.Addr
	DeleteChains   []string
	DeleteAffinity []string
}

// Empty says whether there is nothing to do.
func (b Batch) Empty() bool { return b.Len() == 0 }

// Len is the number of things to change.
func (b Batch) Len() int {
	return len(b.AddAffinity) + len(b.AddChains) + len(b.DeleteElements) + len(b.AddElements) +
		len(b.DeleteHairpin) + len(b.AddHairpin) + len(b.DeleteChains) + len(b.DeleteAffinity)
}

// Apply changes the state as the kernel changes the table.
func (s *State) Apply(b Batch) {
	for _, a := range b.AddAffinity {
		s.Affinity[a.Name] = true
	}
	for _, c := range b.AddChains {
		s.Chains[c.Name] = true
	}
	for _, k := range b.DeleteElements {
		delete(s.Elements, k)
	}
	for _, e := range b.AddElements {
		s.Elements[e.Key] = e.Chain
	}
	for _, a := range b.DeleteHairpin {
		delete(s.Hairpin, a)
	}
	for _, a := range b.AddHairpin {
		s.Hairpin[a] = true
	}
	for _, c := range b.DeleteChains {
		delete(s.Chains, c)
	}
	for _, a := range b.DeleteAffinity {
		delete(s.Affinity, a)
	}
}

// Ruleset is the union of the rules of all owners (services, and the node's host ports). Where two claim
// the same element, whose own address it is has it; of two services with one external address and port, the first by
// name.
// It is not safe for concurrent use.
type Ruleset struct {
	owners   map[string]Rules
	chains   map[string]Chain
	affinity map[string]AffinitySet
	claims   map[ElementKey][]claim // in order: the first has it
	hairpin  map[netip.Addr]int     // number of owners

	// what has been touched since the last Clean
	dirtyChains   map[string]bool
	dirtyAffinity map[string]bool
	dirtyElements map[ElementKey]bool
	dirtyHairpin  map[netip.Addr]bool
}

type claim struct {
	owner, chain string
	foreign      bool
}

// compareClaims orders claims to one element: no external address of somebody else's leads traffic away from who has it.
func compareClaims(a, b claim) int {
	switch {
	case a.foreign == b.foreign:
		return strings.Compare(a.owner, b.owner)
	case a.foreign:
		return 1
	}
	return -1
}

// NewRuleset returns a ruleset without owners.
func NewRuleset() *Ruleset {
	r := &Ruleset{
		owners:   map[string]Rules{},
		chains:   map[string]Chain{},
		affinity: map[string]AffinitySet{},
		claims:   map[ElementKey][]claim{},
		hairpin:  map[netip.Addr]int{},
	}
	r.Clean()
	return r
}

// Clean forgets what has been touched: the kernel has it.
func (r *Ruleset) Clean() {
	r.dirtyChains = map[string]bool{}
	r.dirtyAffinity = map[string]bool{}
	r.dirtyElements = map[ElementKey]bool{}
	r.dirtyHairpin = map[netip.Addr]bool{}
}

// Set replaces the rules of an owner and returns the former ones. Empty rules remove the owner.
func (r *Ruleset) Set(owner string, next Rules) Rules {
	before := r.owners[owner]
	r.remove(owner, before)
	if len(next.Elements) == 0 && len(next.Chains) == 0 && next.Health == nil {
		delete(r.owners, owner)
		return before
	}
	r.owners[owner] = next
	for _, c := range next.Chains {
		r.chains[c.Name] = c
		r.dirtyChains[c.Name] = true
	}
	for _, a := range next.Affinity {
		r.affinity[a.Name] = a
		r.dirtyAffinity[a.Name] = true
	}
	for _, e := range next.Elements {
		r.dirtyElements[e.Key] = true
		claims, c := r.claims[e.Key], claim{owner: owner, chain: e.Chain, foreign: e.Foreign}
		at, have := slices.BinarySearchFunc(claims, c, compareClaims)
		if have {
			continue // a service lists the same address twice
		}
		r.claims[e.Key] = slices.Insert(claims, at, c)
	}
	for _, a := range next.Hairpin {
		r.hairpin[a]++
		r.dirtyHairpin[a] = true
	}
	return before
}

func (r *Ruleset) remove(owner string, rules Rules) {
	for _, c := range rules.Chains {
		delete(r.chains, c.Name)
		r.dirtyChains[c.Name] = true
	}
	for _, a := range rules.Affinity {
		delete(r.affinity, a.Name)
		r.dirtyAffinity[a.Name] = true
	}
	for _, e := range rules.Elements {
		r.dirtyElements[e.Key] = true
		claims := slices.DeleteFunc(r.claims[e.Key], func(c claim) bool { return c.owner == owner })
		if len(claims) == 0 {
			delete(r.claims, e.Key)
		} else {
			r.claims[e.Key] = claims
		}
	}
	for _, a := range rules.Hairpin {
		r.dirtyHairpin[a] = true
		if r.hairpin[a]--; r.hairpin[a] == 0 {
			delete(r.hairpin, a)
		}
	}
}

// Rules returns the rules of an owner.
func (r *Ruleset) Rules(owner string) Rules { return r.owners[owner] }

// String lists the rules of all chains and all elements, one a line, in nft-like syntax and in a fixed
// order.
func (r *Ruleset) String() string {
	var b strings.Builder
	for _, name := range slices.SortedFunc(maps.Keys(r.chains), compareChains) {
		for _, rule := range r.chains[name].Rules {
			fmt.Fprintf(&b, "%s: %s\n", name, rule)
		}
	}
	for _, key := range slices.SortedFunc(maps.Keys(r.claims), compareKeys) {
		fmt.Fprintf(&b, "%s : goto %s\n", key, r.claims[key][0].chain)
	}
	return b.String()
}

// Changes plans how to bring have in line with what was touched since the last Clean.
func (r *Ruleset) Changes(have *State) Batch {
	return r.diff(have, r.dirtyChains, r.dirtyAffinity, r.dirtyElements, r.dirtyHairpin)
}

// Diff plans how to bring all of have in line with the ruleset.
func (r *Ruleset) Diff(have *State) Batch {
	chains, affinity := maps.Clone(have.Chains), maps.Clone(have.Affinity)
	for name := range r.chains {
		chains[name] = true
	}
	for name := range r.affinity {
		affinity[name] = true
	}
	elements := map[ElementKey]bool{}
	for key := range have.Elements {
		elements[key] = true
	}
	for key := range r.claims {
		elements[key] = true
	}
	hairpin := maps.Clone(have.Hairpin)
	for a := range r.hairpin {
		hairpin[a] = true
	}
	return r.diff(have, chains, affinity, elements, hairpin)
}

func (r *Ruleset) diff(have *State, chains, affinity map[string]bool, elements map[ElementKey]bool, hairpin map[netip.Addr]bool) Batch {
	var b Batch
	b.AddChains, b.DeleteChains = changes(chains, r.chains, have.Chains)
	b.AddAffinity, b.DeleteAffinity = changes(affinity, r.affinity, have.Affinity)
	for key := range elements {
		chain, present := have.Elements[key]
		claims := r.claims[key]
		if len(claims) > 0 && present && claims[0].chain == chain {
			continue
		}
		if present {
			b.DeleteElements = append(b.DeleteElements, key)
		}
		if len(claims) > 0 {
			b.AddElements = append(b.AddElements, Element{Key: key, Chain: claims[0].chain})
		}
	}
	for a := range hairpin {
		switch wanted := r.hairpin[a] > 0; {
		case wanted && !have.Hairpin[a]:
			b.AddHairpin = append(b.AddHairpin, a)
		case !wanted && have.Hairpin[a]:
			b.DeleteHairpin = append(b.DeleteHairpin, a)
		}
	}
	b.order()
	return b
}

// changes tells, of what has one of the names, what is wanted but not there, and what the other way
// round.
func changes[T any](names map[string]bool, want map[string]T, have map[string]bool) (missing []T, surplus []string) {
	for name := range names {
		switch wanted, ok := want[name]; {
		case ok && !have[name]:
			missing = append(missing, wanted)
		case !ok && have[name]:
			surplus = append(surplus, name)
		}
	}
	return missing, surplus
}

func (b *Batch) order() {
	slices.SortFunc(b.AddAffinity, func(x, y AffinitySet) int { return strings.Compare(x.Name, y.Name) })
	slices.SortFunc(b.AddChains, func(x, y Chain) int { return compareChains(x.Name, y.Name) })
	slices.SortFunc(b.DeleteChains, func(x, y string) int { return compareChains(y, x) })
	slices.Sort(b.DeleteAffinity)
	slices.SortFunc(b.DeleteElements, compareKeys)
	slices.SortFunc(b.AddElements, func(x, y Element) int { return compareKeys(x.Key, y.Key) })
	slices.SortFunc(b.AddHairpin, netip.Addr.Compare)
	slices.SortFunc(b.DeleteHairpin, netip.Addr.Compare)
}

// compareChains orders chains so that each goes only to those before it.
func compareChains(a, b string) int {
	return cmp.Or(cmp.Compare(depth(a), depth(b)), strings.Compare(a, b))
}

func depth(chain string) int {
	kind, _, _ := strings.Cut(chain, "/")
	return slices.Index([]string{"hostport", "endpoint", "service", "internal", "external", "guard"}, kind)
}

func compareKeys(a, b ElementKey) int {
	return cmp.Or(strings.Compare(string(a.Map), string(b.Map)), a.Addr.Compare(b.Addr),
		cmp.Compare(a.Protocol, b.Protocol), cmp.Compare(a.Port, b.Port))
}
