package detect_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"barque.dev/internal/cluster/detect"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// With an election timeout far beyond the test's patience, only the detector can replace a leader.
func TestReplacesDeadLeader(t *testing.T) {
	c := etcdtest.New(t, 3, func(_ int, cfg *etcd.Config) { cfg.Election = 45 * time.Second; cfg.Heartbeat = 50 * time.Millisecond })
	addresses := make(map[uint64]string)
	stops := make([]func(), 3)
	var mu sync.Mutex
	for i, m := range c.Running() {
		d, err := detect.New(detect.Config{
			Member: m, Listen: "127.0.0.1:0", Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("server", m.Name()),
			AddressOf: func(m etcd.MemberInfo) (string, error) {
				mu.Lock()
				defer mu.Unlock()
				if a, ok := addresses[m.ID]; ok {
					return a, nil
				}
				return "", errors.New("unknown")
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		addresses[m.ID()] = d.Addr().String()
		mu.Unlock()
		ctx, cancel := context.WithCancel(context.Background())
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := d.Run(ctx); err != nil {
				t.Error(err)
			}
		})
		stops[i] = sync.OnceFunc(func() { cancel(); wg.Wait() })
		t.Cleanup(stops[i])
	}
	var leader int
	// The followers have to have connected once.
	etcdtest.Eventually(t, "both followers watch the leader", func(context.Context) error {
		leader = c.Leader()
		mu.Lock()
		defer mu.Unlock()
		return established(addresses[c.Member(leader).ID()], 2)
	})
	stops[leader]()
	c.Crash(leader)
	if next := c.Leader(); next == leader {
		t.Error("the dead member leads")
	}
}

// established looks for n accepted connections at address.
func established(address string, n int) error {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return err
	}
	found, err := connections(host, port)
	if err != nil {
		return err
	}
	if found < n {
		return fmt.Errorf("%d connections to %s", found, address)
	}
	return nil
}

// A follower that alone suspects a living leader changes nothing.
func TestOneSuspicionDeposesNobody(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	leader := c.Leader()
	id := c.Member(leader).ID()
	follower := c.Member((leader + 1) % 3)
	for range 20 {
		if err := follower.ForgetLeader(t.Context(), id); err != nil {
			t.Fatal(err)
		}
		if err := follower.Campaign(t.Context()); err != nil {
			t.Fatal(err)
		}
		etcdtest.Eventually(t, "the follower hears from its leader again", func(context.Context) error {
			if follower.Leader() != id {
				return fmt.Errorf("it follows %x", follower.Leader())
			}
			return nil
		})
	}
	if !c.Member(leader).IsLeader() {
		t.Error("the leader was deposed")
	}
}

func TestBadConfig(t *testing.T) {
	if _, err := detect.New(detect.Config{Listen: "127.0.0.1:0", Interval: time.Second}); err == nil {
		t.Error("an interval beyond the silence")
	}
	if _, err := detect.New(detect.Config{Listen: "300.0.0.1:0"}); err == nil {
		t.Error("a bad address")
	}
}
