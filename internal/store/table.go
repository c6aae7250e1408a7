package store

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/tidwall/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A Table holds the objects of one resource: an ordered copy-on-write tree of entries, one for
// each index, and the log of what changed. All methods are safe for concurrent use.
//
// Nothing that a table shows is ever older than the revision that it is shown under: who lists at
// a revision and watches on from it misses nothing. This holds for tables that are closed too:
//   - One that was replaced (see [Store.Replace]) is another name for its heir: what is read from
//     it and written to it is the heir's. Only its watches end, and none begin, since what follows
//     is decoded in another way: they return ErrClosed, and the watcher goes on in the table of today.
//   - One that was unregistered ends at the revision at which it went. Its last content is of that
//     revision for ever, and At returns ErrClosed for later ones and for the newest.
type Table struct {
	store *Store
	space *keyspace

	mu sync.RWMutex
	// loading: events are kept in pending until the first load is installed.
	loading bool
	pending []revisionEvents
	tree    *btree.Map[string, *Entry]
	indexes map[string]*btree.Map[string, *Entry] // by value + "\x00" + path
	// revision is that of the last change here or of the load. The tree is exact at
	// max(revision, store's revision); see known.
	revision int64
	snapshot *Snapshot // of the tree as it is now; nil when it changed since
	log      eventLog
	grown    chan struct{} // closed when the log grows; nil when nobody waits for that alone
	changed  chan struct{} // closed when the log grows or progress is due; nil when nobody waits
	closed   bool          // nothing is applied any more; the content is that of revision
	absent   bool          // nothing is kept here; see Store.Absent
	next     *Table        // that took the place of this one, which is closed; see Store.Replace
	old      []*Snapshot   // some older snapshots that continued lists asked for
}

// revisionEvents are the changes that one revision made in one table.
type revisionEvents struct {
	revision int64
	events   []*mvccpb.Event
}

// loaded is a table's content read from etcd at one revision.
type loaded struct {
	tree     *btree.Map[string, *Entry]
	revision int64
}

const treeDegree = 32

func newTable(s *Store, schema Schema) *Table {
	t := &Table{
		store:   s,
		space:   &keyspace{schema: schema, sweeps: &s.sweeps},
		loading: true,
		tree:    btree.NewMap[string, *Entry](treeDegree),
		log:     eventLog{limits: s.limits},
	}
	t.indexes = t.emptyIndexes()
	return t
}

func (t *Table) emptyIndexes() map[string]*btree.Map[string, *Entry] {
	m := make(map[string]*btree.Map[string, *Entry], len(t.space.schema.Indexes))
	for name := range t.space.schema.Indexes {
		m[name] = btree.NewMap[string, *Entry](treeDegree)
	}
	return m
}

// Schema says how the objects are kept now.
func (t *Table) Schema() Schema { return t.heir().space.schema }

// Get returns the newest version that the image holds.
func (t *Table) Get(key Key) (*Entry, bool) {
	return t.get(t.space.path(key))
}

func (t *Table) get(path string) (*Entry, bool) {
	t = t.rlock()
	defer t.mu.RUnlock()
	return t.tree.Get(path)
}

// Changed returns the revision of the table's last change and the number of objects since: who keeps
// something that is derived from the whole table learns at little cost whether it is still right.
func (t *Table) Changed() (revision int64, objects int) {
	t = t.rlock()
	defer t.mu.RUnlock()
	return t.revision, t.tree.Len()
}

// Snapshot returns the table as it is now. It costs O(1); the next write copies what it changes.
func (t *Table) Snapshot() *Snapshot {
	t = t.rlock()
	s, revision := t.snapshot, t.known()
	t.mu.RUnlock()
	if s != nil {
		return s.at(revision)
	}
	t = t.lock()
	defer t.mu.Unlock()
	return t.snapshotLocked().at(t.known())
}

// snapshotLocked is the copy that is shared until the next change.
func (t *Table) snapshotLocked() *Snapshot {
	if t.snapshot == nil {
		indexes := make(map[string]*btree.Map[string, *Entry], len(t.indexes))
		for name, idx := range t.indexes {
			indexes[name] = idx.Copy()
		}
		t.snapshot = &Snapshot{space: t.space, tree: t.tree.Copy(), indexes: indexes, revision: t.known()}
	}
	return t.snapshot
}

// known is the highest revision at which the tree is exact. The store's revision moves after all
// tables have applied it, and a table that is locked can't move: so either bound holds. A closed
// table no longer moves with the store.
func (t *Table) known() int64 {
	if t.closed {
		return t.revision
	}
	return max(t.store.revision.Load(), t.revision)
}

// apply takes over the changes of one revision. Only the feed calls it, in order.
func (t *Table) apply(re revisionEvents, now time.Time) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.loading {
		t.pending = append(t.pending, re)
		return
	}
	t.applyLocked(re, now)
}

func (t *Table) applyLocked(re revisionEvents, now time.Time) {
	if re.revision <= t.revision {
		return // the load holds it already
	}
	events := make([]Event, 0, len(re.events))
	for _, ev := range re.events {
		if e, ok := t.change(ev); ok {
			events = append(events, e)
		}
	}
	t.revision = re.revision
	if len(events) == 0 {
		return
	}
	t.snapshot = nil
	t.log.append(events, now)
	t.wakeLocked()
}

// change applies one change to tree and indexes.
func (t *Table) change(ev *mvccpb.Event) (Event, bool) {
	path := string(ev.Kv.Key[len(t.space.schema.Prefix):])
	if ev.Type == mvccpb.Event_DELETE {
		prev, ok := t.tree.Delete(path)
		if !ok {
			return Event{}, false
		}
		t.unindex(prev)
		return Event{Type: Delete, Revision: ev.Kv.ModRevision, Key: prev.Key(), Prev: prev}, true
	}
	e := newEntry(t.space, path, ev.Kv)
	prev, had := t.tree.Set(path, e)
	if had {
		t.unindex(prev)
	}
	t.index(t.indexes, e)
	return Event{Type: Put, Revision: e.mod, Key: e.Key(), Entry: e, Prev: prev}, true
}

func (t *Table) index(indexes map[string]*btree.Map[string, *Entry], e *Entry) {
	for name, values := range t.space.schema.Indexes {
		for _, v := range t.values(values, e) {
			indexes[name].Set(v+"\x00"+e.path, e)
		}
	}
}

func (t *Table) unindex(e *Entry) {
	for name, values := range t.space.schema.Indexes {
		for _, v := range t.values(values, e) {
			t.indexes[name].Delete(v + "\x00" + e.path)
		}
	}
}

// values are an entry's values in an index; an entry that can't be decoded has none.
func (t *Table) values(f IndexFunc, e *Entry) []string {
	obj, err := e.Object()
	if err != nil {
		return nil
	}
	return f(obj)
}

// install makes l the content. Events that came in meanwhile are applied on top. Versions that
// are already in memory are kept rather than their copies. Old history is gone afterwards.
func (t *Table) install(l loaded, now time.Time) {
	t.mu.RLock() // nobody else changes the tree: see Store.Register and Store.resync
	keep := shared(t.tree, l.tree)
	t.mu.RUnlock()
	for _, e := range keep {
		l.tree.Set(e.path, e)
	}
	indexes := t.emptyIndexes()
	l.tree.Scan(func(_ string, e *Entry) bool { t.index(indexes, e); return true })

	t.mu.Lock()
	defer t.mu.Unlock()
	t.tree, t.indexes, t.revision = l.tree, indexes, l.revision
	t.snapshot, t.old, t.loading = nil, nil, false
	t.log.reset(l.revision)
	for _, re := range t.pending {
		t.applyLocked(re, now)
	}
	t.pending = nil
	t.wakeLocked()
}

// shared lists the entries of have whose versions stand in loaded too.
func shared(have, loaded *btree.Map[string, *Entry]) []*Entry {
	var same []*Entry
	if have.Len() == 0 {
		return nil
	}
	loaded.Scan(func(path string, e *Entry) bool {
		if h, ok := have.Get(path); ok && h.mod == e.mod {
			same = append(same, h)
		}
		return true
	})
	return same
}

// wakeLocked lets every waiting cursor look again.
func (t *Table) wakeLocked() {
	if t.grown != nil {
		close(t.grown)
		t.grown = nil
	}
	t.announceLocked()
}

// announceLocked lets those cursors look again that want to know of progress.
func (t *Table) announceLocked() {
	if t.changed != nil {
		close(t.changed)
		t.changed = nil
	}
}

// wake is announceLocked for who does not hold the lock.
func (t *Table) wake() {
	t.mu.RLock()
	nobody := t.changed == nil
	t.mu.RUnlock()
	if nobody {
		return
	}
	t.mu.Lock()
	t.announceLocked()
	t.mu.Unlock()
}

// sweep gives memory back: events past their age, encodings that nobody asked for lately.
func (t *Table) sweep(now time.Time, sweep int64) {
	t.mu.Lock()
	t.log.expire(now)
	t.old = nil
	s := t.snapshotLocked()
	t.mu.Unlock()
	s.tree.Scan(func(_ string, e *Entry) bool {
		e.dropWires(sweep)
		return true
	})
}

// find returns the version of path that was written at revision, if memory has it.
func (t *Table) find(path string, revision int64) *Entry {
	t = t.rlock()
	defer t.mu.RUnlock()
	if e, ok := t.tree.Get(path); ok && e.mod == revision {
		return e
	}
	var found *Entry
	t.log.backwards(revision-1, func(ev *Event) bool {
		if ev.Entry != nil && ev.Revision == revision && ev.Entry.path == path {
			found = ev.Entry
		}
		return found == nil
	})
	return found
}

// removed returns the version of path that was removed at revision, if the log has it.
func (t *Table) removed(path string, revision int64) *Entry {
	t = t.rlock()
	defer t.mu.RUnlock()
	var found *Entry
	t.log.backwards(revision-1, func(ev *Event) bool {
		if ev.Type == Delete && ev.Revision == revision && ev.Prev.path == path {
			found = ev.Prev
		}
		return found == nil
	})
	return found
}

// At returns the table as it was at revision exactly, or as it is when revision is 0. It waits for a revision that lies ahead,
// returning ErrFuture when ctx ends first, and returns ErrCompacted when neither memory nor
// etcd has it any more, and ErrClosed when the table went before that revision.
func (t *Table) At(ctx context.Context, revision int64) (*Snapshot, error) {
	if err := t.store.WaitRevision(ctx, revision); err != nil {
		return nil, err
	}
	t = t.rlock()
	gone := t.closed && (revision <= 0 || revision > t.known())
	t.mu.RUnlock()
	switch {
	case gone:
		return nil, t.errClosed("read")
	case revision <= 0:
		return t.Snapshot(), nil
	}
	// What memory still has must not outlive etcd's history: who continues a list has to learn that
	// it is too old, on every server alike.
	if compacted := t.store.compacted.Load(); revision < compacted {
		return nil, fmt.Errorf("read %s at revision %d, history starts at %d: %w", t.space.schema.Prefix, revision, compacted, ErrCompacted)
	}
	if s := t.rewind(revision); s != nil {
		return s, nil
	}
	l, err := t.store.load(ctx, t.space, revision)
	if err != nil {
		return nil, fmt.Errorf("read %s at revision %d: %w", t.space.schema.Prefix, revision, err)
	}
	t.mu.RLock()
	keep := shared(t.tree, l.tree)
	t.mu.RUnlock()
	for _, e := range keep {
		l.tree.Set(e.path, e)
	}
	s := &Snapshot{space: t.space, tree: l.tree, revision: revision}
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.keepLocked(s), nil
}

// keptSnapshots bounds the older snapshots that are kept for the next page of a list.
const keptSnapshots = 4

func (t *Table) keepLocked(s *Snapshot) *Snapshot {
	if len(t.old) == keptSnapshots {
		t.old = append(t.old[:0:0], t.old[1:]...)
	}
	t.old = append(t.old, s)
	return s
}

// rewind undoes what the log says happened after revision; nil when the log doesn't reach so far.
func (t *Table) rewind(revision int64) *Snapshot {
	t = t.lock()
	defer t.mu.Unlock()
	if n, ok := t.log.seek(revision); ok && n == t.log.end() {
		return t.snapshotLocked().at(revision)
	}
	for _, s := range t.old {
		if s.revision == revision {
			return s
		}
	}
	if revision < t.log.floor {
		return nil
	}
	tree := t.tree.Copy()
	t.log.backwards(revision, func(ev *Event) bool {
		switch {
		case ev.Prev != nil:
			tree.Set(ev.Prev.path, ev.Prev)
		default:
			tree.Delete(ev.Entry.path)
		}
		return true
	})
	return t.keepLocked(&Snapshot{space: t.space, tree: tree, revision: revision})
}
