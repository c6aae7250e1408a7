package fault

import (
	"context"
	"errors"
	"net/netip"
	"time"
)

// repeated does something again and again from the moment that it strikes until it is healed.
type repeated struct {
	hit
	// once does it once, from the beginning to the end, or until ctx ends.
	once func(ctx context.Context) error
	// after leaves things as they were.
	after func(ctx context.Context) error

	stop  context.CancelFunc
	ended chan error
}

// Strike returns at once.
func (f *repeated) Strike(ctx context.Context) error {
	ctx, f.stop = context.WithCancel(context.WithoutCancel(ctx))
	f.ended = make(chan error, 1)
	go func() {
		for ctx.Err() == nil {
			if err := f.once(ctx); err != nil && ctx.Err() == nil {
				f.ended <- err
				return
			}
		}
		f.ended <- nil
	}()
	return nil
}

func (f *repeated) Heal(ctx context.Context) error {
	var err error
	if f.stop != nil {
		f.stop()
		err = <-f.ended
	}
	return errors.Join(err, f.after(ctx))
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// flapping pulls the leader's cable and puts it back.
func flapping(c Cluster, _ int) Fault {
	m := c.Leader
	return &repeated{
		hit: hit{m},
		once: func(ctx context.Context) error {
			if err := m.SetCable(false); err != nil {
				return err
			}
			_ = sleep(ctx, cableOut)
			if err := m.SetCable(true); err != nil {
				return err
			}
			return sleep(ctx, cableIn)
		},
		after: func(context.Context) error { return m.SetCable(true) },
	}
}

// dropping deletes the virtual IP on the leader's machine, which holds it.
func dropping(c Cluster, _ int) Fault {
	return dropped(c.Leader, c.VIP)
}

func dropped(m Machine, address netip.Addr) Fault {
	return &repeated{
		hit: hit{m},
		once: func(ctx context.Context) error {
			if err := m.DropAddress(address); err != nil {
				return err
			}
			return sleep(ctx, dropEvery)
		},
		after: func(context.Context) error { return nil },
	}
}

// storming kills one server after the other, the leader first. Each is started again at once, and the next is killed
// whether that one is ready or not.
func storming(c Cluster, _ int) Fault {
	victims := all(c, 0)
	next := 0
	return &repeated{
		hit: victims,
		once: func(ctx context.Context) error {
			if err := victims[next%len(victims)].Kill(); err != nil {
				return err
			}
			next++
			pace, cancel := context.WithTimeout(ctx, killEvery)
			defer cancel()
			if err := c.Start(pace); err != nil && pace.Err() == nil {
				return err
			}
			<-pace.Done()
			return nil
		},
		after: c.Start,
	}
}
