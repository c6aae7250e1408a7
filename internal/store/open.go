package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/tidwall/btree"
)

// Config is what a store needs. Zero limits take the defaults.
type Config struct {
	Backend Backend
	Log     *slog.Logger

	// EventLimit, EventBytes and EventAge bound each table's log: events (10,000), bytes of
	// the versions that it keeps alive (32 MiB), and age (10 minutes).
	EventLimit int
	EventBytes int64
	EventAge   time.Duration

	// CompactEvery is how often etcd's history is compacted to what it was that long ago,
	// by one server of all (5 minutes, as kube-apiserver does). Negative: never.
	CompactEvery time.Duration

	// ProgressEvery is how often an idle cursor learns that the revision moved (1 s).
	ProgressEvery time.Duration

	// LeaderGrace is how long requests wait for a new leader, counted from when the old one
	// was missed, before they are refused (500 ms). ReadTimeout bounds a consistent read
	// (3 s) and WriteTimeout a write (10 s), beside the context's deadline.
	LeaderGrace  time.Duration
	ReadTimeout  time.Duration
	WriteTimeout time.Duration
}

func (c *Config) setDefaults() {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	setDefault(&c.EventLimit, 10_000)
	setDefault(&c.EventBytes, 32<<20)
	setDefault(&c.EventAge, 10*time.Minute)
	setDefault(&c.CompactEvery, 5*time.Minute)
	setDefault(&c.ProgressEvery, time.Second)
	setDefault(&c.LeaderGrace, 500*time.Millisecond)
	setDefault(&c.ReadTimeout, 3*time.Second)
	setDefault(&c.WriteTimeout, 10*time.Second)
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v == 0 {
		*v = d
	}
}

// A Store is the image of an etcd keyspace. All methods are safe for concurrent use.
type Store struct {
	cfg     Config
	backend Backend
	log     *slog.Logger
	limits  logLimits

	revision atomic.Int64 // the image's: all tables have applied it
	tick     atomic.Int64 // counts the times that progress was announced
	sweeps   atomic.Int64
	// compacted is the revision that etcd's history is known to start at.
	compacted atomic.Int64
	waiters   waiters

	// registering serialises changes of the set of tables and reloads.
	registering sync.Mutex
	// applying is held while one revision is applied, and while the router changes, so that
	// a table joins between two revisions. Only who holds it may lock more than one table.
	applying sync.Mutex
	router   atomic.Pointer[router]

	queue   queue
	reads   readRounds
	leases  leases
	term    term
	gate    gate
	lost    atomic.Int64 // when the leader was first missed, in ns since 1970; 0 while there is one
	feedErr atomic.Pointer[error]

	base   context.Context // ends when the store stops
	cancel context.CancelFunc
	done   chan struct{} // closed when the store stops
}

// Open makes a store that begins at the revision of what the backend has applied. Its tables are
// filled by Register; Run keeps it up to date. It needs no quorum.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg.setDefaults()
	resp, err := cfg.Backend.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(gateKey), Serializable: true})
	if err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	raised := int64(0)
	if len(resp.Kvs) > 0 {
		raised = resp.Kvs[0].ModRevision
	}
	s := &Store{
		cfg:     cfg,
		backend: cfg.Backend,
		log:     cfg.Log,
		limits:  logLimits{events: cfg.EventLimit, bytes: cfg.EventBytes, age: cfg.EventAge},
		done:    make(chan struct{}),
	}
	s.base, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.router.Store(&router{})
	s.revision.Store(resp.Header.Revision)
	s.queue.init(resp.Header.Revision)
	s.leases.granted = make(map[int64]*lease)
	s.term.init()
	s.gate.init(raised)
	s.term.changed = cfg.Backend.LeaderChanged()
	return s, nil
}

// Revision is the image's revision: every change up to it is in its table.
func (s *Store) Revision() int64 { return s.revision.Load() }

// Compacted is the revision that etcd's history is known to start at: nobody can read older ones. 0 is
// not known.
func (s *Store) Compacted() int64 { return s.compacted.Load() }

// Register adds a table and fills it with the keys that exist below its prefix. It may be called
// at any time, before and while the store runs. A prefix can be registered once.
func (s *Store) Register(schema Schema) (*Table, error) {
	prefix := schema.Prefix
	if len(prefix) < 2 || prefix[len(prefix)-1] != '/' {
		return nil, fmt.Errorf("register table: prefix %q does not end in a slash", prefix)
	}
	s.registering.Lock()
	defer s.registering.Unlock()
	if s.router.Load().tables[prefix] != nil {
		return nil, fmt.Errorf("register table %s: it is registered already", prefix)
	}
	t := newTable(s, schema)
	s.applying.Lock()
	s.router.Store(s.router.Load().with(t))
	joined := s.revision.Load() // the table gets every event after it
	s.applying.Unlock()

	l, err := s.loadNew(s.base, t.space, joined)
	if err != nil {
		s.router.Store(s.router.Load().without(t))
		return nil, fmt.Errorf("register table %s: %w", prefix, err)
	}
	t.install(l, time.Now())
	return t, nil
}

// Unregister removes a table; its cursors end with ErrClosed. What is in etcd stays.
func (s *Store) Unregister(t *Table) {
	s.registering.Lock()
	defer s.registering.Unlock()
	s.applying.Lock()
	defer s.applying.Unlock()
	t.close(nil)
	s.router.Store(s.router.Load().without(t))
}

const (
	loadPage    = 1000 // keys read from etcd at a time
	loadTimeout = 30 * time.Second
	retryPause  = 2 * time.Millisecond
)

// loadNew reads a new table at the revision of the others, so that nobody sees what is in it beside
// what they were before that. Only if etcd no longer has that revision it reads the newest: the others
// are about to be loaded again then.
func (s *Store) loadNew(ctx context.Context, space *keyspace, revision int64) (loaded, error) {
	ctx, cancel := context.WithTimeout(ctx, loadTimeout)
	defer cancel()
	l, err := s.load(ctx, space, revision)
	if errors.Is(err, ErrCompacted) {
		return s.load(ctx, space, 0)
	}
	return l, err
}

// load reads a table at a revision, or at the newest that this member has applied when it is 0.
func (s *Store) load(ctx context.Context, space *keyspace, revision int64) (loaded, error) {
	l := loaded{tree: btree.NewMap[string, *Entry](treeDegree), revision: revision}
	req := &etcdserverpb.RangeRequest{
		Key:          []byte(space.schema.Prefix),
		RangeEnd:     prefixEnd(space.schema.Prefix),
		Limit:        loadPage,
		Revision:     revision,
		Serializable: true,
	}
	for {
		resp, err := s.backend.Range(ctx, req)
		if errors.Is(err, ErrFuture) { // the watch tells of a revision an instant before reads see it
			if err := pause(ctx, retryPause); err != nil {
				return l, err
			}
			continue
		}
		if err != nil {
			return l, err
		}
		if l.revision == 0 {
			l.revision = resp.Header.Revision
			req.Revision = l.revision
		}
		for _, kv := range resp.Kvs {
			path := string(kv.Key[len(space.schema.Prefix):])
			l.tree.Load(path, newEntry(space, path, kv))
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return l, nil
		}
		last := resp.Kvs[len(resp.Kvs)-1].Key
		req = &etcdserverpb.RangeRequest{
			Key:          append(append(make([]byte, 0, len(last)+1), last...), 0),
			RangeEnd:     req.RangeEnd,
			Limit:        loadPage,
			Revision:     l.revision,
			Serializable: true,
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// queue takes events from the backend's watch without ever blocking it.
type queue struct {
	mu     sync.Mutex
	events []*mvccpb.Event
	last   int64 // revision of the newest event that was pushed
	ready  chan struct{}
	idle   *sync.Cond // signalled when everything was applied
	busy   bool       // the taker works on what it took
	ended  bool
}

func (q *queue) init(revision int64) {
	q.last = revision
	q.ready = make(chan struct{}, 1)
	q.idle = sync.NewCond(&q.mu)
}

func (q *queue) push(events []*mvccpb.Event) {
	q.mu.Lock()
	for len(events) > 0 && events[0].Kv.ModRevision <= q.last {
		events = events[1:] // a restarted watch may repeat itself
	}
	if len(events) > 0 {
		q.events = append(q.events, events...)
		q.last = events[len(events)-1].Kv.ModRevision
	}
	q.mu.Unlock()
	select {
	case q.ready <- struct{}{}:
	default:
	}
}

func (q *queue) take() []*mvccpb.Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	events := q.events
	q.events = nil
	if q.busy = len(events) > 0; !q.busy {
		q.idle.Broadcast()
	}
	return events
}

func (q *queue) newest() int64 {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.last
}

// drain waits until all that was pushed is applied. The caller makes sure that nobody pushes
// and that the taker goes on.
func (q *queue) drain() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for !q.ended && (q.busy || len(q.events) > 0) {
		q.idle.Wait()
	}
}

// stop ends drain.
func (q *queue) stop() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.idle.Broadcast()
}

func (q *queue) skipTo(revision int64) {
	q.mu.Lock()
	q.last = max(q.last, revision)
	q.mu.Unlock()
}
