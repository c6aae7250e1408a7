package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// standby starts a member that joins through another and gets no vote.
func standby(t *testing.T, via *etcd.Member, cfg etcd.Config) *etcd.Member {
	t.Helper()
	members, err := via.AddLearner(t.Context(), cfg.PeerURL)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Existing, cfg.InitialCluster = true, etcd.InitialCluster(members, cfg.Name, cfg.PeerURL)
	m, err := etcd.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	etcdtest.Eventually(t, cfg.Name+" is ready", func(ctx context.Context) error {
		select {
		case <-m.Ready():
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	})
	return m
}

func standbyConfig(t *testing.T, name string) etcd.Config {
	t.Helper()
	return etcd.Config{Name: name, DataDir: t.TempDir(), PeerURL: etcdtest.FreeURL(t), UnsafeNoSync: true, Log: slog.New(slog.DiscardHandler)}
}

// A member without a vote does all that the store asks of one: it writes, reads what was written elsewhere before, and
// is told of changes. It doesn't count for the quorum.
func TestAMemberWithoutAVoteServes(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	cfg := standbyConfig(t, "standby")
	m := standby(t, c.Member(0), cfg)
	if !m.IsLearner() {
		t.Fatal("it votes")
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan string, 10)
	watched := make(chan error, 1)
	go func() {
		watched <- m.Watch(ctx, 1, func(events []*mvccpb.Event) {
			for _, e := range events {
				seen <- string(e.Kv.Key)
			}
		})
	}()
	for i := range 3 {
		there, here := fmt.Sprintf("/there/%d", i), fmt.Sprintf("/here/%d", i)
		revision := put(t, c.Member(0), there, "v")
		if got, err := m.ReadIndex(t.Context()); err != nil || got < revision {
			t.Fatalf("it has read up to %d of %d: %v", got, revision, err)
		}
		if v := get(t, m, there); v != "v" {
			t.Errorf("there is %q", v)
		}
		put(t, m, here, "v")
		if v := get(t, c.Member(0), here); v != "v" {
			t.Errorf("here is %q", v)
		}
		for _, want := range []string{there, here} {
			if got := <-seen; got != want {
				t.Errorf("it was told of %s, not of %s", got, want)
			}
		}
	}
	if id, err := m.LeaseGrant(t.Context(), 60); err != nil || id == 0 {
		t.Errorf("lease %d: %v", id, err)
	}
	m.Close()
	put(t, c.Member(0), "/alone", "v")
	cancel()
	if err := <-watched; err == nil {
		t.Error("the watch ended without a reason")
	}
}

// When all voters are lost, a member that never had a vote goes on with what it has.
func TestRecoverWithoutAVote(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	cfg := standbyConfig(t, "standby")
	m := standby(t, c.Member(0), cfg)
	last := put(t, m, "/k", "v")
	c.Crash(0)
	m.Server().HardStop()
	m.Close()

	revision, err := etcd.Recover(t.Context(), cfg.Name, cfg.DataDir, etcd.Config{UnsafeNoSync: true})
	if err != nil || revision < last+etcd.RevisionGap {
		t.Fatalf("revision %d after %d: %v", revision, last, err)
	}
	again, err := etcd.Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(again.Close)
	etcdtest.Eventually(t, "it leads itself", func(context.Context) error {
		if !again.IsLeader() || again.IsLearner() {
			return errors.New("it does not")
		}
		return nil
	})
	if members := again.Members(); len(members) != 1 || members[0].Learner {
		t.Errorf("%+v", members)
	}
	if v := get(t, again, "/k"); v != "v" {
		t.Errorf("the key is %q", v)
	}
	put(t, again, "/k", "new")
}

// A member whose process stands still is reached, since its kernel accepts connections, and does not respond.
func TestResponding(t *testing.T) {
	frozen, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = frozen.Close() })
	c := etcdtest.New(t, 2, nil)
	m := c.Member(0)
	members, err := m.AddLearner(t.Context(), "http://"+frozen.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.AddLearner(t.Context(), etcdtest.FreeURL(t)); err != nil { // nobody is there
		t.Fatal(err)
	}
	stands := uint64(0)
	for _, mb := range members {
		if mb.Name == "" {
			stands = mb.ID
		}
	}
	want := map[uint64]bool{m.ID(): true, c.Member(1).ID(): true}
	etcdtest.Eventually(t, "two respond", func(ctx context.Context) error {
		if got := m.Responding(ctx); len(got) != 2 || !got[m.ID()] || !got[c.Member(1).ID()] {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
	want[stands] = true
	etcdtest.Eventually(t, "three are reached", func(ctx context.Context) error {
		if got := m.Reachable(ctx); len(got) != 3 || !got[stands] {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}
