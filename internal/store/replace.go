package store

import (
	"fmt"
	"time"

	"github.com/tidwall/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Replace puts a table in the place of old, for a schema that reads the same keys in another way. The objects that the image
// holds stay, to be decoded anew. Cursors on old end with ErrClosed; whoever still reads old or writes to it does so in the
// new table from then on.
func (s *Store) Replace(old *Table, schema Schema) (*Table, error) {
	was := old.space.schema
	if schema.Prefix != was.Prefix || schema.Namespaced != was.Namespaced {
		return nil, fmt.Errorf("replace table %s: its keys would be others", was.Prefix)
	}
	s.registering.Lock()
	defer s.registering.Unlock()
	if s.router.Load().tables[schema.Prefix] != old {
		return nil, fmt.Errorf("replace table %s: it is not registered", was.Prefix)
	}
	t := newTable(s, schema)
	// No revision is applied meanwhile, so that the new table begins exactly where the old one ends.
	s.applying.Lock()
	defer s.applying.Unlock()
	t.install(old.again(t.space), time.Now())
	old.close(t)
	s.router.Store(s.router.Load().with(t))
	return t, nil
}

// again is the table's content as entries of another table.
func (t *Table) again(space *keyspace) loaded {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := loaded{tree: btree.NewMap[string, *Entry](treeDegree), revision: t.known()}
	t.tree.Scan(func(path string, e *Entry) bool {
		n := newEntry(space, path, &mvccpb.KeyValue{Value: e.stored, CreateRevision: e.create, ModRevision: e.mod})
		n.plain.Store(e.plain.Load()) // it may not be possible again
		l.tree.Load(path, n)
		return true
	})
	return l
}

// close ends all cursors, and fixes the content to the revision that the store has now: no revision
// may be applied before the table is out of the router. heir may be nil.
func (t *Table) close(heir *Table) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.revision = t.known()
	t.closed, t.next = true, heir
	t.wakeLocked()
}

// rlock locks, for reading, the table that keeps what this one kept: itself, or what took its
// place. It returns the table that the caller has to unlock.
func (t *Table) rlock() *Table {
	for {
		t.mu.RLock()
		next := t.next
		if next == nil {
			return t
		}
		t.mu.RUnlock()
		t = next
	}
}

// lock is rlock for writing.
func (t *Table) lock() *Table {
	for {
		t.mu.Lock()
		next := t.next
		if next == nil {
			return t
		}
		t.mu.Unlock()
		t = next
	}
}

// heir is the table that keeps what this one kept, at this moment.
func (t *Table) heir() *Table {
	t = t.rlock()
	defer t.mu.RUnlock()
	return t
}

// Absent is a table of nothing: it has no objects, watches of it end at once, and writes fail with ErrClosed. It stands in
// for the table of a resource that is no longer kept.
func (s *Store) Absent() *Table {
	t := newTable(s, Schema{Prefix: "/"})
	t.loading, t.closed, t.absent = false, true, true
	return t
}
