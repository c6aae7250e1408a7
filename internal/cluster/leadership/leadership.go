// Package leadership decides on which server the scheduler and the controllers run, and makes
// sure that only that one's writes succeed.
//
// With the embedded etcd, they run where raft's leader is. A server that becomes raft leader
// takes over the fence, a key in etcd beside the API's objects, and hands out a context that
// carries it ([store.WithFence]): every write under that context is conditional on the fence, so
// a deposed leader that doesn't know it yet (it was frozen, or cut off) can't write. The context
// ends as soon as the loss of leadership is noticed. With an etcd that somebody else runs, whose
// leader isn't ours, an etcd election with a session lease takes raft's place; its key is the fence.
//
// Who leads is published, as often as a stock component renews its lease, through [Publisher].
package leadership

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"barque.dev/internal/run"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

// A Publisher makes known who leads, for instance as Lease objects (see [LeaseSpec]). It is called
// with the leader's fenced context when leadership begins and every [RenewEvery] after that.
// transitions counts how often leadership passed to another server. Its errors are logged.
type Publisher func(ctx context.Context, holder string, acquired time.Time, transitions int32) error

// Config is what leadership needs. One of Member and Remote is set.
type Config struct {
	// Name is this server's, as published.
	Name   string
	Member *etcd.Member
	Remote *etcd.Remote
	// Publish may be nil.
	Publish Publisher
	Log     *slog.Logger
}

const (
	// RenewEvery is how often leadership is published again; LeaseDuration is how long after
	// that an observer should believe in it.
	RenewEvery    = 5 * time.Second
	LeaseDuration = 15 * time.Second

	// retryPause is between attempts to lead, when an attempt failed or lead returned.
	retryPause = 200 * time.Millisecond
)

// Leadership follows who leads. Its methods are safe for concurrent use.
type Leadership struct {
	cfg     Config
	elector elector

	mu      sync.Mutex
	tenure  *tenure       // nil while another server leads
	changed chan struct{} // closed when tenure changes
}

// An elector waits until this server leads.
type elector interface {
	campaign(ctx context.Context) (*tenure, error)
	// fence reads the key at a moment after the call, of which a majority knows.
	fence(ctx context.Context, key string) ([]*mvccpb.KeyValue, error)
}

// tenure is one period of leading.
type tenure struct {
	ctx         context.Context // ends when leadership is lost
	lose        context.CancelCauseFunc
	fence       store.Fence
	since       time.Time // the fence stood at some moment after; zero when that isn't known
	transitions int32
	end         func() // gives leadership's resources back, once the work has stopped
}

// New prepares to follow leadership.
func New(cfg Config) (*Leadership, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	l := &Leadership{cfg: cfg, changed: make(chan struct{})}
	switch {
	case cfg.Name == "":
		return nil, errors.New("leadership: the server needs a name")
	case cfg.Member != nil && cfg.Remote == nil:
		l.elector = &raftElector{raft: cfg.Member, name: cfg.Name, key: fenceKey(cfg.Member.ClusterID())}
	case cfg.Remote != nil && cfg.Member == nil:
		l.elector = &leaseElector{client: cfg.Remote.Client(), name: cfg.Name, log: cfg.Log}
	default:
		return nil, errors.New("leadership: it follows either a member or a remote etcd")
	}
	return l, nil
}

// Leading tells whether this server leads now.
func (l *Leadership) Leading() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tenure != nil
}

// Changed is closed when what Leading tells changes; ask for it before Leading.
func (l *Leadership) Changed() <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changed
}

// Confirm returns a moment, no earlier than since, after which this server still led: the fence stood,
// so that no other can have taken over before that moment. It asks a majority unless it knows of such a moment.
// A server that finds its fence gone leads no longer from then on.
func (l *Leadership) Confirm(ctx context.Context, since time.Time) (time.Time, error) {
	l.mu.Lock()
	t := l.tenure
	l.mu.Unlock()
	if t == nil || t.ctx.Err() != nil {
		return time.Time{}, errLost
	}
	if !t.since.Before(since) {
		return t.since, nil
	}
	asked := time.Now()
	found, err := l.elector.fence(ctx, t.fence.Key)
	if err != nil {
		return time.Time{}, fmt.Errorf("confirm leadership: %w", err)
	}
	if !stands(found, t.fence.CreateRevision) {
		err := errFenceTaken(t.fence.Key)
		t.lose(err)
		return time.Time{}, err
	}
	return asked, nil
}

func (l *Leadership) setTenure(t *tenure) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tenure = t
	close(l.changed)
	l.changed = make(chan struct{})
}

// Follow calls lead whenever this server leads, with a context that carries the fence and ends
// when leadership is lost, and waits for it to return. When lead returns before that it is called
// again, after a pause. Follow returns when ctx ends and lead has returned.
func (l *Leadership) Follow(ctx context.Context, lead func(ctx context.Context) error) error {
	for ctx.Err() == nil {
		t, err := l.elector.campaign(ctx)
		if err != nil {
			if ctx.Err() == nil {
				l.cfg.Log.Warn("leadership could not be taken", "error", err)
			}
			run.Pause(ctx, retryPause)
			continue
		}
		l.serve(t, lead)
		t.end()
	}
	return nil
}

// serve is one tenure.
func (l *Leadership) serve(t *tenure, lead func(ctx context.Context) error) {
	log := l.cfg.Log.With("transitions", t.transitions)
	log.Info("this server leads", "fence", t.fence.CreateRevision)
	l.setTenure(t)
	ctx := store.WithFence(t.ctx, t.fence)
	var wg sync.WaitGroup
	wg.Go(func() {
		// At once, not when the work has stopped: who asks must not take this server for the leader.
		<-ctx.Done()
		l.setTenure(nil)
	})
	if l.cfg.Publish != nil {
		wg.Go(func() { l.publish(ctx, t.transitions) })
	}
	for ctx.Err() == nil {
		err := lead(ctx)
		if ctx.Err() != nil {
			break
		}
		log.Warn("what the leader runs ended; it is started again", "error", err)
		run.Pause(ctx, retryPause)
	}
	wg.Wait()
	log.Info("this server leads no longer", "cause", context.Cause(t.ctx))
}

func (l *Leadership) publish(ctx context.Context, transitions int32) {
	acquired := time.Now()
	for {
		if err := l.cfg.Publish(ctx, l.cfg.Name, acquired, transitions); err != nil && ctx.Err() == nil {
			l.cfg.Log.Warn("leadership could not be published", "error", err)
		}
		if !run.Pause(ctx, RenewEvery) {
			return
		}
	}
}

var errLost = errors.New("leadership was lost")

func errFenceTaken(key string) error {
	return fmt.Errorf("%w: another server took the fence %s", errLost, key)
}
