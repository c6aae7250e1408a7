package store

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// A Cursor is a position in a table's log. One goroutine uses it at a time; only Close may be
// called by others. It holds no resources but its memory, and delays nobody however slow it is.
type Cursor struct {
	table *Table
	next  int64 // number of the event that comes next
	since int64 // events up to it are passed over (a start that lay ahead of the image)
	seen  int64 // progress that was returned last
	tick  int64 // the store's tick at which progress was last looked at
	quiet bool  // progress alone is not returned

	closed  chan struct{}
	once    sync.Once
	crowded atomic.Bool // it counts as one of the table's crowd
}

// Watch returns a cursor that sees every event after revision since exactly once, in order. since
// may lie ahead of the image. It returns ErrCompacted when history after since is missing, and
// ErrClosed when the table is gone or was replaced.
func (t *Table) Watch(since int64) (*Cursor, error) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.closed {
		return nil, t.errClosed("watch")
	}
	n, ok := t.log.seek(since)
	if !ok {
		return nil, t.errCompacted(since)
	}
	c := &Cursor{table: t, next: n, since: since, seen: since, tick: t.store.tick.Load(), closed: make(chan struct{})}
	c.crowded.Store(true)
	t.gather.crowd.Add(1)
	return c, nil
}

func (t *Table) errClosed(verb string) error {
	return fmt.Errorf("%s %s: %w", verb, t.space.schema.Prefix, ErrClosed)
}

func (t *Table) errCompacted(since int64) error {
	return fmt.Errorf("watch %s after revision %d, history starts after %d: %w", t.space.schema.Prefix, since, t.log.floor, ErrCompacted)
}

// Revision is the revision up to which the cursor has handed over everything.
func (c *Cursor) Revision() int64 { return c.seen }

// EventsOnly makes Next return for events alone, not for progress, and at once, however many cursors there are: who
// serves this process sleeps as long as nothing happens. It is called before the first Next.
func (c *Cursor) EventsOnly() {
	c.quiet = true
	c.leave()
}

// leave takes the cursor out of the table's crowd.
func (c *Cursor) leave() {
	if c.crowded.CompareAndSwap(true, false) {
		c.table.gather.crowd.Add(-1)
	}
}

// Next waits for events and returns them with the revision up to which the cursor has now seen
// everything. It returns no events when there were none for a while but the revision moved, for
// bookmarks. The events of one revision come together; the slice may be kept but not changed. Where a table has
// many cursors, an event may wait some milliseconds for others, for the sake of all (see [pace]).
//
// It returns ctx's error, ErrCompacted when the cursor fell off the log, or ErrClosed.
func (c *Cursor) Next(ctx context.Context) (events []Event, progress int64, err error) {
	return c.NextUntil(ctx, nil)
}

// NextUntil is Next, but returns without events, too, when something comes from alarm.
func (c *Cursor) NextUntil(ctx context.Context, alarm <-chan time.Time) (events []Event, progress int64, err error) {
	for {
		events, wait, err := c.poll()
		if wait == nil {
			return events, c.seen, err
		}
		select {
		case <-wait:
		case <-alarm:
			return nil, c.seen, nil
		case <-ctx.Done():
			return nil, c.seen, ctx.Err()
		case <-c.closed:
			return nil, c.seen, c.table.errClosed("watch")
		}
	}
}

// poll reads what there is, or returns the channel to wait on before the next poll.
func (c *Cursor) poll() (events []Event, wait <-chan struct{}, err error) {
	t := c.table
	t.mu.RLock()
	events, wait, done, err := c.pollLocked()
	t.mu.RUnlock()
	if done || wait != nil {
		return events, wait, err
	}
	// Nobody waited yet. The channel must be there before the last look.
	t.mu.Lock()
	defer t.mu.Unlock()
	if c.quiet && t.grown == nil {
		t.grown = make(chan struct{})
	}
	if !c.quiet && t.changed == nil {
		t.changed = make(chan struct{})
	}
	events, wait, _, err = c.pollLocked()
	return events, wait, err
}

// pollLocked looks once; done tells that there is something to return.
func (c *Cursor) pollLocked() (events []Event, wait <-chan struct{}, done bool, err error) {
	t := c.table
	hidden := !c.quiet && t.gather.hides(c.next)
	for !hidden {
		events, ok := t.log.read(c.next)
		if !ok {
			return nil, nil, true, t.errCompacted(c.seen)
		}
		if len(events) == 0 {
			break
		}
		c.next += int64(len(events))
		for len(events) > 0 && events[0].Revision <= c.since {
			events = events[1:]
		}
		if len(events) > 0 {
			c.seen = events[len(events)-1].Revision
			return events, nil, true, nil
		}
	}
	if t.closed {
		return nil, nil, true, t.errClosed("watch")
	}
	if c.quiet {
		return nil, t.grown, false, nil
	}
	if hidden { // nor is there progress while there may be events
		return nil, t.changed, false, nil
	}
	if tick := t.store.tick.Load(); tick != c.tick {
		c.tick = tick
		if known := t.known(); known > c.seen {
			c.seen = known
			return nil, nil, true, nil
		}
	}
	return nil, t.changed, false, nil
}

// Close ends a Next that waits. It may be called more than once, by anybody.
func (c *Cursor) Close() {
	c.once.Do(func() {
		c.leave()
		close(c.closed)
	})
}
