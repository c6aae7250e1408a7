package upgrade

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"barque.dev/internal/run"
)

// A Remote is a machine's Upgrader, from afar.
type Remote interface {
	Status(ctx context.Context) (Status, error)
	Send(ctx context.Context, sum string, program io.Reader) error
	Switch(ctx context.Context, sum string) error
	Back(ctx context.Context) error
}

// A Rollout replaces the program of all machines of a cluster, one at a time.
type Rollout struct {
	// Sum is the program's SHA-256, in hex; Open opens it.
	Sum  string
	Open func() (io.ReadCloser, error)
	// Remote reaches a machine.
	Remote func(Machine) Remote
	// Healthy tells what keeps the cluster from doing without one more machine; nil for nothing.
	Healthy func(ctx context.Context) error
	// Snapshot takes one of the cluster, and says where it is.
	Snapshot func(ctx context.Context) (string, error)
	Say      func(format string, args ...any)
	Pace     Pace
}

// A Pace is the times of a Rollout.
type Pace struct {
	// Machine is how long one may take until it has decided for or against the program; a guard's Within and what it takes to go
	// back must fit.
	Machine time.Duration
	// Heal is how long the cluster may take to be healthy after each machine, and Settle for how long it must stay so.
	Heal, Settle time.Duration
	// Look is the time between two looks.
	Look time.Duration
}

// DefaultPace suits DefaultBounds.
var DefaultPace = Pace{Machine: 6 * time.Minute, Heal: 3 * time.Minute, Settle: 3 * time.Second, Look: 500 * time.Millisecond}

// ErrReverted: a machine runs its old program again.
var ErrReverted = errors.New("it runs the program before again")

// Run upgrades the machines that run another program. Before anything is changed all of them have received the program and
// have found that it runs on them. It stops at the first machine that does not take to it, or after which the cluster is
// not healthy; that machine goes back. Called again, it goes on with those that are left.
func (r Rollout) Run(ctx context.Context, machines []Machine) error {
	pending, err := r.pending(ctx, machines)
	if err != nil {
		return err
	}
	if len(pending) == 0 {
		r.Say("all %d machines run this program", len(machines))
		return nil
	}
	if err := r.await(ctx, "", r.Pace.Heal, r.Pace.Settle, r.Healthy); err != nil {
		return fmt.Errorf("nothing was changed, since the cluster is not well: %w", err)
	}
	where, err := r.Snapshot(ctx)
	if err != nil {
		return fmt.Errorf("nothing was changed, since no snapshot could be taken: %w", err)
	}
	r.Say("snapshot: %s", where)
	for _, m := range pending {
		if err := r.send(ctx, m); err != nil {
			return fmt.Errorf("nothing was changed: %s does not take the program: %w", m.Name, err)
		}
	}
	r.Say("%d machines have the program", len(pending))
	for i, m := range pending {
		if err := r.upgrade(ctx, m); err != nil {
			return fmt.Errorf("%s: %w; %d of %d machines were upgraded: run this again to go on, or `barque upgrade back NAME` to go back", m.Name, err, i, len(pending))
		}
	}
	r.Say("the cluster is upgraded")
	return nil
}

// pending are the machines that run another program, in the order of their turns.
func (r Rollout) pending(ctx context.Context, machines []Machine) ([]Machine, error) {
	var pending []Machine
	for _, m := range Order(machines) {
		status, err := r.Remote(m).Status(ctx)
		switch {
		case err != nil:
			return nil, fmt.Errorf("nothing was changed: %s must answer: %w", m.Name, err)
		case status.Last.Phase == Switching:
			return nil, fmt.Errorf("nothing was changed: %s is being upgraded already: wait for that to end", m.Name)
		case status.Sum != r.Sum:
			pending = append(pending, m)
		}
	}
	return pending, nil
}

func (r Rollout) send(ctx context.Context, m Machine) error {
	program, err := r.Open()
	if err != nil {
		return err
	}
	defer func() { _ = program.Close() }()
	return r.Remote(m).Send(ctx, r.Sum, program)
}

// upgrade gives one machine its turn.
func (r Rollout) upgrade(ctx context.Context, m Machine) error {
	remote := r.Remote(m)
	begin := time.Now()
	if err := remote.Switch(ctx, r.Sum); err != nil {
		return err
	}
	status, err := r.decided(ctx, remote, r.Sum)
	if err != nil {
		return err
	}
	if status.Last.Phase == Reverted {
		return fmt.Errorf("%w: %s", ErrReverted, status.Last.Reason)
	}
	if err := r.await(ctx, "", r.Pace.Heal, r.Pace.Settle, r.Healthy); err != nil {
		if ctx.Err() != nil {
			return err
		}
		r.Say("%s goes back, since the cluster is not well with it: %v", m.Name, err)
		return errors.Join(fmt.Errorf("%w, since the cluster was not well with it: %w", ErrReverted, err), r.back(ctx, remote, status.Last.From))
	}
	r.Say("%s runs %s (%s)", m.Name, status.Running.Barque, time.Since(begin).Round(100*time.Millisecond))
	return nil
}

func (r Rollout) back(ctx context.Context, remote Remote, to Version) error {
	if err := remote.Back(ctx); err != nil {
		return fmt.Errorf("and it could not go back: %w", err)
	}
	return r.await(ctx, "and it has not gone back", r.Pace.Machine, 0, func(ctx context.Context) error {
		status, err := remote.Status(ctx)
		if err == nil && status.Running != to {
			err = fmt.Errorf("it runs %s", status.Running.Barque)
		}
		return err
	})
}

// decided waits until a machine has decided for or against the program.
func (r Rollout) decided(ctx context.Context, remote Remote, sum string) (status Status, err error) {
	err = r.await(ctx, "it has not said whether the program does", r.Pace.Machine, 0, func(ctx context.Context) (err error) {
		if status, err = remote.Status(ctx); err != nil {
			return err
		}
		if p := status.Last.Phase; p != Done && p != Reverted || status.Last.Sum != sum {
			return errors.New("it is at it")
		}
		return nil
	})
	return status, err
}

// await waits until ok returns nil, and does so for as long as settle.
func (r Rollout) await(ctx context.Context, what string, within, settle time.Duration, ok func(context.Context) error) error {
	begin, since := time.Now(), time.Time{}
	for {
		now := time.Now()
		err := ok(ctx)
		if err == nil {
			if since.IsZero() {
				since = now
			}
			if now.Sub(since) >= settle {
				return nil
			}
		} else {
			since = time.Time{}
			if now.Sub(begin) > within {
				if what != "" {
					err = fmt.Errorf("%s within %v: %w", what, within, err)
				}
				return err
			}
		}
		if !run.Pause(ctx, r.Pace.Look) {
			return fmt.Errorf("interrupted; a machine that was at it goes on by itself: %w", context.Cause(ctx))
		}
	}
}
