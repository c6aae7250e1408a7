package store

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	// sweepEvery is how often unused encodings and old events are dropped.
	sweepEvery = 20 * time.Second
	// sweptMuch is how many forgotten versions are worth a collection of garbage.
	sweptMuch       = 2000
	watchRetryFirst = 50 * time.Millisecond
	watchRetryMost  = 2 * time.Second
)

// Run keeps the image up to date until ctx ends, then ends all cursors and waiting requests. It
// is called once.
func (s *Store) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var wg sync.WaitGroup
	for _, f := range []func(context.Context){s.follow, s.applyAll, s.announce, s.sweepAll, s.compactAll, s.followTerm} {
		wg.Go(func() { f(ctx) })
	}
	<-ctx.Done()
	s.cancel()
	close(s.done)
	s.queue.stop()
	wg.Wait()
	s.reads.stop()
	s.registering.Lock()
	defer s.registering.Unlock()
	for _, t := range s.router.Load().tables {
		t.close(nil)
	}
	return nil
}

// follow keeps a watch on the whole keyspace, and starts over when etcd no longer has the
// history that is missing here.
func (s *Store) follow(ctx context.Context) {
	retry := watchRetryFirst
	for {
		started := time.Now()
		err := s.backend.Watch(ctx, s.queue.newest()+1, func(events []*mvccpb.Event) {
			if s.feedErr.Load() != nil {
				s.feedErr.Store(nil)
			}
			s.queue.push(events)
		})
		if ctx.Err() != nil {
			return
		}
		if errors.Is(err, ErrCompacted) {
			s.log.Warn("etcd compacted history before this server saw it; loading everything again", "revision", s.queue.newest())
			if err = s.resync(ctx); err == nil {
				s.feedErr.Store(nil)
				continue
			}
		}
		if err != nil {
			s.feedErr.Store(&err)
			s.log.Warn("watch on etcd broke", "error", err, "revision", s.queue.newest())
		}
		if time.Since(started) > watchRetryMost {
			retry = watchRetryFirst
		}
		if pause(ctx, retry) != nil {
			return
		}
		retry = min(2*retry, watchRetryMost)
	}
}

// resync loads every table at one revision, and shows what it loaded only once it has all of it: a reader
// that finds an object in one table and looks for another in a second must never see the second as it was
// before the first. No watch is running meanwhile, and what earlier ones delivered is applied first, so that
// nothing else changes the tables.
func (s *Store) resync(ctx context.Context) error {
	s.queue.drain()
	s.registering.Lock()
	defer s.registering.Unlock()
	resp, err := s.backend.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte{0}, CountOnly: true, Serializable: true})
	if err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	revision := resp.Header.Revision
	contents := map[*Table]content{}
	for prefix, t := range s.router.Load().tables {
		l, err := s.load(ctx, t.space, revision)
		if err != nil {
			return fmt.Errorf("resync %s: %w", prefix, err)
		}
		contents[t] = t.prepare(l)
	}
	s.installAll(contents, revision)
	return nil
}

// installAll puts the contents of all tables in place, in one step for whoever reads.
func (s *Store) installAll(contents map[*Table]content, revision int64) {
	s.applying.Lock()
	defer s.applying.Unlock()
	for t := range contents {
		t.mu.Lock()
		defer t.mu.Unlock()
	}
	now := time.Now()
	for t, c := range contents {
		t.installLocked(c, now)
	}
	s.queue.skipTo(revision)
	s.advance(revision)
}

// applyAll applies what the watch delivers.
func (s *Store) applyAll(ctx context.Context) {
	for {
		for {
			events := s.queue.take()
			if len(events) == 0 {
				break
			}
			now := time.Now()
			for len(events) > 0 {
				n := 1
				revision := events[0].Kv.ModRevision
				for n < len(events) && events[n].Kv.ModRevision == revision {
					n++
				}
				s.applyRevision(revision, events[:n:n], now)
				events = events[n:]
			}
		}
		select {
		case <-s.queue.ready:
		case <-ctx.Done():
			return
		}
	}
}

// applyRevision hands the changes of one revision to their tables, then moves the image's revision.
// Readers see all of them or none.
func (s *Store) applyRevision(revision int64, events []*mvccpb.Event, now time.Time) {
	s.applying.Lock()
	defer s.applying.Unlock()
	parts := s.router.Load().split(revision, events)
	for _, p := range parts {
		p.table.mu.Lock()
	}
	for _, p := range parts {
		p.table.takeLocked(p.changes, now)
	}
	s.advance(revision)
	for _, p := range parts {
		p.table.mu.Unlock()
	}
}

// part is what a revision changes in one table.
type part struct {
	table   *Table
	changes changeset
}

// split sorts the changes of one revision by table. There are seldom two, and hardly ever more.
func (r *router) split(revision int64, events []*mvccpb.Event) []part {
	parts := make([]part, 0, 1)
	for _, ev := range events {
		t := r.route(ev.Kv.Key)
		if t == nil {
			continue
		}
		i := slices.IndexFunc(parts, func(p part) bool { return p.table == t })
		if i < 0 {
			i = len(parts)
			parts = append(parts, part{t, changeset{revision, make([]change, 0, len(events))}})
		}
		set := &parts[i].changes
		set.changes = append(set.changes, t.read(ev))
	}
	return parts
}

// advance moves the image's revision and wakes who waits for it. Only the feed calls it.
func (s *Store) advance(revision int64) {
	if revision > s.revision.Load() {
		s.revision.Store(revision)
		s.waiters.release(revision)
	}
}

// announce lets idle cursors see that the revision moved.
func (s *Store) announce(ctx context.Context) {
	ticker := time.NewTicker(s.cfg.ProgressEvery)
	defer ticker.Stop()
	told := s.revision.Load()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if s.lost.Load() != 0 && s.backend.HasLeader() {
			s.lost.Store(0)
		}
		if now := s.revision.Load(); now != told {
			told = now
			s.tick.Add(1)
			for _, t := range s.router.Load().tables {
				t.wake()
			}
		}
	}
}

// sweepAll gives memory back that a burst used.
func (s *Store) sweepAll(ctx context.Context) {
	ticker := time.NewTicker(sweepEvery)
	defer ticker.Stop()
	for {
		select {
		case now := <-ticker.C:
			sweep, forgotten := s.sweeps.Add(1), 0
			for _, t := range s.router.Load().tables {
				forgotten += t.sweep(now, sweep-1)
			}
			s.leases.expire(now)
			if forgotten > sweptMuch {
				runtime.GC() // by itself it may come two minutes later when a burst is over
			}
		case <-ctx.Done():
			return
		}
	}
}
