package etcd_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/client/pkg/v3/types"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	if cfg := os.Getenv(fullDiskEnv); cfg != "" {
		if err := fillDisk(cfg); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	if file := os.Getenv(checkEnv); file != "" {
		if _, err := etcd.CheckDatabase(context.Background(), file, nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	etcdtest.Main(m)
}

func put(tb testing.TB, b store.Backend, k, v string) int64 {
	tb.Helper()
	resp, err := b.Txn(tb.Context(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{{
		Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: []byte(k), Value: []byte(v)}},
	}}})
	if err != nil {
		tb.Fatal(err)
	}
	return resp.Header.Revision
}

func get(tb testing.TB, b store.Backend, k string) string {
	tb.Helper()
	resp, err := b.Range(tb.Context(), &etcdserverpb.RangeRequest{Key: []byte(k)})
	if err != nil {
		tb.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

func TestLoneMemberStartsAtOnceAndKeepsItsData(t *testing.T) {
	c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.Election = 10 * time.Second; cfg.Heartbeat = time.Second })
	// With an election timeout of 10 s, the campaign made it leader.
	put(t, c.Member(0), "k", "v")
	id := c.Member(0).ID()
	c.Stop(0)
	m := c.Start(0)
	if got := get(t, m, "k"); got != "v" || m.ID() != id || !m.IsLeader() {
		t.Errorf("after restart: %q, id %x (was %x), leader %v", got, m.ID(), id, m.IsLeader())
	}
}

func TestThreeMembersLoseOne(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	for i, m := range c.Running() {
		put(t, m, fmt.Sprintf("k%d", i), "v")
	}
	leader := c.Leader()
	if n := len(c.Member(leader).Members()); n != 3 {
		t.Fatalf("%d members", n)
	}
	c.Crash(leader)
	next := c.Leader()
	if next == leader {
		t.Fatal("the crashed member leads")
	}
	for i := range 3 {
		if got := get(t, c.Member(next), fmt.Sprintf("k%d", i)); got != "v" {
			t.Errorf("k%d is %q", i, got)
		}
	}
	put(t, c.Member(next), "later", "v")
	back := c.Start(leader)
	if got := get(t, back, "later"); got != "v" {
		t.Errorf("the member that came back reads %q", got)
	}
}

func TestMoveLeaderAndRemove(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	from := c.Leader()
	to := (from + 1) % 3
	if err := c.Member(from).MoveLeader(t.Context(), c.Member(to).ID()); err != nil {
		t.Fatal(err)
	}
	if got := c.Leader(); got != to {
		t.Fatalf("leader %d, want %d", got, to)
	}
	gone := c.Member(from)
	etcdtest.Eventually(t, "the old leader is removed", func(ctx context.Context) error {
		return c.Member(to).Remove(ctx, gone.ID())
	})
	select {
	case <-gone.Done():
	case <-time.After(20 * time.Second):
		t.Error("a removed member goes on")
	}
	if n := len(c.Member(to).Members()); n != 2 {
		t.Errorf("%d members", n)
	}
}

func TestFollowerWithoutQuorum(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	leader := c.Leader()
	other := (leader + 1) % 3
	c.Crash(leader)
	c.Crash(other)
	m := c.Running()[0]
	etcdtest.Eventually(t, "the rest knows that it has no leader", func(context.Context) error {
		if m.HasLeader() {
			return errors.New("it believes in one")
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := m.ReadIndex(ctx); err == nil {
		t.Error("a read index without quorum")
	}
	if _, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("k"), Serializable: true}); err != nil {
		t.Errorf("a local read without quorum: %v", err)
	}
}

// The store over three members: what one writes the others see, and a store goes on when another
// member leads.
// A member that nobody knows of yet, and without a quorum nobody will, can still be stopped.
func TestCloseBeforeReady(t *testing.T) {
	configs := make([]etcd.Config, 3)
	c := etcdtest.New(t, 3, func(i int, cfg *etcd.Config) {
		cfg.ClientListen = etcdtest.FreeURL(t)
		configs[i] = *cfg
	})
	for i := range 3 {
		c.Stop(i)
	}
	m, err := etcd.Start(t.Context(), configs[0])
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		m.Close()
	}()
	select {
	case <-m.Ready():
		t.Error("it is ready without a quorum")
	case <-closed:
	case <-time.After(20 * time.Second):
		t.Fatal("it does not end")
	}
	<-closed
}

func TestStoresOverThreeMembers(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	var tables []*store.Table
	var stores []*store.Store
	for _, m := range c.Running() {
		s := runStore(t, m)
		stores = append(stores, s)
		tables = append(tables, table(t, s))
	}
	leader := c.Leader()
	follower := (leader + 1) % 3
	cursor, err := tables[follower].Watch(stores[follower].Revision())
	if err != nil {
		t.Fatal(err)
	}
	for i, tbl := range tables {
		if _, err := tbl.Create(t.Context(), store.Key{Name: fmt.Sprint(i)}, []byte("v"), store.WriteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	for i, s := range stores {
		if _, err := s.ReadIndex(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := tables[i].Snapshot().Len(""); n != 3 {
			t.Errorf("store %d has %d objects", i, n)
		}
	}
	c.Crash(leader)
	// The write begins while there is no leader, or the dead one is still believed in.
	e, err := tables[follower].Create(t.Context(), store.Key{Name: "after"}, []byte("v"), store.WriteOptions{})
	for errors.Is(err, store.ErrUnavailable) && t.Context().Err() == nil {
		e, err = tables[follower].Create(t.Context(), store.Key{Name: "after"}, []byte("v"), store.WriteOptions{})
	}
	if err != nil {
		t.Fatal(err)
	}
	var seen []string
	for cursor.Revision() < e.Revision() {
		events, _, err := cursor.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			seen = append(seen, ev.Key.Name)
		}
	}
	if len(seen) != 4 || seen[3] != "after" {
		t.Errorf("the follower's cursor saw %v", seen)
	}
}

func runStore(tb testing.TB, b store.Backend) *store.Store {
	tb.Helper()
	s, err := store.Open(tb.Context(), store.Config{Backend: b, CompactEvery: -1})
	if err != nil {
		tb.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	tb.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			tb.Error(err)
		}
	})
	return s
}

func table(tb testing.TB, s *store.Store) *store.Table {
	tb.Helper()
	t, err := s.Register(store.Schema{
		Prefix: "/registry/things/",
		Decode: func([]byte, int64) (runtime.Object, error) { return &unstructured.Unstructured{}, nil },
	})
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// The store over somebody else's etcd, which goes away and comes back.
func TestStoreOverRemote(t *testing.T) {
	client := etcdtest.FreeURL(t)
	c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.ClientListen = client })
	r, err := etcd.Dial(t.Context(), etcd.RemoteConfig{Endpoints: []string{client}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	s := runStore(t, r)
	tbl := table(t, s)
	k := store.Key{Name: "a"}
	e, err := tbl.Create(t.Context(), k, []byte("1"), store.WriteOptions{TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	if got, ok := tbl.Get(k); !ok || got != e {
		t.Error("the image does not hold the write")
	}
	if _, err := tbl.Create(t.Context(), k, []byte("1"), store.WriteOptions{}); !errors.Is(err, store.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	if _, err := tbl.Update(t.Context(), k, make([]byte, 4<<20), e.Revision(), store.WriteOptions{}); !errors.Is(err, store.ErrRejected) {
		t.Errorf("4 MiB: %v", err)
	}
	if revision := put(t, c.Member(0), "/registry/things/b", "1"); s.WaitRevision(t.Context(), revision) != nil {
		t.Error("the image does not follow")
	}

	c.Stop(0)
	etcdtest.Eventually(t, "the store is unhealthy", func(context.Context) error {
		if s.Healthy() == nil {
			return errors.New("healthy without etcd")
		}
		return nil
	})
	if _, err := s.ReadIndex(t.Context()); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("read without etcd: %v", err)
	}
	c.Start(0)
	etcdtest.Eventually(t, "the store is healthy again", func(context.Context) error { return s.Healthy() })
	etcdtest.Eventually(t, "it reads and writes again", func(ctx context.Context) error {
		_, err := tbl.Update(ctx, k, []byte("2"), 0, store.WriteOptions{})
		return err
	})
	if err := r.Compact(t.Context(), s.Revision()); err != nil {
		t.Error(err)
	}
	if _, err := r.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("k"), Revision: e.Revision()}); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("read at a compacted revision: %v", err)
	}
	if err := r.Watch(t.Context(), e.Revision(), nil); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from a compacted revision: %v", err)
	}
}

func TestDialNobody(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if _, err := etcd.Dial(ctx, etcd.RemoteConfig{Endpoints: []string{etcdtest.FreeURL(t)}}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("Dial: %v", err)
	}
}

func TestMutualTLS(t *testing.T) {
	files := etcdtest.Certificates(t, net.IPv4(127, 0, 0, 1))
	client := strings.Replace(etcdtest.FreeURL(t), "http", "https", 1)
	c := etcdtest.New(t, 2, func(i int, cfg *etcd.Config) {
		cfg.PeerURL = strings.Replace(cfg.PeerURL, "http", "https", 1)
		cfg.PeerTLS = files
		if i == 0 {
			cfg.ClientListen, cfg.ClientTLS = client, files
		}
	})
	put(t, c.Member(1), "k", "v")
	for _, url := range []string{client, c.Member(0).Members()[0].PeerURLs[0]} {
		conn, err := tls.Dial("tcp", strings.TrimPrefix(url, "https://"), &tls.Config{InsecureSkipVerify: true})
		if err == nil {
			// TLS 1.3 tells the client of its missing certificate at the first read.
			_, err = conn.Read(make([]byte, 1))
			conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "certificate") {
			t.Errorf("%s without a certificate: %v", url, err)
		}
	}
	r, err := etcd.Dial(t.Context(), etcd.RemoteConfig{Endpoints: []string{client}, TLS: files})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	if got := get(t, r, "k"); got != "v" {
		t.Errorf("read %q", got)
	}
}

func TestBadConfigurations(t *testing.T) {
	good := etcd.Config{Name: "n", DataDir: t.TempDir(), PeerURL: "http://127.0.0.1:1"}
	for what, change := range map[string]func(*etcd.Config){
		"no name":                        func(c *etcd.Config) { c.Name = "" },
		"no directory":                   func(c *etcd.Config) { c.DataDir = "" },
		"no peer URL":                    func(c *etcd.Config) { c.PeerURL = "" },
		"no URL":                         func(c *etcd.Config) { c.PeerURL = "127.0.0.1" },
		"plain text beyond loopback":     func(c *etcd.Config) { c.ListenPeer = "http://0.0.0.0:1" },
		"client listener beyond":         func(c *etcd.Config) { c.ClientListen = "https://0.0.0.0:1" },
		"election below five heartbeats": func(c *etcd.Config) { c.Heartbeat = time.Second },
		"missing certificate": func(c *etcd.Config) {
			c.PeerURL, c.PeerTLS = "https://127.0.0.1:1", etcd.TLSFiles{Cert: "none", Key: "none", CA: "none"}
		},
	} {
		cfg := good
		change(&cfg)
		if m, err := etcd.Start(t.Context(), cfg); err == nil {
			m.Close()
			t.Errorf("%s: it started", what)
		}
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	good.PeerURL = "http://" + l.Addr().String()
	if m, err := etcd.Start(t.Context(), good); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("taken port: %v", err)
		if m != nil {
			m.Close()
		}
	}
}

// A follower that was cut off for so long that the leader sends it a snapshot: its store, which
// runs all the time, ends up with what the others have.
func TestStoreOverSnapshot(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	leader := c.Leader()
	follower := (leader + 1) % 3
	lead, cut := c.Member(leader), c.Member(follower)
	s := runStore(t, cut)
	tbl := table(t, s)
	if _, err := tbl.Create(t.Context(), store.Key{Name: "gone"}, []byte("v"), store.WriteOptions{}); err != nil {
		t.Fatal(err)
	}
	cursor, err := tbl.Watch(s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Running() {
		if m != cut {
			m.Server().CutPeer(types.ID(cut.ID()))
			cut.Server().CutPeer(types.ID(m.ID()))
		}
	}
	if _, err := lead.Server().DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: []byte("/registry/things/gone")}); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for w := range 32 {
		wg.Go(func() {
			for i := range 400 { // more than the leader keeps in memory
				put(t, lead, fmt.Sprintf("/registry/things/%d-%d", w, i%10), fmt.Sprint(i))
			}
		})
	}
	wg.Wait()
	last := put(t, lead, "/registry/things/last", "v")
	if err := lead.Compact(t.Context(), last); err != nil {
		t.Fatal(err)
	}
	if s.Revision() >= last {
		t.Fatal("the follower was not cut off")
	}
	for _, m := range c.Running() {
		if m != cut {
			m.Server().MendPeer(types.ID(cut.ID()))
			cut.Server().MendPeer(types.ID(m.ID()))
		}
	}
	etcdtest.Eventually(t, "the store has caught up", func(ctx context.Context) error { return s.WaitRevision(ctx, last) })
	if _, ok := tbl.Get(store.Key{Name: "gone"}); ok {
		t.Error("it has what was deleted meanwhile")
	}
	if n := tbl.Snapshot().Len(""); n != 321 {
		t.Errorf("it has %d objects, want 321", n)
	}
	tbl.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
		if v := string(e.Raw()); e.Key().Name != "last" && (len(v) != 3 || v < "390") {
			t.Errorf("%s is %s", e.Key().Name, v)
		}
		return true
	})
	for {
		if _, _, err := cursor.Next(t.Context()); errors.Is(err, store.ErrCompacted) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
	}
}
