package membership_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) { etcdtest.Main(m) }

// A server of the test: a member with its membership running.
type server struct {
	member     *etcd.Member
	membership *membership.Membership
	stop       func() // the whole server, not gracefully
}

func start(t *testing.T, cfg etcd.Config) *server {
	t.Helper()
	cfg.UnsafeNoSync = true
	m, err := etcd.Start(t.Context(), cfg)
	if err != nil {
		t.Error(err)
		return nil
	}
	s := &server{member: m, membership: membership.New(membership.Config{Member: m})}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := s.membership.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	s.stop = sync.OnceFunc(func() { cancel(); wg.Wait(); m.Server().HardStop(); m.Close() })
	t.Cleanup(s.stop)
	return s
}

// member configures a member at a free address.
func member(t *testing.T, name string) etcd.Config {
	t.Helper()
	return etcd.Config{Name: name, DataDir: t.TempDir(), PeerURL: etcdtest.FreeURL(t)}
}

// led waits until somebody leads who may.
func led(t *testing.T, s *server, may func(id uint64) bool) {
	t.Helper()
	etcdtest.Eventually(t, "the right one leads", func(context.Context) error {
		if id := s.member.Leader(); !may(id) {
			return fmt.Errorf("%x leads", id)
		}
		return nil
	})
}

// join joins a new server through another.
func join(t *testing.T, via *server, name, url string) *server {
	t.Helper()
	return joinAs(t, via, etcd.Config{Name: name, DataDir: t.TempDir(), PeerURL: url})
}

func joinAs(t *testing.T, via *server, cfg etcd.Config) *server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	members, err := via.membership.AddLearner(ctx, cfg.Name, cfg.PeerURL)
	if err != nil {
		t.Error(err)
		return nil
	}
	cfg.Existing, cfg.InitialCluster = true, etcd.InitialCluster(members, cfg.Name, cfg.PeerURL)
	return start(t, cfg)
}

func voters(t *testing.T, s *server, n int) {
	t.Helper()
	etcdtest.Eventually(t, fmt.Sprintf("there are %d voting members", n), func(context.Context) error {
		got := 0
		for _, mb := range s.membership.List() {
			if !mb.Learner && mb.Name != "" {
				got++
			}
		}
		if got != n || len(s.membership.List()) != n {
			return fmt.Errorf("%+v", s.membership.List())
		}
		return nil
	})
}

func TestJoinReplaceRemove(t *testing.T) {
	urls := []string{etcdtest.FreeURL(t), etcdtest.FreeURL(t), etcdtest.FreeURL(t)}
	a := start(t, etcd.Config{Name: "a", DataDir: t.TempDir(), PeerURL: urls[0]})

	// Two join at the same time, one of them asking twice.
	if _, err := a.membership.AddLearner(t.Context(), "b", urls[1]); err != nil {
		t.Fatal(err)
	}
	var b, c *server
	var wg sync.WaitGroup
	wg.Go(func() { b = join(t, a, "b", urls[1]) })
	wg.Go(func() { c = join(t, a, "c", urls[2]) })
	wg.Wait()
	if t.Failed() {
		return
	}
	voters(t, a, 3)
	voters(t, c, 3)

	// Names and addresses of the living are theirs, through whichever server one asks.
	if _, err := b.membership.AddLearner(t.Context(), "c", etcdtest.FreeURL(t)); !errors.Is(err, membership.ErrNameTaken) {
		t.Errorf("another c: %v", err)
	}
	if _, err := b.membership.AddLearner(t.Context(), "d", urls[2]); !errors.Is(err, membership.ErrAddressTaken) {
		t.Errorf("d at the address of c: %v", err)
	}

	// c loses its machine and comes back empty, under the same name and address.
	c.stop()
	c = join(t, b, "c", urls[2])
	if t.Failed() {
		return
	}
	voters(t, a, 3)

	// The leader is removed on its own request.
	servers := map[uint64]*server{a.member.ID(): a, b.member.ID(): b, c.member.ID(): c}
	var leader *server
	etcdtest.Eventually(t, "there is a leader", func(context.Context) error {
		if leader = servers[a.member.Leader()]; leader == nil {
			return errors.New("none")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := leader.membership.Remove(ctx, leader.member.Name()); err != nil {
		t.Fatal(err)
	}
	delete(servers, leader.member.ID())
	var rest []*server
	for _, s := range servers {
		voters(t, s, 2)
		rest = append(rest, s)
	}

	// Of two, a living one can't be removed once the other is dead.
	rest[1].stop()
	if err := rest[0].membership.Remove(ctx, rest[0].member.Name()); !errors.Is(err, etcd.ErrQuorum) {
		t.Errorf("removal of the only living server: %v", err)
	}
	if err := rest[0].membership.Remove(ctx, "nobody"); !errors.Is(err, membership.ErrUnknown) {
		t.Errorf("removal of nobody: %v", err)
	}
}

// A member that dies is removed by the leader, whoever that is, and may join again; then it stays.
func TestTheDeadAreRemoved(t *testing.T) {
	urls := []string{etcdtest.FreeURL(t), etcdtest.FreeURL(t), etcdtest.FreeURL(t)}
	servers := []*server{start(t, etcd.Config{Name: "a", DataDir: t.TempDir(), PeerURL: urls[0]})}
	servers = append(servers, join(t, servers[0], "b", urls[1]), join(t, servers[0], "c", urls[2]))
	if t.Failed() {
		return
	}
	voters(t, servers[0], 3)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() { cancel(); wg.Wait() }()
	var mu sync.Mutex
	alive := map[uint64]*server{}
	watch := func(s *server) {
		mu.Lock()
		alive[s.member.ID()] = s
		mu.Unlock()
		wg.Go(func() {
			_ = s.membership.RemoveDead(ctx, membership.WatchConfig{Bounds: membership.Bounds{Remove: time.Second}, Ask: func(ctx context.Context, m etcd.MemberInfo) ([]uint64, error) {
				mu.Lock()
				other := alive[m.ID]
				mu.Unlock()
				if other == nil {
					return nil, errors.New("it does not answer")
				}
				return other.membership.Reached(ctx), nil
			}})
		})
	}
	for _, s := range servers {
		watch(s)
	}
	dead := servers[2]
	mu.Lock()
	delete(alive, dead.member.ID())
	mu.Unlock()
	dead.stop()
	voters(t, servers[0], 2)
	again := join(t, servers[1], "c", urls[2])
	if t.Failed() {
		return
	}
	watch(again)
	voters(t, servers[0], 3)
	voters(t, again, 3)
}
