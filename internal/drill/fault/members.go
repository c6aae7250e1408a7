package fault

import (
	"context"
)

// leave has a server leave the cluster by its own command; healing brings a new one of its name in its place.
type leave struct {
	hit
	cluster Cluster
}

func leaving(whom picking) func(Cluster, int) Fault {
	return func(c Cluster, follower int) Fault { return leave{whom(c, follower), c} }
}

func (f leave) Strike(ctx context.Context) error { return f.cluster.Leave(ctx, f.hit[0]) }

func (f leave) Heal(ctx context.Context) error { return f.cluster.joinAnew(ctx, f.hit[0]) }

// replace loses a follower for good: its machine goes with all that it kept, and the others are told so.
type replace struct {
	hit
	cluster Cluster
}

func replacing(c Cluster, follower int) Fault { return replace{hit{c.Followers[follower]}, c} }

func (f replace) Strike(ctx context.Context) error {
	if err := f.hit[0].Wipe(ctx); err != nil {
		return err
	}
	return f.cluster.Remove(ctx, f.hit[0])
}

func (f replace) Heal(ctx context.Context) error { return f.cluster.joinAnew(ctx, f.hit[0]) }

// upgrade replaces the servers' program. Whatever came of it, the cluster must be well with what runs then.
type upgrade struct {
	hit
	cluster Cluster
}

func upgrading(c Cluster, follower int) Fault { return upgrade{all(c, follower), c} }

func (f upgrade) Strike(ctx context.Context) error { return f.cluster.Upgrade(ctx) }

func (f upgrade) Heal(ctx context.Context) error { return f.cluster.Start(ctx) }

// joinAnew makes a stranger of a machine and has it join. Before all vote again, the next fault would find fewer servers
// that may be lost than it counts on.
func (c Cluster) joinAnew(ctx context.Context, m Machine) error {
	if err := m.Wipe(ctx); err != nil {
		return err
	}
	if err := c.Start(ctx); err != nil {
		return err
	}
	return c.Voting(ctx)
}
