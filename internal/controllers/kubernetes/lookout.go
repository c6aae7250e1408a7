package kubernetes

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/cluster/liveness"
)

const (
	// knockInterval is how often the leader knocks at every server.
	knockInterval = 500 * time.Millisecond
	// patience is how many knocks in a row a server may leave unanswered: packets get lost.
	patience = 3
)

// sight is what was seen of one server.
type sight struct {
	unanswered int
	// deadSince is the lease's renewal that was the last when the server was seen dead; zero
	// for a server that lives.
	deadSince time.Time
}

func (s sight) dead() bool { return !s.deadSince.IsZero() }

// after is the sight after one more knock at a server whose lease was last renewed at renewed.
// A server seen dead comes back when it both answers and has renewed its lease since: one that
// starts again listens before it serves.
func (s sight) after(reply liveness.Reply, renewed time.Time) sight {
	switch reply {
	case liveness.Accepted:
		if s.dead() && !renewed.After(s.deadSince) {
			return s
		}
		return sight{}
	case liveness.Refused:
		return sight{unanswered: s.unanswered, deadSince: renewed}
	}
	s.unanswered++
	if s.unanswered >= patience {
		s.deadSince = renewed
	}
	return s
}

// lookout keeps what was seen of all servers. It is safe for concurrent use; its zero value has
// seen nobody dead.
type lookout struct {
	mu   sync.Mutex
	seen map[netip.AddrPort]sight
}

// present is the servers that were not seen dead.
func (l *lookout) present(servers []server) []netip.AddrPort {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []netip.AddrPort
	for _, s := range servers {
		if !l.seen[s.addr].dead() {
			out = append(out, s.addr)
		}
	}
	return out
}

// note takes the replies of servers, and tells whether that made one of them dead or alive.
// Servers that it does not name are forgotten.
func (l *lookout) note(servers []server, replies []liveness.Reply) (changed bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := make(map[netip.AddrPort]sight, len(servers))
	for i, s := range servers {
		before := l.seen[s.addr]
		next[s.addr] = before.after(replies[i], s.renewed)
		changed = changed || next[s.addr].dead() != before.dead()
	}
	l.seen = next
	return changed
}

// probe knocks at the servers until ctx ends. A new term of leadership has seen nobody.
func (c *controller) probe(ctx context.Context, enqueue func(reconcile.Request)) error {
	c.watch.note(nil, nil)
	tick := time.NewTicker(knockInterval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		leases, err := c.leases(ctx)
		if err != nil {
			continue // the image answers; only a context that ended fails
		}
		servers, _ := alive(leases, c.deps.Clock.Now())
		replies := make([]liveness.Reply, len(servers))
		var knocks sync.WaitGroup
		for i, s := range servers {
			knocks.Go(func() { replies[i] = c.prober.Knock(ctx, s.addr) })
		}
		knocks.Wait()
		if ctx.Err() == nil && c.watch.note(servers, replies) {
			enqueue(reconcile.Request{})
		}
	}
}
