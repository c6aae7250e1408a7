package client

import (
	"context"
	"errors"
	"fmt"
	"log/slog"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// Follow implements Watcher on the store's event log.
func (c *InProcess) Follow(ctx context.Context, kind client.Object, synced func(), handle func(Event)) error {
	gvk, err := c.GroupVersionKindFor(kind)
	if err != nil {
		return err
	}
	res, table, err := c.kept(gvk)
	if err != nil {
		return err
	}
	f := &follower{log: c.cfg.Log, res: res, table: table, gvk: gvk, sample: kind, handle: handle, known: map[store.Key]*store.Entry{}}
	since, err := f.list()
	if err != nil {
		return err
	}
	if synced != nil {
		synced()
	}
	for {
		err := f.watch(ctx, since)
		switch {
		case errors.Is(err, store.ErrClosed):
			if done, err := c.followOn(f, err); done {
				return err
			}
		case !errors.Is(err, store.ErrCompacted):
			return err
		}
		// The follower was too slow for the log, or the table is another: what it missed is the difference
		// between what it has seen and what there is.
		if since, err = f.list(); err != nil {
			return err
		}
	}
}

// followOn goes on in the table that took the place of a closed one. A kind that nobody serves any more has no
// objects; following it is done.
func (c *InProcess) followOn(f *follower, closed error) (done bool, err error) {
	res, table, err := c.kept(f.gvk)
	switch {
	case err == nil && table == f.table:
		return true, closed // the store has stopped
	case err == nil:
		f.res, f.table = res, table
		return false, nil
	}
	for _, entry := range f.known {
		if err := f.emit(entry, nil); err != nil {
			return true, err
		}
	}
	return true, err
}

// follower is one Follow under way. known is what it has handed over.
type follower struct {
	log    *slog.Logger
	res    *api.Resource
	table  *store.Table
	gvk    schema.GroupVersionKind
	sample client.Object
	handle func(Event)
	known  map[store.Key]*store.Entry
}

// list turns the difference between what is known and what there is into events, and returns
// the revision from which to watch.
func (f *follower) list() (int64, error) {
	snapshot := f.table.Snapshot()
	var failure error
	for key, entry := range f.known {
		if _, ok := snapshot.Get(key); !ok {
			if err := f.emit(entry, nil); err != nil {
				return 0, err
			}
		}
	}
	snapshot.Ascend("", store.Key{}, func(entry *store.Entry) bool {
		old := f.known[entry.Key()]
		if old != nil && old.Revision() == entry.Revision() {
			f.known[entry.Key()] = entry // which may be of another table
			return true
		}
		failure = f.emit(old, entry)
		return failure == nil
	})
	return snapshot.Revision(), failure
}

func (f *follower) watch(ctx context.Context, since int64) error {
	cursor, err := f.table.Watch(since)
	if err != nil {
		return err
	}
	defer cursor.Close()
	cursor.EventsOnly()
	for {
		events, _, err := cursor.Next(ctx)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := f.emit(f.known[e.Key], e.Entry); err != nil {
				return err
			}
		}
	}
}

// emit hands over one change. An object that was replaced by another of its name is removed
// first, so that nobody takes the new one for the old.
func (f *follower) emit(old, entry *store.Entry) error {
	if old == nil && entry == nil {
		return nil
	}
	if old != nil && entry != nil && old.CreateRevision() != entry.CreateRevision() {
		if err := f.emit(old, nil); err != nil {
			return err
		}
		old = nil
	}
	if entry != nil {
		if _, err := entry.Object(); err != nil {
			// One that was sealed with another key, or is damaged, must not keep those who
			// follow from the rest: it stays what it was.
			f.log.Warn("an object can't be read and is passed over", "kind", f.gvk.Kind,
				"namespace", entry.Key().Namespace, "name", entry.Key().Name, "error", err)
			return nil
		}
	}
	var event Event
	var err error
	if event.Old, err = f.object(old); err != nil {
		return err
	}
	if event.New, err = f.object(entry); err != nil {
		return err
	}
	if entry == nil {
		delete(f.known, old.Key())
	} else {
		f.known[entry.Key()] = entry
	}
	f.handle(event)
	return nil
}

func (f *follower) object(entry *store.Entry) (client.Object, error) {
	if entry == nil {
		return nil, nil //nolint:nilnil // no entry, no object
	}
	shared, err := entry.Object()
	if err != nil {
		return nil, fmt.Errorf("follow %s: %w", f.gvk, err)
	}
	return newLike(f.res, shared, f.gvk, f.sample)
}
