package store

import (
	"context"
	"fmt"
	"iter"
	"maps"
	"slices"
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
	pending []changeset
	tree    *btree.Map[string, *Entry]
	indexes map[string]*btree.Map[string, *Entry] // by value + "\x00" + path
	// unread are the entries, by path, that no index has, because they could not be decrypted or
	// doing so may take time; nil when there are none.
	unread map[string]*Entry
	// revision is that of the last change here or of the load. The tree is exact at
	// max(revision, store's revision); see known.
	revision int64
	snapshot *Snapshot // of the tree as it is now; nil when it changed since
	log      eventLog
	grown    chan struct{} // closed when the log grows; nil when nobody waits for that alone
	changed  chan struct{} // closed when the log has grown, a little later, or progress is due; nil when nobody waits
	gather   gathering     // says how much later
	closed   bool          // nothing is applied any more; the content is that of revision
	absent   bool          // nothing is kept here; see Store.Absent
	next     *Table        // that took the place of this one, which is closed; see Store.Replace
	old      []*Snapshot   // some older snapshots that continued lists asked for

	traits traits // of the newest content; has a lock of its own
}

// A changeset is what one revision changes in one table.
type changeset struct {
	revision int64
	changes  []change
}

// A change is one event of etcd, made ready before the table is locked: decoding takes its time, and who
// decrypts may have to read another table.
type change struct {
	path      string
	entry     *Entry // nil when the object was removed
	indexable bool   // see Entry.indexable
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
	t.traits.table = t
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
		t.indexReadLocked()
		indexes := make(map[string]*btree.Map[string, *Entry], len(t.indexes))
		for name, idx := range t.indexes {
			indexes[name] = idx.Copy()
		}
		t.snapshot = &Snapshot{
			space: t.space, tree: t.tree.Copy(), indexes: indexes, unread: slices.Collect(maps.Values(t.unread)), revision: t.known(),
			traits: &t.traits, number: t.log.end(),
		}
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

// read makes a change of an event.
func (t *Table) read(ev *mvccpb.Event) change {
	c := change{path: string(ev.Kv.Key[len(t.space.schema.Prefix):])}
	if ev.Type == mvccpb.Event_DELETE {
		return c
	}
	c.entry = newEntry(t.space, c.path, ev.Kv)
	c.indexable = t.readForIndexes(c.entry)
	return c
}

// readForIndexes decodes an entry if there are indexes; false if its values can't be known now.
func (t *Table) readForIndexes(e *Entry) bool {
	if len(t.space.schema.Indexes) == 0 {
		return true
	}
	if !e.indexable() {
		return false
	}
	_, _ = e.Object() // one that can't be decoded has no values
	return true
}

// takeLocked takes over the changes of one revision. Only the feed calls it, in order.
func (t *Table) takeLocked(set changeset, now time.Time) {
	if t.loading {
		t.pending = append(t.pending, set)
		return
	}
	t.applyLocked(set, now)
}

func (t *Table) applyLocked(set changeset, now time.Time) {
	if set.revision <= t.revision {
		return // the load holds it already
	}
	events := make([]Event, 0, len(set.changes))
	for _, c := range set.changes {
		if e, ok := t.changeLocked(c, set.revision); ok {
			events = append(events, e)
		}
	}
	t.revision = set.revision
	if len(events) == 0 {
		return
	}
	t.snapshot = nil
	t.log.append(events, now)
	t.wakeLocked()
}

// changeLocked applies one change to tree and indexes.
func (t *Table) changeLocked(c change, revision int64) (Event, bool) {
	if c.entry == nil {
		prev, ok := t.tree.Delete(c.path)
		if !ok {
			return Event{}, false
		}
		t.unindex(prev)
		return Event{Type: Delete, Revision: revision, Key: prev.Key(), Prev: prev}, true
	}
	prev, had := t.tree.Set(c.path, c.entry)
	if had {
		t.unindex(prev)
	}
	if c.indexable {
		t.index(t.indexes, c.entry)
	} else {
		t.setUnread(c.entry)
	}
	return Event{Type: Put, Revision: revision, Key: c.entry.Key(), Entry: c.entry, Prev: prev}, true
}

// index adds an entry that was read to indexes.
func (t *Table) index(indexes map[string]*btree.Map[string, *Entry], e *Entry) {
	for name, values := range t.space.schema.Indexes {
		for _, v := range t.values(values, e) {
			indexes[name].Set(v+"\x00"+e.path, e)
		}
	}
}

func (t *Table) setUnread(e *Entry) {
	if t.unread == nil {
		t.unread = map[string]*Entry{}
	}
	t.unread[e.path] = e
}

// indexReadLocked adds to the indexes what has been read since it came.
func (t *Table) indexReadLocked() {
	for path, e := range t.unread {
		if e.object.Load() != nil {
			t.index(t.indexes, e)
			delete(t.unread, path)
		}
	}
}

func (t *Table) unindex(e *Entry) {
	if t.unread[e.path] == e {
		delete(t.unread, e.path)
		return
	}
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

// content is what a table is about to hold, made ready so that it can be put in place at once.
type content struct {
	loaded
	indexes map[string]*btree.Map[string, *Entry]
	unread  map[string]*Entry
}

// prepare makes content of what was loaded. Versions that are already in memory are kept rather than
// their copies.
func (t *Table) prepare(l loaded) content {
	t.mu.RLock() // nobody else changes the tree: see Store.Register and Store.resync
	keep := shared(t.tree, l.tree)
	t.mu.RUnlock()
	for _, e := range keep {
		l.tree.Set(e.path, e)
	}
	c := content{loaded: l, indexes: t.emptyIndexes()}
	l.tree.Scan(func(_ string, e *Entry) bool {
		switch {
		case t.readForIndexes(e):
			t.index(c.indexes, e)
		case c.unread == nil:
			c.unread = map[string]*Entry{e.path: e}
		default:
			c.unread[e.path] = e
		}
		return true
	})
	return c
}

// install makes what was loaded the content.
func (t *Table) install(l loaded, now time.Time) {
	c := t.prepare(l)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.installLocked(c, now)
}

// installLocked puts content in place. Events that came in meanwhile are applied on top. Old history is
// gone afterwards.
func (t *Table) installLocked(c content, now time.Time) {
	t.tree, t.indexes, t.unread, t.revision = c.tree, c.indexes, c.unread, c.revision
	t.snapshot, t.old, t.loading = nil, nil, false
	t.log.reset(c.revision)
	for _, set := range t.pending {
		t.applyLocked(set, now)
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

// wakeLocked lets every waiting cursor look again, a crowd perhaps a little later.
func (t *Table) wakeLocked() {
	if t.grown != nil {
		close(t.grown)
		t.grown = nil
	}
	if t.gather.later && !t.closed {
		return
	}
	now := time.Now()
	wait := t.gather.wait(now)
	if wait == 0 || t.closed {
		t.announceLocked(now)
		return
	}
	t.gather.later = true
	time.AfterFunc(wait, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.gather.later = false
		t.announceLocked(time.Now())
	})
}

// announceLocked lets the crowd look again now, at events and progress.
func (t *Table) announceLocked(now time.Time) {
	t.gather.last, t.gather.shown = now, t.log.end()
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
	t.announceLocked(time.Now())
	t.mu.Unlock()
}

// sweep gives memory back: events past their age, what was derived from versions that are past, whose
// number it returns, and encodings that nobody asked for lately.
func (t *Table) sweep(now time.Time, sweep int64) (forgotten int) {
	t.mu.Lock()
	t.log.expire(now)
	t.old = nil
	s := t.snapshotLocked()
	quiet := t.log.quiet(now.Add(-sweepEvery))
	t.mu.Unlock()
	t.traits.sweep(sweep)
	asks := true // whether who decrypts answers
	for e := range past(quiet, s) {
		if asks && e.settle() != nil && e.remote() {
			asks = false
		}
		if e.forget() {
			forgotten++
		}
	}
	s.tree.Scan(func(_ string, e *Entry) bool {
		e.dropWires(sweep)
		return true
	})
	return forgotten
}

// past are the versions of events that are not those of a snapshot any more.
func past(quiet [][]Event, s *Snapshot) iter.Seq[*Entry] {
	return func(yield func(*Entry) bool) {
		for _, events := range quiet {
			for i := range events {
				for _, e := range []*Entry{events[i].Entry, events[i].Prev} {
					if e == nil {
						continue
					}
					if current, _ := s.tree.Get(e.path); current != e && !yield(e) {
						return
					}
				}
			}
		}
	}
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
