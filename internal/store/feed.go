package store

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

const (
	sweepEvery      = time.Minute // how often unused encodings and old events are dropped
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

// resync loads every table at one revision. No watch is running meanwhile, and what earlier ones
// delivered is applied first, so that nothing else changes the tables.
func (s *Store) resync(ctx context.Context) error {
	s.queue.drain()
	s.registering.Lock()
	defer s.registering.Unlock()
	resp, err := s.backend.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte{0}, CountOnly: true, Serializable: true})
	if err != nil {
		return fmt.Errorf("resync: %w", err)
	}
	revision := resp.Header.Revision
	for prefix, t := range s.router.Load().tables {
		l, err := s.load(ctx, t.space, revision)
		if err != nil {
			return fmt.Errorf("resync %s: %w", prefix, err)
		}
		t.install(l, time.Now())
	}
	s.queue.skipTo(revision)
	s.advance(revision)
	return nil
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

// applyRevision hands the changes of one revision to their tables, in the order in which the
// transaction made the first change of each, then moves the image's revision.
func (s *Store) applyRevision(revision int64, events []*mvccpb.Event, now time.Time) {
	s.applying.Lock()
	r := s.router.Load()
	if first := r.route(events[0].Kv.Key); len(events) == 1 {
		if first != nil {
			first.apply(revisionEvents{revision, events}, now)
		}
	} else {
		groups := make(map[*Table][]*mvccpb.Event, 1)
		var order []*Table
		for _, ev := range events {
			if t := r.route(ev.Kv.Key); t != nil {
				if groups[t] == nil {
					order = append(order, t)
				}
				groups[t] = append(groups[t], ev)
			}
		}
		for _, t := range order {
			t.apply(revisionEvents{revision, groups[t]}, now)
		}
	}
	s.advance(revision)
	s.applying.Unlock()
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
			sweep := s.sweeps.Add(1)
			for _, t := range s.router.Load().tables {
				t.sweep(now, sweep-1)
			}
			s.leases.expire(now)
		case <-ctx.Done():
			return
		}
	}
}
