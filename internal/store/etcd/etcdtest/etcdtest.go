// Package etcdtest starts etcd clusters in the process of a test.
package etcdtest

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"barque.dev/internal/store/etcd"
)

// patience bounds everything that a test waits for here.
const patience = 30 * time.Second

// FreeURL returns an http URL on loopback whose port was free a moment ago.
func FreeURL(tb testing.TB) string {
	tb.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

// A Cluster is some members in this process.
type Cluster struct {
	tb testing.TB

	mu      sync.Mutex
	members []*etcd.Member
	configs []etcd.Config
}

// New starts n members, each joined as a learner and promoted, and waits until all are ready. tune
// may change each configuration. What still runs at the test's end is stopped.
func New(tb testing.TB, n int, tune func(i int, cfg *etcd.Config)) *Cluster {
	tb.Helper()
	c := &Cluster{tb: tb}
	tb.Cleanup(c.stopAll)
	for i := range n {
		cfg := etcd.Config{
			Name:         fmt.Sprintf("m%d", i),
			DataDir:      tb.TempDir(),
			PeerURL:      FreeURL(tb),
			UnsafeNoSync: true,
			Log:          slog.New(slog.DiscardHandler),
		}
		if tune != nil {
			tune(i, &cfg)
		}
		if i > 0 {
			members, err := c.members[0].AddLearner(tb.Context(), cfg.PeerURL)
			if err != nil {
				tb.Fatal(err)
			}
			cfg.Existing, cfg.InitialCluster = true, etcd.InitialCluster(members, cfg.Name, cfg.PeerURL)
		}
		c.configs = append(c.configs, cfg)
		c.members = append(c.members, nil)
		c.Start(i)
		if i > 0 {
			c.promote(i, 0)
		}
	}
	return c
}

// Join has member i, whose data directory is empty again, join anew through member via, and get a vote.
func (c *Cluster) Join(i, via int) *etcd.Member {
	c.tb.Helper()
	cfg := &c.configs[i]
	members, err := c.Member(via).AddLearner(c.tb.Context(), cfg.PeerURL)
	if err != nil {
		c.tb.Fatal(err)
	}
	cfg.Existing, cfg.InitialCluster = true, etcd.InitialCluster(members, cfg.Name, cfg.PeerURL)
	m := c.Start(i)
	c.promote(i, via)
	return m
}

func (c *Cluster) promote(i, via int) {
	c.tb.Helper()
	Eventually(c.tb, fmt.Sprintf("member %d is promoted", i), func(ctx context.Context) error {
		return c.members[via].Promote(ctx, c.members[i].ID())
	})
	Eventually(c.tb, fmt.Sprintf("member %d votes", i), func(context.Context) error {
		if c.members[i].IsLearner() {
			return fmt.Errorf("still a learner")
		}
		return nil
	})
}

// Begin starts member i, from its data directory if it has one.
func (c *Cluster) Begin(i int) *etcd.Member {
	c.tb.Helper()
	m, err := etcd.Start(c.tb.Context(), c.configs[i])
	if err != nil {
		c.tb.Fatal(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.members[i] = m
	return m
}

// Start starts member i, from its data directory if it has one, and waits until it is ready.
func (c *Cluster) Start(i int) *etcd.Member {
	c.tb.Helper()
	m := c.Begin(i)
	select {
	case <-m.Ready():
	case <-time.After(patience):
		c.tb.Fatalf("member %d is not ready", i)
	}
	return m
}

// Member returns member i, or nil when it is stopped.
func (c *Cluster) Member(i int) *etcd.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.members[i]
}

// Running lists the members that run.
func (c *Cluster) Running() []*etcd.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []*etcd.Member
	for _, m := range c.members {
		if m != nil {
			list = append(list, m)
		}
	}
	return list
}

// Stop stops member i gracefully.
func (c *Cluster) Stop(i int) {
	if m := c.forget(i); m != nil {
		m.Close()
	}
}

// Crash stops member i without handing leadership over, as far as that goes in one process.
func (c *Cluster) Crash(i int) {
	if m := c.forget(i); m != nil {
		m.Server().HardStop()
		m.Close()
	}
}

func (c *Cluster) forget(i int) *etcd.Member {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.members[i]
	c.members[i] = nil
	return m
}

func (c *Cluster) stopAll() {
	var wg sync.WaitGroup
	for i := range c.members {
		wg.Go(func() { c.Crash(i) })
	}
	wg.Wait()
}

// Leader waits for a leader that all running members agree on, and returns its index.
func (c *Cluster) Leader() int {
	c.tb.Helper()
	leader := -1
	Eventually(c.tb, "there is one leader", func(context.Context) error {
		var id uint64
		for _, m := range c.Running() {
			if l := m.Leader(); l == 0 || (id != 0 && l != id) {
				return fmt.Errorf("%s follows %x, others %x", m.Name(), l, id)
			} else {
				id = l
			}
		}
		c.mu.Lock()
		defer c.mu.Unlock()
		for i, m := range c.members {
			if m != nil && m.ID() == id {
				leader = i
				return nil
			}
		}
		return fmt.Errorf("leader %x does not run", id)
	})
	return leader
}

// Eventually tries f until it succeeds, and fails the test when that takes too long.
func Eventually(tb testing.TB, what string, f func(ctx context.Context) error) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(tb.Context(), patience)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("waited until %s: %v", what, err)
		}
	}
}

// Main runs a package's tests and looks for goroutines that they left. Not counted are connections
// between members, which etcd leaves to their read timeout of some seconds when it stops.
func Main(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreAnyFunction("net/http.(*conn).serve"),
		goleak.IgnoreAnyFunction("net/http.(*connReader).backgroundRead"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).readLoop"),
		goleak.IgnoreAnyFunction("net/http.(*persistConn).writeLoop"),
	)
}
