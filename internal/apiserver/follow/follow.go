// Package follow keeps what a server serves in step with cluster-scoped objects in the store's image: definitions of
// custom resources, services of aggregated APIs. It needs no leader.
//
// Whoever asks for what this server does not know yet can wait: first until the image holds all that was acknowledged
// anywhere, then, with [Follower.Await], until what the image holds has been handled.
package follow

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"barque.dev/internal/store"
)

// Config says what is followed.
type Config struct {
	// Table holds the objects, and What names them in errors.
	Table *store.Table
	What  string
	// Handle brings what depends on an object up to date; entry is nil when the object is gone. An error makes it
	// come again, ever later, with what there is then. One goroutine calls it at a time.
	Handle func(name string, entry *store.Entry) error
}

// A Follower calls its handler for every version of every object that it gets to see. It is safe for concurrent use.
type Follower struct {
	cfg Config

	// failed are objects that could not be handled; whoever handles uses it.
	failed retries

	mu sync.Mutex
	// told are the revisions of those that have been handled, by name.
	told  map[string]int64
	moved chan struct{} // closed when told changes
}

// New makes a follower; CatchUp, and then Run, do its work.
func New(cfg Config) *Follower {
	return &Follower{cfg: cfg, told: map[string]int64{}, moved: make(chan struct{})}
}

// CatchUp handles what the image holds, and returns the image's revision. It is called before Run, if at all.
func (f *Follower) CatchUp() int64 {
	snapshot := f.cfg.Table.Snapshot()
	for _, name := range f.names() {
		if _, ok := snapshot.Get(store.Key{Name: name}); !ok {
			f.handle(name, nil)
		}
	}
	snapshot.Ascend("", store.Key{}, func(e *store.Entry) bool {
		f.handle(e.Key().Name, e)
		return true
	})
	return snapshot.Revision()
}

func (f *Follower) names() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Collect(maps.Keys(f.told))
}

// Run follows the table until ctx ends or the store stops.
func (f *Follower) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		since := f.CatchUp()
		err := f.follow(ctx, since)
		switch {
		case errors.Is(err, store.ErrClosed), ctx.Err() != nil:
			return nil
		case !errors.Is(err, store.ErrCompacted):
			return fmt.Errorf("follow %s: %w", f.cfg.What, err)
		}
	}
	return nil
}

func (f *Follower) follow(ctx context.Context, since int64) error {
	cursor, err := f.cfg.Table.Watch(since)
	if err != nil {
		return err
	}
	defer cursor.Close()
	cursor.EventsOnly()
	for {
		events, err := f.next(ctx, cursor)
		if err != nil {
			return err
		}
		for _, e := range events {
			f.handle(e.Key.Name, e.Entry)
		}
		for _, name := range f.failed.take(time.Now()) {
			entry, _ := f.cfg.Table.Get(store.Key{Name: name})
			f.handle(name, entry)
		}
	}
}

// next waits for events, but no longer than until what failed is due again.
func (f *Follower) next(ctx context.Context, cursor *store.Cursor) ([]store.Event, error) {
	wait, cancel := ctx, context.CancelFunc(func() {})
	if due, ok := f.failed.next(); ok {
		wait, cancel = context.WithDeadline(ctx, due)
	}
	defer cancel()
	events, _, err := cursor.Next(wait)
	if err != nil && errors.Is(err, wait.Err()) && ctx.Err() == nil {
		return nil, nil
	}
	return events, err
}

// handle has one version of an object handled, unless it has been.
func (f *Follower) handle(name string, entry *store.Entry) {
	f.mu.Lock()
	told, known := f.told[name]
	f.mu.Unlock()
	seen := known == (entry != nil) && (entry == nil || told == entry.Revision())
	if seen && !f.failed.has(name) {
		return
	}
	if err := f.cfg.Handle(name, entry); err != nil {
		f.failed.add(name, time.Now())
	} else {
		f.failed.remove(name)
	}
	f.tell(name, entry)
}

// tell wakes those who wait for an object: it has been handled, as far as it can be.
func (f *Follower) tell(name string, entry *store.Entry) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if entry == nil {
		delete(f.told, name)
	} else {
		f.told[name] = entry.Revision()
	}
	close(f.moved)
	f.moved = make(chan struct{})
}

// Await waits until what the image knows of an object has been handled.
func (f *Follower) Await(ctx context.Context, name string) error {
	for {
		entry, _ := f.cfg.Table.Get(store.Key{Name: name})
		f.mu.Lock()
		told, known := f.told[name]
		moved := f.moved
		f.mu.Unlock()
		if (entry != nil) == known && (entry == nil || told >= entry.Revision()) {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for %s %s: %w", f.cfg.What, name, ctx.Err())
		}
	}
}

// AwaitAll is Await for all objects.
func (f *Follower) AwaitAll(ctx context.Context) error {
	var names []string
	f.cfg.Table.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
		names = append(names, e.Key().Name)
		return true
	})
	for _, name := range append(names, f.names()...) {
		if err := f.Await(ctx, name); err != nil {
			return err
		}
	}
	return nil
}
