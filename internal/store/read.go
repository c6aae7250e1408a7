package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"barque.dev/internal/tracing"
)

// readRounds lets all consistent reads that wait at the same moment share one read index. A read
// that arrives while a round is under way joins the next: the round's index may be older than it.
type readRounds struct {
	mu      sync.Mutex
	next    *readRound // being joined; nil if nobody waits for the next one
	running bool
	stopped bool
	wg      sync.WaitGroup
}

type readRound struct {
	done     chan struct{}
	revision int64
	err      error
}

// ReadIndex is the barrier of a consistent read: when it returns, the image has reached a
// revision that covers every write acknowledged anywhere before the call. It returns that
// revision, or ErrUnavailable when there is no quorum.
func (s *Store) ReadIndex(ctx context.Context) (revision int64, err error) {
	ctx, span := tracing.Start(ctx, "ReadIndex etcd")
	defer func() { span.End(err) }()
	if err := s.awaitLeader(ctx); err != nil {
		return 0, fmt.Errorf("consistent read: %w", err)
	}
	r, err := s.reads.join(s)
	if err != nil {
		return 0, err
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return 0, fmt.Errorf("consistent read: %w: %w", ErrUnavailable, ctx.Err())
	}
	if r.err != nil {
		return 0, fmt.Errorf("consistent read: %w", r.err)
	}
	return r.revision, nil
}

func (rs *readRounds) join(s *Store) (*readRound, error) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.stopped {
		return nil, fmt.Errorf("consistent read: %w", ErrClosed)
	}
	if rs.next == nil {
		rs.next = &readRound{done: make(chan struct{})}
	}
	r := rs.next
	if !rs.running {
		rs.running = true
		rs.wg.Go(func() { rs.run(s) })
	}
	return r, nil
}

// run does rounds until nobody waits.
func (rs *readRounds) run(s *Store) {
	for {
		rs.mu.Lock()
		r := rs.next
		rs.next = nil
		if r == nil {
			rs.running = false
			rs.mu.Unlock()
			return
		}
		rs.mu.Unlock()
		r.revision, r.err = s.readIndex()
		close(r.done)
	}
}

func (rs *readRounds) stop() {
	rs.mu.Lock()
	rs.stopped = true
	rs.mu.Unlock()
	rs.wg.Wait()
}

// readIndex asks once for all, again when the leader changed under the question.
func (s *Store) readIndex() (int64, error) {
	ctx, cancel := context.WithTimeout(s.base, s.cfg.ReadTimeout)
	defer cancel()
	for {
		if err := s.awaitLeader(ctx); err != nil {
			return 0, err
		}
		attempt, end := s.term.attempt(ctx)
		revision, err := s.backend.ReadIndex(attempt)
		changed := attempt.Err() != nil && ctx.Err() == nil
		end()
		switch {
		case err == nil:
			if err := s.WaitRevision(ctx, revision); err != nil {
				return 0, fmt.Errorf("%w: the image lags: %w", ErrUnavailable, err)
			}
			return revision, nil
		case s.base.Err() != nil:
			return 0, ErrClosed
		case ctx.Err() != nil && s.backend.HasLeader():
			// A leader that were gone would have been missed by now: it is slow, or its disk is.
			return 0, missed{fmt.Errorf("%w: the leader has not answered for %v", ErrUnavailable, s.cfg.ReadTimeout)}
		case ctx.Err() != nil:
			return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
		case changed:
			continue
		}
		if perr := pause(ctx, retryPause); perr != nil {
			return 0, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
}

// leaderPoll is how often a waiting request looks for a new leader.
const leaderPoll = 5 * time.Millisecond

// missed is the refusal of a request that waited in vain for a leader, or for its answer.
type missed struct{ error }

func (m missed) Unwrap() error { return m.error }

// Passing tells whether a refusal may pass soon: the leader was missed, or slow, only while the request waited, and nothing
// was done. Where there is no leader, a request that comes later is refused at once, by an error that is not passing.
func Passing(err error) bool {
	var m missed
	return errors.As(err, &m) && !errors.Is(err, ErrUncertain)
}

// awaitLeader returns at once when there is a leader. A request that finds none waits for the
// rest of the grace period, which begins when the first request found none.
func (s *Store) awaitLeader(ctx context.Context) error {
	if s.backend.HasLeader() {
		if s.lost.Load() != 0 {
			s.lost.Store(0)
		}
		return nil
	}
	s.lost.CompareAndSwap(0, time.Now().UnixNano())
	for waited := false; ; waited = true {
		since := s.lost.Load()
		if s.backend.HasLeader() {
			s.lost.Store(0)
			return nil
		}
		if since != 0 && time.Since(time.Unix(0, since)) > s.cfg.LeaderGrace {
			err := fmt.Errorf("%w: no leader for %v", ErrUnavailable, time.Since(time.Unix(0, since)).Round(time.Millisecond))
			if waited {
				err = missed{err}
			}
			return err
		}
		if err := pause(ctx, leaderPoll); err != nil {
			return missed{fmt.Errorf("%w: no leader: %w", ErrUnavailable, err)}
		}
	}
}

// Healthy returns nil, or why consistent reads and writes can't be served now.
func (s *Store) Healthy() error {
	if !s.backend.HasLeader() {
		return fmt.Errorf("%w: no leader", ErrUnavailable)
	}
	if err := s.feedErr.Load(); err != nil {
		return fmt.Errorf("%w: the watch on etcd is broken: %w", ErrUnavailable, *err)
	}
	select {
	case <-s.done:
		return fmt.Errorf("%w: %w", ErrUnavailable, ErrClosed)
	default:
		return nil
	}
}

// term is a context that ends when the leader changes: requests that were forwarded to the old
// leader may be lost and would wait for seconds.
type term struct {
	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelCauseFunc

	changed <-chan struct{} // the backend's, from before the first request
}

var errLeaderChanged = errors.New("leader changed")

func (t *term) init() { t.ctx, t.cancel = context.WithCancelCause(context.Background()) }

func (t *term) renew() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.cancel(errLeaderChanged)
	t.init()
}

// attempt returns a context that ends with ctx or with the term.
func (t *term) attempt(ctx context.Context) (context.Context, func()) {
	t.mu.Lock()
	current := t.ctx
	t.mu.Unlock()
	actx, cancel := context.WithCancelCause(ctx)
	stop := context.AfterFunc(current, func() { cancel(errLeaderChanged) })
	return actx, func() { stop(); cancel(nil) }
}

func (s *Store) followTerm(ctx context.Context) {
	changed := s.term.changed
	if changed == nil {
		return
	}
	for {
		select {
		case <-changed:
			changed = s.backend.LeaderChanged() // first, so that no change is missed
			s.term.renew()
		case <-ctx.Done():
			return
		}
	}
}
