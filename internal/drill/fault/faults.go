package fault

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"syscall"
)

// hit is the part of a fault that names machines.
type hit []Machine

func (h hit) Hit() (names []string) {
	for _, m := range h {
		names = append(names, m.String())
	}
	return names
}

// each does something to all machines at the same moment.
func (h hit) each(do func(Machine) error) error {
	errs := make([]error, len(h))
	var wg sync.WaitGroup
	for i, m := range h {
		wg.Go(func() { errs[i] = do(m) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// end ends processes; they are started again.
type end struct {
	hit
	how   func(Machine, context.Context) error
	start func(context.Context) error
}

func ending(how func(Machine, context.Context) error, whom picking) func(Cluster, int) Fault {
	return func(c Cluster, follower int) Fault { return end{whom(c, follower), how, c.Start} }
}

func kill(m Machine, _ context.Context) error { return m.Kill() }

func (f end) Strike(ctx context.Context) error {
	return f.each(func(m Machine) error { return f.how(m, ctx) })
}

func (f end) Heal(ctx context.Context) error { return f.start(ctx) }

// freeze stops the leader's process in the midst of whatever it does.
type freeze struct{ hit }

func freezing(c Cluster, _ int) Fault { return freeze{hit{c.Leader}} }

func (f freeze) Strike(context.Context) error { return f.hit[0].Signal(syscall.SIGSTOP) }

func (f freeze) Heal(context.Context) error { return f.hit[0].Signal(syscall.SIGCONT) }

// cut pulls a cable.
type cut struct{ hit }

func cutting(c Cluster, _ int) Fault { return cut{hit{c.Leader}} }

func (f cut) Strike(context.Context) error { return f.hit[0].SetCable(false) }

func (f cut) Heal(context.Context) error { return f.hit[0].SetCable(true) }

// partition keeps machines from hearing others.
type partition struct {
	hit
	deaf map[Machine][]netip.Addr // and whom each does not hear
}

// splitting parts the leader from its followers, both ways.
func splitting(c Cluster, follower int) Fault {
	f := muting(c, follower).(partition)
	for _, m := range c.Followers {
		f.deaf[c.Leader] = append(f.deaf[c.Leader], m.Address())
	}
	return f
}

// muting keeps the followers from hearing the leader.
func muting(c Cluster, _ int) Fault {
	f := partition{hit{c.Leader}, map[Machine][]netip.Addr{}}
	for _, m := range c.Followers {
		f.deaf[m] = []netip.Addr{c.Leader.Address()}
	}
	return f
}

// bridging cuts the servers into two halves, of which the leader is in one, that do not hear each other; a follower is in neither, and hears and is heard by all.
func bridging(c Cluster, follower int) Fault {
	f := partition{hit{c.Leader}, map[Machine][]netip.Addr{}}
	rest := slices.Delete(slices.Clone(c.Followers), follower, follower+1)
	with := append([]Machine{c.Leader}, rest[:len(rest)/2]...)
	for _, a := range with {
		for _, b := range rest[len(rest)/2:] {
			f.deaf[a] = append(f.deaf[a], b.Address())
			f.deaf[b] = append(f.deaf[b], a.Address())
		}
	}
	return f
}

func (f partition) Strike(context.Context) error {
	return f.all(func(m Machine, from []netip.Addr) error { return m.Deafen(from) })
}

func (f partition) Heal(context.Context) error {
	return f.all(func(m Machine, _ []netip.Addr) error { return m.Deafen(nil) })
}

func (f partition) all(do func(Machine, []netip.Addr) error) error {
	var machines hit
	for m := range f.deaf {
		machines = append(machines, m)
	}
	return machines.each(func(m Machine) error { return do(m, f.deaf[m]) })
}
