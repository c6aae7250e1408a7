package fault

import (
	"context"
	"errors"
	"time"
)

// lasting does something to machines that is there until it is undone.
type lasting struct {
	hit
	do, undo func(Machine) error
}

func (f lasting) Strike(context.Context) error { return f.each(f.do) }

func (f lasting) Heal(context.Context) error { return f.each(f.undo) }

func losing(percent int, whom picking) func(Cluster, int) Fault {
	return func(c Cluster, follower int) Fault {
		return lasting{
			whom(c, follower),
			func(m Machine) error { return m.Lose(percent) },
			func(m Machine) error { return m.Lose(0) },
		}
	}
}

func delaying(c Cluster, _ int) Fault {
	return lasting{
		hit{c.Leader},
		func(m Machine) error { return m.Delay(leastDelay, mostDelay) },
		func(m Machine) error { return m.Delay(0, 0) },
	}
}

func slowing(whom picking) func(Cluster, int) Fault {
	return func(c Cluster, follower int) Fault {
		return lasting{
			whom(c, follower),
			func(m Machine) error { return m.Slow(slowWrites) },
			func(m Machine) error { return m.Slow(0) },
		}
	}
}

func shifting(by time.Duration) func(Cluster, int) Fault {
	return func(c Cluster, _ int) Fault {
		return lasting{
			hit{c.Leader},
			func(m Machine) error { return m.ShiftClock(by) },
			func(m Machine) error { return m.ShiftClock(0) },
		}
	}
}

// fill takes the room from a server's disk. Its process ends once it has something to keep, and is started again
// when there is room.
type fill struct {
	hit
	cluster Cluster
}

func filling(whom picking) func(Cluster, int) Fault {
	return func(c Cluster, follower int) Fault { return fill{whom(c, follower), c} }
}

// fillTimeout bounds what is written to a cluster whose leader may be about to end.
const fillTimeout = 2 * time.Second

func (f fill) Strike(ctx context.Context) error {
	if err := f.each(func(m Machine) error { return m.Fill(true) }); err != nil {
		return err
	}
	writing, cancel := context.WithTimeout(ctx, fillTimeout)
	defer cancel()
	if err := f.cluster.Write(writing); err != nil && writing.Err() == nil {
		return err
	}
	return ctx.Err()
}

func (f fill) Heal(ctx context.Context) error {
	return errors.Join(f.each(func(m Machine) error { return m.Fill(false) }), f.cluster.Start(ctx))
}
