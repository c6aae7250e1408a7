// Package fault is what a drill does to a cluster: real signals, cables and packet filters, real disks that are
// full or slow, clocks that jump, servers that leave and come.
//
// A [Kind] names a fault and says whom it hits by role: the leader, a follower, several. A [Fault] is one
// kind with the machines that have these roles now; it strikes once and is healed once. A [Plan] is an
// endless sequence of steps that follows from a seed alone.
package fault

import (
	"context"
	"fmt"
	"net/netip"
	"syscall"
	"time"
)

// A Machine is what a fault may do to a server's machine. Whatever lasts is taken back by a second call, which
// also does no harm where the first one was never made, or the machine was started anew meanwhile.
type Machine interface {
	fmt.Stringer
	Address() netip.Addr
	Process
	Cable
	Disk
}

// Process is what may happen to the server's process, and to the machine that it runs on.
type Process interface {
	// Kill ends the server's process at once, Stop by asking it to; PowerOff ends all processes and takes
	// the cable away.
	Kill() error
	Stop(ctx context.Context) error
	PowerOff(ctx context.Context) error
	Signal(s syscall.Signal) error
	// ShiftClock has the process see a wall clock that is so far ahead, or behind, of the machine's; 0 the machine's own.
	// A process that is started later sees the machine's own. Clocks that only go on, by which time is measured, are as they were.
	ShiftClock(by time.Duration) error
}

// Cable is what may happen to a machine's packets.
type Cable interface {
	// SetCable pulls the machine's plug, or puts it back.
	SetCable(in bool) error
	// Deafen drops everything that arrives from the addresses, and nothing again for none.
	Deafen(from []netip.Addr) error
	// Lose drops so many of a hundred packets that arrive and as many of those that leave, by chance.
	Lose(percent int) error
	// Delay keeps every packet to and from the machine for least to most, by chance; two times of 0 end it. Packets keep
	// their order.
	Delay(least, most time.Duration) error
	// DropAddress takes an address off the machine, as if somebody had deleted it.
	DropAddress(a netip.Addr) error
}

// Disk is what may happen to what a machine keeps.
type Disk interface {
	// Fill takes all the room on the disk, or gives it back.
	Fill(full bool) error
	// Slow has the server's process write no more than so many times a second; 0 is as fast as the disk is.
	Slow(writesPerSecond int) error
	// Wipe ends everything on the machine and removes all that it kept: who starts it next is a stranger.
	Wipe(ctx context.Context) error
}

// A Cluster is who has which role, as of now, and what can be done through its API.
type Cluster struct {
	Leader Machine
	// Followers are in the order of their names.
	Followers []Machine
	// VIP is the virtual IP.
	VIP netip.Addr
	// Start starts every server that does not run, those anew that were wiped, and returns when all are ready.
	Start func(ctx context.Context) error
	// Voting returns when every server has a vote.
	Voting func(ctx context.Context) error
	// Write writes so much that a server without room on its disk cannot keep it. It need not succeed.
	Write func(ctx context.Context) error
	// Leave has a machine leave the cluster, by its own command; Remove takes one out that is gone, through
	// the others.
	Leave, Remove func(ctx context.Context, m Machine) error
	// Upgrade replaces the program of all servers, one after the other, by the command for that.
	Upgrade func(ctx context.Context) error
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
