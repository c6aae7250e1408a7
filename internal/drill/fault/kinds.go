package fault

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"barque.dev/internal/local"
)

// A Kind of fault.
type Kind struct {
	// Name is what --faults takes, Title what a table shows.
	Name, Title string
	// fault picks the machines; follower is taken modulo their number.
	fault func(c Cluster, follower int) Fault
	// disk tells that each server needs a disk of its own, program that the program's file is replaced.
	disk, program bool
	// can tells why this machine cannot do it, if it can't; nil where every machine can.
	can func() error
}

// Can tells why this machine cannot do such a fault, if it can't.
func (k Kind) Can() error {
	if k.can == nil {
		return nil
	}
	if err := k.can(); err != nil {
		return fmt.Errorf("%s: %w", k.Name, err)
	}
	return nil
}

// On makes a fault of the kind. follower says which follower, where the kind hits one: any number that
// is not negative.
func (k Kind) On(c Cluster, follower int) (Fault, error) {
	if c.Leader == nil || len(c.Followers) < 2 {
		return nil, fmt.Errorf("%s: a drill needs a leader and two followers", k.Name)
	}
	return k.fault(c, follower%len(c.Followers)), nil
}

// picking says whom a kind hits.
type picking func(c Cluster, follower int) hit

func leader(c Cluster, _ int) hit   { return hit{c.Leader} }
func follower(c Cluster, f int) hit { return hit{c.Followers[f]} }
func two(c Cluster, f int) hit      { return hit{c.Leader, c.Followers[f]} }
func all(c Cluster, _ int) hit      { return append(hit{c.Leader}, c.Followers...) }

// How bad it gets: bad enough that a client notices, and the cluster must go on all the same.
const (
	lossOfOne, lossOfAll  = 20, 5 // percent, each way
	leastDelay, mostDelay = 20 * time.Millisecond, 60 * time.Millisecond
	slowWrites            = 20 // a second, of which a commit takes two or three
	clockJump             = time.Hour
	cableOut, cableIn     = 300 * time.Millisecond, 500 * time.Millisecond
	dropEvery, killEvery  = 200 * time.Millisecond, 700 * time.Millisecond
)

// Kinds are all that there are.
func Kinds() []Kind {
	return slices.Concat(processKinds(), networkKinds(), machineKinds())
}

func processKinds() []Kind {
	return []Kind{
		{Name: "kill-leader", Title: "kill -9 of the leader's process", fault: ending(kill, leader)},
		{Name: "kill-follower", Title: "kill -9 of a follower's process", fault: ending(kill, follower)},
		{Name: "kill-two", Title: "kill -9 of the leader's and a follower's process", fault: ending(kill, two)},
		{Name: "kill-all", Title: "kill -9 of all servers' processes", fault: ending(kill, all)},
		{Name: "restart-leader", Title: "planned stop and start of the leader", fault: ending(Machine.Stop, leader)},
		{Name: "restart-follower", Title: "planned stop and start of a follower", fault: ending(Machine.Stop, follower)},
		{Name: "storm", Title: "kill -9 of one server after the other, each started again before the next", fault: storming},
		{Name: "lose-leader", Title: "power off of the leader's machine", fault: ending(Machine.PowerOff, leader)},
		{Name: "freeze-leader", Title: "SIGSTOP of the leader's process", fault: freezing},
	}
}

func networkKinds() []Kind {
	return []Kind{
		{Name: "cut-leader", Title: "the leader's machine is cut off from everybody", fault: cutting},
		{Name: "split-leader", Title: "the leader is cut off from the other servers, not from clients", fault: splitting},
		{Name: "mute-leader", Title: "the other servers do not hear the leader, which hears them", fault: muting},
		{Name: "bridge", Title: "a follower hears all; the leader and the other followers do not hear each other", fault: bridging},
		{Name: "loss-leader", Title: fmt.Sprintf("%d %% of the packets to and from the leader are lost", lossOfOne), fault: losing(lossOfOne, leader)},
		{Name: "loss-all", Title: fmt.Sprintf("each server loses %d %% of its packets, both ways", lossOfAll), fault: losing(lossOfAll, all)},
		{Name: "delay-leader", Title: fmt.Sprintf("packets to and from the leader take %v to %v longer", leastDelay, mostDelay), fault: delaying},
		{Name: "flap-leader", Title: "the leader's cable goes out and in again and again", fault: flapping},
		{Name: "flap-vip", Title: "the virtual IP is deleted on the leader's machine again and again", fault: dropping},
	}
}

func machineKinds() []Kind {
	return []Kind{
		{Name: "fill-leader", Title: "the leader's disk is full", fault: filling(leader), disk: true, can: local.CheckDisks},
		{Name: "fill-follower", Title: "a follower's disk is full", fault: filling(follower), disk: true, can: local.CheckDisks},
		{Name: "slow-leader", Title: fmt.Sprintf("the leader's disk takes %d writes a second", slowWrites), fault: slowing(leader), can: canThrottle},
		{Name: "slow-follower", Title: fmt.Sprintf("a follower's disk takes %d writes a second", slowWrites), fault: slowing(follower), can: canThrottle},
		{Name: "clock-ahead", Title: "the leader's clock jumps an hour ahead, and back", fault: shifting(clockJump), can: canShiftClocks},
		{Name: "clock-behind", Title: "the leader's clock jumps an hour back, and ahead", fault: shifting(-clockJump), can: canShiftClocks},
		{Name: "leave-leader", Title: "the leader leaves the cluster, and joins as a new one", fault: leaving(leader)},
		{Name: "leave-follower", Title: "a follower leaves the cluster, and joins as a new one", fault: leaving(follower)},
		{Name: "replace-follower", Title: "a follower is lost with its disk and removed; a new one takes its name", fault: replacing},
		{Name: "upgrade", Title: "barque upgrade: all servers get another program, one at a time", fault: upgrading, program: true},
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

// ReplaceProgram tells whether any of the kinds replaces the file of the program that the servers run.
func ReplaceProgram(kinds []Kind) bool {
	return slices.ContainsFunc(kinds, func(k Kind) bool { return k.program })
}

// NeedDisks tells whether any of the kinds needs servers that have a disk each.
func NeedDisks(kinds []Kind) bool {
	return slices.ContainsFunc(kinds, func(k Kind) bool { return k.disk })
}
