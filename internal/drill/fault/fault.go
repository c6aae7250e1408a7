// Package fault is what a drill does to a cluster: real signals, real cables, real packet filters.
//
// A [Kind] names a fault and says whom it hits by role: the leader, a follower, several. A [Fault] is one
// kind with the machines that have these roles now; it strikes once and is healed once. A [Plan] is an
// endless sequence of steps that follows from a seed alone.
package fault

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// A Machine is what a fault may do to a server's machine.
type Machine interface {
	fmt.Stringer
	// Kill ends the server's process at once, Stop by asking it to; PowerOff ends all processes and takes
	// the cable away.
	Kill() error
	Stop(ctx context.Context) error
	PowerOff(ctx context.Context) error
	Signal(s syscall.Signal) error
	// SetCable pulls the machine's plug, or puts it back.
	SetCable(in bool) error
	// Deafen drops everything that arrives from the addresses, and nothing again for none.
	Deafen(from []netip.Addr) error
	Address() netip.Addr
}

// A Cluster is who has which role, as of now.
type Cluster struct {
	Leader Machine
	// Followers are in the order of their names.
	Followers []Machine
	// Start starts every server that does not run, and returns when all answer.
	Start func(ctx context.Context) error
}

// A Fault has machines to hit.
type Fault interface {
	// Strike returns once the fault is there.
	Strike(ctx context.Context) error
	// Heal takes it away, also if Strike failed half-way. The cluster need not be well again when
	// it returns.
	Heal(ctx context.Context) error
	// Hit names the machines.
	Hit() []string
}

// A Kind of fault.
type Kind struct {
	// Name is what --faults takes, Title what a table shows.
	Name, Title string
	// fault picks the machines; follower is taken modulo their number.
	fault func(c Cluster, follower int) Fault
}

// On makes a fault of the kind. follower says which follower, where the kind hits one: any number that
// is not negative.
func (k Kind) On(c Cluster, follower int) (Fault, error) {
	if c.Leader == nil || len(c.Followers) < 2 {
		return nil, fmt.Errorf("%s: a drill needs a leader and two followers", k.Name)
	}
	return k.fault(c, follower%len(c.Followers)), nil
}

// Kinds are all that there are.
func Kinds() []Kind {
	leader := func(c Cluster, _ int) []Machine { return []Machine{c.Leader} }
	one := func(c Cluster, f int) []Machine { return []Machine{c.Followers[f]} }
	two := func(c Cluster, f int) []Machine { return []Machine{c.Leader, c.Followers[f]} }
	all := func(c Cluster, _ int) []Machine { return append([]Machine{c.Leader}, c.Followers...) }
	return []Kind{
		{"kill-leader", "kill -9 of the leader's process", ending(kill, leader)},
		{"kill-follower", "kill -9 of a follower's process", ending(kill, one)},
		{"kill-two", "kill -9 of the leader's and a follower's process", ending(kill, two)},
		{"kill-all", "kill -9 of all servers' processes", ending(kill, all)},
		{"restart-leader", "planned stop and start of the leader", ending(Machine.Stop, leader)},
		{"restart-follower", "planned stop and start of a follower", ending(Machine.Stop, one)},
		{"lose-leader", "power off of the leader's machine", ending(Machine.PowerOff, leader)},
		{"freeze-leader", "SIGSTOP of the leader's process", freezing},
		{"cut-leader", "the leader's machine is cut off from everybody", cutting},
		{"split-leader", "the leader is cut off from the other servers, not from clients", splitting},
		{"mute-leader", "the other servers do not hear the leader, which hears them", muting},
	}
}

// Choose returns the kinds that are in a list of names, in the order of [Kinds]; all for an empty list.
func Choose(names []string) ([]Kind, error) {
	kinds := Kinds()
	if len(names) == 0 {
		return kinds, nil
	}
	var known []string
	for _, k := range kinds {
		known = append(known, k.Name)
	}
	for _, name := range names {
		if !slices.Contains(known, name) {
			return nil, fmt.Errorf("there is no fault %q: choose of %s", name, strings.Join(known, ", "))
		}
	}
	return slices.DeleteFunc(kinds, func(k Kind) bool { return !slices.Contains(names, k.Name) }), nil
}
