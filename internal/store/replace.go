package store

import (
	"fmt"
	"time"

	"github.com/tidwall/btree"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// Replace puts a table in the place of old, for a schema that reads the same keys in another way. The objects that the image
// holds stay, to be decoded anew; cursors on old end with ErrClosed, and writes that still come to it go on in the new
// table. Whoever reads old from then on reads the past.
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
	t.install(old.again(t.space), time.Now())
	s.router.Store(s.router.Load().with(t))
	s.applying.Unlock()

	old.mu.Lock()
	old.next = t
	old.mu.Unlock()
	old.close()
	return t, nil
}

// again is the table's content as entries of another table.
func (t *Table) again(space *keyspace) loaded {
	t.mu.RLock()
	defer t.mu.RUnlock()
	l := loaded{tree: btree.NewMap[string, *Entry](treeDegree), revision: t.known()}
	t.tree.Scan(func(path string, e *Entry) bool {
		l.tree.Load(path, newEntry(space, path, &mvccpb.KeyValue{Value: e.stored, CreateRevision: e.create, ModRevision: e.mod}))
		return true
	})
	return l
}

// Absent is a table of nothing: it has no objects, watches of it end at once, and writes fail with ErrClosed. It stands in
// for the table of a resource that is no longer kept.
func (s *Store) Absent() *Table {
	t := newTable(s, Schema{Prefix: "/"})
	t.loading, t.closed, t.absent = false, true, true
	return t
}
