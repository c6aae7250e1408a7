package store_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/etcdserver"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

// faulty is a backend whose transactions and leadership a test bends.
type faulty struct {
	*etcd.Member
	mu       sync.Mutex
	txn      func(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) // used once
	changed  chan struct{}
	leader   bool
	watching chan struct{} // when not nil, Watch begins once it is closed, and breaks at breaks
	breaks   chan struct{}
	ranged   func() error // when not nil, called before every Range; its error is the answer
	silent   bool         // the leader answers no read
}

func newFaulty(m *etcd.Member) *faulty {
	return &faulty{Member: m, changed: make(chan struct{}), leader: true}
}

func (f *faulty) Txn(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	f.mu.Lock()
	txn := f.txn
	f.txn = nil
	f.mu.Unlock()
	if txn != nil {
		return txn(ctx, req)
	}
	return f.Member.Txn(ctx, req)
}

func (f *faulty) Range(ctx context.Context, req *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	f.mu.Lock()
	ranged := f.ranged
	f.mu.Unlock()
	if ranged != nil {
		if err := ranged(); err != nil {
			return nil, err
		}
	}
	return f.Member.Range(ctx, req)
}

func (f *faulty) ReadIndex(ctx context.Context) (int64, error) {
	f.mu.Lock()
	silent := f.silent
	f.mu.Unlock()
	if silent {
		<-ctx.Done()
		return 0, ctx.Err()
	}
	return f.Member.ReadIndex(ctx)
}

func (f *faulty) HasLeader() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leader
}

func (f *faulty) LeaderChanged() <-chan struct{} {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changed
}

func (f *faulty) newLeader() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = true
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *faulty) loseLeader() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.leader = false
}

func (f *faulty) next(txn func(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.txn = txn
}

func (f *faulty) Watch(ctx context.Context, from int64, deliver func([]*mvccpb.Event)) error {
	f.mu.Lock()
	watching, breaks := f.watching, f.breaks
	f.mu.Unlock()
	if watching != nil {
		select {
		case <-watching:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if breaks != nil {
		go func() {
			select {
			case <-breaks:
				cancel(errors.New("broken"))
			case <-ctx.Done():
			}
		}()
	}
	return f.Member.Watch(ctx, from, deliver)
}

// gap breaks the store's watch, lets something change, has etcd forget how it came to that, and lets the store
// watch again. f.breaks has to be set before the store runs.
func (f *faulty) gap(t *testing.T, change func(context.Context, *etcdserver.EtcdServer) (last int64)) {
	t.Helper()
	f.mu.Lock()
	breaks := f.breaks
	f.breaks, f.watching = nil, make(chan struct{})
	f.mu.Unlock()
	close(breaks)
	if err := f.Compact(t.Context(), change(t.Context(), f.Member.Server())); err != nil {
		t.Fatal(err)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	close(f.watching)
}

// faultyStore is a running store over a faulty backend.
func faultyStore(t *testing.T, cfg store.Config) (*store.Store, *store.Table, *faulty) {
	t.Helper()
	f := newFaulty(startMember(t, emptyConfig()))
	cfg.Backend = f
	s, run := openStore(t, cfg)
	run()
	return s, register(t, s, configMaps()), f
}

// outcome is what became of a proposal that nobody answered.
type outcome string

const (
	lost           outcome = "lost"
	applied        outcome = "applied"
	appliedChanged outcome = "applied, then changed by somebody"
	appliedDeleted outcome = "applied, then deleted by somebody"
	overtaken      outcome = "overtaken by somebody else's write"
)

// A write whose proposal gets no answer until the leader changes ends with what really happened.
func TestUnansweredProposals(t *testing.T) {
	s, tbl, f := faultyStore(t, store.Config{})
	member := f.Member
	put := func(name, value string) {
		if _, err := member.Server().Put(context.Background(), &etcdserverpb.PutRequest{
			Key: []byte("/registry/configmaps/ns/" + name), Value: []byte(value),
		}); err != nil {
			t.Error(err)
		}
	}
	for _, verb := range []string{"create", "update", "delete"} {
		for i, o := range []outcome{lost, applied, appliedChanged, appliedDeleted, overtaken} {
			if verb == "delete" && (o == appliedChanged || o == appliedDeleted) {
				continue
			}
			name := fmt.Sprintf("%s-%d", verb, i)
			k := key("ns", name)
			var before *store.Entry
			if verb != "create" {
				before = mustCreate(t, tbl, k, "before")
			}
			f.next(func(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
				switch o {
				case lost:
				case overtaken:
					put(name, "theirs")
				default:
					if resp, err := member.Txn(context.Background(), req); err != nil || !resp.Succeeded {
						t.Errorf("%s, %s: %v %v", verb, o, resp, err)
					}
				}
				switch o {
				case appliedChanged:
					put(name, "changed")
				case appliedDeleted:
					if _, err := member.Server().DeleteRange(context.Background(), &etcdserverpb.DeleteRangeRequest{Key: req.Compare[0].Key}); err != nil {
						t.Error(err)
					}
				}
				f.newLeader()
				<-ctx.Done() // the answer never comes
				return nil, ctx.Err()
			})
			var e *store.Entry
			var err error
			switch verb {
			case "create":
				e, err = tbl.Create(t.Context(), k, []byte("mine"), store.WriteOptions{})
			case "update":
				e, err = tbl.Update(t.Context(), k, []byte("mine"), before.Revision(), store.WriteOptions{})
			case "delete":
				e, _, err = tbl.Delete(t.Context(), k, before.Revision())
			}
			switch {
			case o == overtaken && verb == "create":
				if !errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrUncertain) {
					t.Errorf("%s, %s: %v", verb, o, err)
				}
			case o == overtaken:
				if !errors.Is(err, store.ErrConflict) {
					t.Errorf("%s, %s: %v", verb, o, err)
				}
			case err != nil:
				t.Errorf("%s, %s: %v", verb, o, err)
			case verb == "delete":
				if e != before {
					t.Errorf("%s, %s: removed %v", verb, o, e)
				}
			case string(e.Raw()) != "mine":
				t.Errorf("%s, %s: wrote %q", verb, o, e.Raw())
			}
			now, exists := tbl.Get(k)
			if want := o != appliedDeleted && !(verb == "delete" && o != overtaken); exists != want {
				t.Errorf("%s, %s: exists %v, want %v", verb, o, exists, want)
			} else if exists {
				want := map[outcome]string{lost: "mine", applied: "mine", appliedChanged: "changed", overtaken: "theirs"}[o]
				if string(now.Raw()) != want {
					t.Errorf("%s, %s: etcd has %q, want %q", verb, o, now.Raw(), want)
				}
			}
		}
	}
	if err := s.Healthy(); err != nil {
		t.Error(err)
	}
}

// A proposal that waited at a leader which was cut off gets through after its write was answered. It takes no effect,
// whatever the answer was, and whatever has happened since.
func TestLateProposals(t *testing.T) {
	_, tbl, f := faultyStore(t, store.Config{})
	ctx := t.Context()
	create := func(k store.Key) error {
		_, err := tbl.Create(ctx, k, []byte("mine"), store.WriteOptions{})
		return err
	}
	remove := func(k store.Key) error { _, _, err := tbl.Delete(ctx, k, 0); return err }
	update := func(revision bool) func(k store.Key) error {
		return func(k store.Key) error {
			expected := int64(0)
			if e, _ := tbl.Get(k); revision {
				expected = e.Revision()
			}
			_, err := tbl.Update(ctx, k, []byte("mine"), expected, store.WriteOptions{})
			return err
		}
	}
	nothing := func(store.Key) {}
	made := func(k store.Key) { mustCreate(t, tbl, k, "theirs") }
	gone := func(k store.Key) { mustDelete(t, tbl, k) }
	for name, c := range map[string]struct {
		there  bool // whether there is an object
		write  func(k store.Key) error
		others func(k store.Key) // what happens before the write is tried again
		then   func(k store.Key) // what happens before the proposal gets through
		want   error
	}{
		"create, refused":                 {write: create, others: made, then: gone, want: store.ErrExists},
		"create, acknowledged":            {write: create, others: nothing, then: gone},
		"delete, refused":                 {write: remove, others: nothing, then: made, want: store.ErrNotFound},
		"delete, acknowledged":            {there: true, write: remove, others: nothing, then: made},
		"update of any, refused":          {there: true, write: update(false), others: gone, then: made, want: store.ErrNotFound},
		"update of any, acknowledged":     {there: true, write: update(false), others: nothing, then: func(k store.Key) { mustUpdate(t, tbl, k, "theirs", 0) }},
		"update of one, refused":          {there: true, write: update(true), others: func(k store.Key) { mustUpdate(t, tbl, k, "theirs", 0) }, then: func(k store.Key) { gone(k); made(k) }, want: store.ErrConflict},
		"update of one, and then another": {there: true, write: update(true), others: nothing, then: func(k store.Key) { gone(k); made(k) }},
	} {
		k := key("late", strings.NewReplacer(" ", "-", ",", "").Replace(name))
		if c.there {
			mustCreate(t, tbl, k, "before")
		}
		var late *etcdserverpb.TxnRequest
		f.next(func(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
			late = req
			c.others(k)
			f.newLeader()
			<-ctx.Done() // the answer never comes
			return nil, ctx.Err()
		})
		if err := c.write(k); !errors.Is(err, c.want) || errors.Is(err, store.ErrUncertain) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
		c.then(k)
		if resp, err := f.Member.Txn(ctx, late); err != nil || resp.Succeeded {
			t.Errorf("%s: the proposal takes effect (%v)", name, err)
		}
	}
}

// A server that doesn't know that another one has raised the gate finds out, and its writes are made.
func TestGateRaisedByAnother(t *testing.T) {
	_, tbl, f := faultyStore(t, store.Config{})
	for _, name := range []string{"a", "b"} {
		if _, err := f.Member.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/barque/gate")}); err != nil {
			t.Fatal(err)
		}
		k := key("ns", name)
		mustCreate(t, tbl, k, "1")
		if _, err := tbl.Create(t.Context(), k, []byte("2"), store.WriteOptions{}); !errors.Is(err, store.ErrExists) {
			t.Error(err)
		}
		mustUpdate(t, tbl, k, "3", 0)
		mustDelete(t, tbl, k)
	}
}

func TestWithoutLeader(t *testing.T) {
	s, tbl, f := faultyStore(t, store.Config{LeaderGrace: 20 * time.Millisecond})
	e := mustCreate(t, tbl, key("ns", "a"), "1")
	f.loseLeader()
	if err := s.Healthy(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("healthy: %v", err)
	}
	// The first to miss the leader waits for a new one, and may well try again; the others know at once.
	if _, err := s.ReadIndex(t.Context()); !errors.Is(err, store.ErrUnavailable) || !store.Passing(err) {
		t.Errorf("read: %v", err)
	}
	if _, err := tbl.Update(t.Context(), key("ns", "a"), []byte("2"), e.Revision(), store.WriteOptions{}); !errors.Is(err, store.ErrUnavailable) || store.Passing(err) {
		t.Errorf("write: %v", err)
	}
	if got, ok := tbl.Get(key("ns", "a")); !ok || got != e {
		t.Error("the image is gone")
	}
	f.newLeader()
	mustUpdate(t, tbl, key("ns", "a"), "2", e.Revision())
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Errorf("read with a new leader: %v", err)
	}
	// A short loss is waited out.
	f.loseLeader()
	time.AfterFunc(5*time.Millisecond, f.newLeader)
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Errorf("read over a short loss: %v", err)
	}
}

// A leader whose disk stands still for a moment is not one that is gone: whoever reads is told to try again.
func TestSlowLeader(t *testing.T) {
	s, _, f := faultyStore(t, store.Config{ReadTimeout: 20 * time.Millisecond})
	f.mu.Lock()
	f.silent = true
	f.mu.Unlock()
	if _, err := s.ReadIndex(t.Context()); !errors.Is(err, store.ErrUnavailable) || !store.Passing(err) {
		t.Errorf("the leader is slow: %v", err)
	}
}

func TestWriteDeadline(t *testing.T) {
	_, tbl, f := faultyStore(t, store.Config{WriteTimeout: 50 * time.Millisecond})
	f.next(func(ctx context.Context, _ *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	})
	_, err := tbl.Create(t.Context(), key("ns", "a"), []byte("1"), store.WriteOptions{})
	if !errors.Is(err, store.ErrUnavailable) || !errors.Is(err, store.ErrUncertain) || store.Passing(err) {
		t.Errorf("create: %v", err)
	}
}

// A write that waits for a leader was surely not made if it was not proposed before.
func TestWriteMissesLeader(t *testing.T) {
	for _, proposed := range []bool{false, true} {
		_, tbl, f := faultyStore(t, store.Config{LeaderGrace: 20 * time.Millisecond})
		if proposed {
			f.next(func(context.Context, *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
				f.loseLeader()
				return nil, errors.New("no answer")
			})
		} else {
			f.loseLeader()
		}
		_, err := tbl.Create(t.Context(), key("ns", "a"), []byte("1"), store.WriteOptions{})
		if !errors.Is(err, store.ErrUnavailable) || errors.Is(err, store.ErrUncertain) != proposed || store.Passing(err) == proposed {
			t.Errorf("proposed %v: %v, passing %v", proposed, err, store.Passing(err))
		}
	}
}

// When etcd compacted what the image hasn't seen, everything is loaded again: cursors end with
// ErrCompacted, versions that didn't change stay the same entries, new cursors miss nothing.
func TestResyncAfterCompaction(t *testing.T) {
	f := newFaulty(startMember(t, emptyConfig()))
	f.breaks = make(chan struct{})
	s, run := openStore(t, store.Config{Backend: f})
	run()
	tbl := register(t, s, configMaps())
	same := mustCreate(t, tbl, key("ns", "same"), "1")
	mustCreate(t, tbl, key("ns", "deleted"), "1")
	mustCreate(t, tbl, key("ns", "changed"), "1")
	c, err := tbl.Watch(s.Revision())
	if err != nil {
		t.Fatal(err)
	}

	ctx := t.Context()
	var last int64
	f.gap(t, func(ctx context.Context, member *etcdserver.EtcdServer) int64 {
		if _, err := member.DeleteRange(ctx, &etcdserverpb.DeleteRangeRequest{Key: []byte("/registry/configmaps/ns/deleted")}); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			resp, err := member.Put(ctx, &etcdserverpb.PutRequest{Key: []byte("/registry/configmaps/ns/changed"), Value: []byte("2")})
			if err != nil {
				t.Fatal(err)
			}
			last = resp.Header.Revision
		}
		return last
	})

	if revision, err := s.ReadIndex(ctx); err != nil || revision < last {
		t.Fatalf("ReadIndex = %d, %v", revision, err)
	}
	if e, ok := tbl.Get(key("ns", "same")); !ok || e != same {
		t.Error("the entry that did not change is another")
	}
	if _, ok := tbl.Get(key("ns", "deleted")); ok {
		t.Error("the deleted object is still there")
	}
	if got := tbl.Snapshot().ByIndex("v", "2"); len(got) != 1 || got[0].Key().Name != "changed" {
		t.Errorf("index finds %v", got)
	}
	for {
		_, _, err := c.Next(ctx)
		if errors.Is(err, store.ErrCompacted) {
			break
		}
		if err != nil {
			t.Fatalf("cursor over the gap: %v", err)
		}
	}
	if _, err := tbl.Watch(last - 1); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch from before the gap: %v", err)
	}
	f2 := newFollower(t, tbl)
	e := mustCreate(t, tbl, key("ns", "new"), "3")
	f2.catchUp(t, e.Revision())
	if f2.state[key("ns", "new")] != e {
		t.Error("the watch after the gap misses a write")
	}
}

// One of several servers compacts at each turn, and never what is younger than a period.
func TestCompactionTakesTurns(t *testing.T) {
	m := startMember(t, emptyConfig())
	const period = 50 * time.Millisecond
	var stores []*store.Store
	for range 3 {
		s, run := openStore(t, store.Config{Backend: m, CompactEvery: period})
		run()
		stores = append(stores, s)
	}
	tbl := register(t, stores[0], configMaps())
	e := mustCreate(t, tbl, key("ns", "a"), "0")
	first := e.Revision()
	deadline := time.Now().Add(20 * time.Second)
	for {
		e = mustUpdate(t, tbl, key("ns", "a"), fmt.Sprint(time.Now()), e.Revision())
		_, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("x"), Revision: first})
		if errors.Is(err, store.ErrCompacted) {
			break
		}
		if err != nil || time.Now().After(deadline) {
			t.Fatalf("never compacted: %v", err)
		}
	}
	resp, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("compact_rev_key")})
	if err != nil || len(resp.Kvs) != 1 {
		t.Fatal("no key to take turns by", err)
	}
	if _, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("x"), Revision: e.Revision()}); err != nil {
		t.Errorf("the newest revision was compacted: %v", err)
	}
	// No server answers for the past any longer than etcd would, though its log may hold it.
	for i, s := range stores {
		if i > 0 {
			tbl = register(t, s, configMaps())
		}
		for {
			_, err := tbl.At(t.Context(), first)
			if errors.Is(err, store.ErrCompacted) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("server %d still answers for revision %d: %v", i, first, err)
			}
		}
	}
}

func TestIdleCursorSeesProgress(t *testing.T) {
	m := startMember(t, emptyConfig())
	s, run := openStore(t, store.Config{Backend: m, ProgressEvery: 2 * time.Millisecond})
	run()
	quiet, busy := register(t, s, configMaps()), register(t, s, nodes())
	c, err := quiet.Watch(s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	e := mustCreate(t, busy, key("", "n"), "1")
	events, progress, err := c.Next(t.Context())
	if err != nil || len(events) != 0 || progress != e.Revision() || c.Revision() != progress {
		t.Errorf("Next = %v, %d, %v; want progress %d", events, progress, err, e.Revision())
	}
	// Nothing moves: it waits.
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
	defer cancel()
	if _, _, err := c.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next without news: %v", err)
	}
	c.Close()
	c.Close()
	if _, _, err := c.Next(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Next of a closed cursor: %v", err)
	}
}

// A cursor for events only passes over progress, and over nothing else.
func TestCursorForEventsOnly(t *testing.T) {
	m := startMember(t, emptyConfig())
	s, run := openStore(t, store.Config{Backend: m, ProgressEvery: time.Millisecond})
	run()
	tbl, busy := register(t, s, configMaps()), register(t, s, nodes())
	c, err := tbl.Watch(s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.EventsOnly()
	bookmarks, err := tbl.Watch(s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	defer bookmarks.Close()
	mustCreate(t, busy, key("", "n"), "1")
	if _, _, err := bookmarks.Next(t.Context()); err != nil { // progress was announced
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if events, _, err := c.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Next = %v, %v; want it to wait", events, err)
	}
	e := mustCreate(t, tbl, key("ns", "a"), "v")
	events, progress, err := c.Next(t.Context())
	if err != nil || len(events) != 1 || progress != e.Revision() {
		t.Errorf("Next = %v, %d, %v; want the event of %d", events, progress, err, e.Revision())
	}
}

func TestWatchFromTheFuture(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	c, err := tbl.Watch(s.Revision() + 2)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 4 {
		mustCreate(t, tbl, key("ns", fmt.Sprint(i)), "v")
	}
	var got []string
	for len(got) < 2 {
		events, _, err := c.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			got = append(got, ev.Key.Name)
		}
	}
	if fmt.Sprint(got) != "[2 3]" {
		t.Errorf("saw %v", got)
	}
}

func TestSlowCursorFallsOff(t *testing.T) {
	m := startMember(t, emptyConfig())
	s, run := openStore(t, store.Config{Backend: m, EventLimit: 50})
	run()
	tbl := register(t, s, configMaps())
	start := s.Revision()
	slow, err := tbl.Watch(start)
	if err != nil {
		t.Fatal(err)
	}
	e := mustCreate(t, tbl, key("ns", "a"), "v")
	for i := range 300 {
		e = mustUpdate(t, tbl, key("ns", "a"), fmt.Sprint(i), e.Revision())
	}
	if _, _, err := slow.Next(t.Context()); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Next: %v", err)
	}
	if _, err := tbl.Watch(start); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("Watch: %v", err)
	}
}
