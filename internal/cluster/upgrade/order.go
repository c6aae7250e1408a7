package upgrade

import (
	"cmp"
	"slices"
)

// A Machine is one whose program is to be replaced.
type Machine struct {
	Name   string
	Server bool
	Leads  bool
}

// Order sorts machines into the order in which they are switched, one at a time: servers before agents, since an
// agent must not be newer than a server that it speaks to; the one that leads last of the servers, so that leadership moves
// once, to one that has been switched.
func Order(machines []Machine) []Machine {
	rank := func(m Machine) int {
		switch {
		case !m.Server:
			return 2
		case m.Leads:
			return 1
		}
		return 0
	}
	return slices.SortedFunc(slices.Values(machines), func(a, b Machine) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Name, b.Name))
	})
}
