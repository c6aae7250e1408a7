package leadership_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/cluster/leadership"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) { etcdtest.Main(m) }

// A server of the test: what it published and the fenced contexts that it was given.
type server struct {
	name  string
	table *store.Table
	l     *leadership.Leadership
	began chan context.Context // one for each call of lead

	mu        sync.Mutex
	published []int32
}

// serve runs a store and follows leadership until the test ends or stop is called.
func serve(t *testing.T, backend store.Backend, cfg leadership.Config) (srv *server, stop func()) {
	t.Helper()
	srv = &server{name: cfg.Name, began: make(chan context.Context, 10)}
	cfg.Publish = func(ctx context.Context, holder string, acquired time.Time, transitions int32) error {
		if _, fenced := store.FenceFrom(ctx); !fenced || holder != srv.name || acquired.IsZero() {
			t.Errorf("published %q at %v, fenced %v", holder, acquired, fenced)
		}
		srv.mu.Lock()
		defer srv.mu.Unlock()
		srv.published = append(srv.published, transitions)
		return nil
	}
	s, err := store.Open(t.Context(), store.Config{Backend: backend, CompactEvery: -1})
	if err != nil {
		t.Fatal(err)
	}
	if srv.table, err = s.Register(store.Schema{
		Prefix: "/registry/things/",
		Decode: func([]byte, int64) (runtime.Object, error) { return &unstructured.Unstructured{}, nil },
	}); err != nil {
		t.Fatal(err)
	}
	if srv.l, err = leadership.New(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = s.Run(ctx) })
	wg.Go(func() {
		if err := srv.l.Follow(ctx, func(ctx context.Context) error {
			if !srv.l.Leading() {
				t.Error("lead is called while not leading")
			}
			srv.began <- ctx
			<-ctx.Done()
			return ctx.Err()
		}); err != nil {
			t.Error(err)
		}
	})
	stop = sync.OnceFunc(func() { cancel(); wg.Wait() })
	t.Cleanup(stop)
	return srv, stop
}

func (s *server) lead(t *testing.T) context.Context {
	t.Helper()
	select {
	case ctx := <-s.began:
		return ctx
	case <-time.After(20 * time.Second):
		t.Fatalf("%s does not lead", s.name)
		return nil
	}
}

func (s *server) write(ctx context.Context, name string) error {
	_, err := s.table.Create(ctx, store.Key{Name: name}, []byte(s.name), store.WriteOptions{})
	return err
}

func TestFollowsRaft(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	var servers []*server
	var stops []func()
	for _, m := range c.Running() {
		s, stop := serve(t, m, leadership.Config{Name: m.Name(), Member: m})
		servers, stops = append(servers, s), append(stops, stop)
	}
	first := c.Leader()
	old := servers[first].lead(t)
	if err := servers[first].write(old, "a"); err != nil {
		t.Fatal(err)
	}

	// A planned move.
	second := (first + 1) % 3
	if err := c.Member(first).MoveLeader(t.Context(), c.Member(second).ID()); err != nil {
		t.Fatal(err)
	}
	ctx := servers[second].lead(t)
	select {
	case <-old.Done():
	case <-time.After(5 * time.Second):
		t.Fatal("the old leader goes on")
	}
	if err := servers[second].write(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	// Had the old leader not noticed, its writes would be refused all the same.
	if err := servers[first].write(context.WithoutCancel(old), "c"); !errors.Is(err, store.ErrFenced) {
		t.Errorf("write of a deposed leader: %v", err)
	}

	// A crash.
	stops[second]()
	c.Crash(second)
	third := c.Leader()
	ctx = servers[third].lead(t)
	if err := servers[third].write(ctx, "d"); err != nil {
		t.Fatal(err)
	}
	servers[third].mu.Lock()
	defer servers[third].mu.Unlock()
	if p := servers[third].published; len(p) == 0 || p[len(p)-1] != 2 {
		t.Errorf("published transitions %v, want 2 at last", p)
	}
	for i, s := range servers {
		if s.l.Leading() != (i == third) {
			t.Errorf("%s leads: %v", s.name, s.l.Leading())
		}
	}
}

// When somebody removes the fence, its leader notices, stops, and takes it again.
func TestFenceThatIsTakenAway(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	m := c.Member(0)
	s, _ := serve(t, m, leadership.Config{Name: "n", Member: m})
	ctx := s.lead(t)
	fence, ok := store.FenceFrom(ctx)
	if !ok {
		t.Fatal("no fence")
	}
	if _, err := m.Server().DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: []byte(fence.Key)}); err != nil {
		t.Fatal(err)
	}
	if err := s.write(ctx, "a"); !errors.Is(err, store.ErrFenced) {
		t.Errorf("write without the fence: %v", err)
	}
	again := s.lead(t)
	if ctx.Err() == nil {
		t.Error("two contexts of leadership live")
	}
	if err := s.write(again, "a"); err != nil {
		t.Error(err)
	}
}

// What the leader runs is started again when it ends.
func TestLeadIsCalledAgain(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	l, err := leadership.New(leadership.Config{Name: "n", Member: c.Member(0)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var calls atomic.Int32
	if err := l.Follow(ctx, func(context.Context) error {
		if calls.Add(1) == 3 {
			cancel()
		}
		return errors.New("failed")
	}); err != nil || calls.Load() != 3 || l.Leading() {
		t.Errorf("Follow: %v after %d calls, leading %v", err, calls.Load(), l.Leading())
	}
}

func TestElectionOnRemote(t *testing.T) {
	client := etcdtest.FreeURL(t)
	etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.ClientListen = client })
	var servers []*server
	var stops []func()
	for i := range 2 {
		r, err := etcd.Dial(t.Context(), etcd.RemoteConfig{Endpoints: []string{client}})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(r.Close)
		s, stop := serve(t, r, leadership.Config{Name: fmt.Sprint(i), Remote: r})
		servers, stops = append(servers, s), append(stops, stop)
	}
	first := 0
	var old context.Context
	select {
	case old = <-servers[0].began:
	case old = <-servers[1].began:
		first = 1
	case <-time.After(20 * time.Second):
		t.Fatal("nobody leads")
	}
	if err := servers[first].write(old, "a"); err != nil {
		t.Fatal(err)
	}
	second := 1 - first
	select {
	case <-servers[second].began:
		t.Fatal("both lead")
	default:
	}
	stops[first]()
	ctx := servers[second].lead(t)
	if err := servers[second].write(ctx, "b"); err != nil {
		t.Fatal(err)
	}
	if err := servers[second].write(store.WithFence(t.Context(), mustFence(t, old)), "c"); !errors.Is(err, store.ErrFenced) {
		t.Errorf("write under the old fence: %v", err)
	}
}

func mustFence(t *testing.T, ctx context.Context) store.Fence {
	f, ok := store.FenceFrom(ctx)
	if !ok {
		t.Fatal("no fence")
	}
	return f
}

func TestBadConfig(t *testing.T) {
	for _, cfg := range []leadership.Config{{}, {Name: "n"}, {Member: &etcd.Member{}}, {Name: "n", Member: &etcd.Member{}, Remote: &etcd.Remote{}}} {
		if _, err := leadership.New(cfg); err == nil {
			t.Errorf("%+v was accepted", cfg)
		}
	}
}
