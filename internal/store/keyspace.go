package store

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
)

// keyspace is what the entries of a table share.
type keyspace struct {
	schema Schema
	sweeps *atomic.Int64 // counts sweeps of unused wire encodings
}

// path is the part of a key below the table's prefix.
func (s *keyspace) path(key Key) string {
	if s.schema.Namespaced {
		return key.Namespace + "/" + key.Name
	}
	return key.Name
}

// etcdKey is the whole key. It fails on keys that would land elsewhere than they claim.
func (s *keyspace) etcdKey(key Key) (path string, full []byte, err error) {
	switch {
	case key.Name == "" || strings.ContainsRune(key.Name, '/'):
		err = fmt.Errorf("key %q/%q: bad name", key.Namespace, key.Name)
	case s.schema.Namespaced && (key.Namespace == "" || strings.ContainsRune(key.Namespace, '/')):
		err = fmt.Errorf("key %q/%q: bad namespace", key.Namespace, key.Name)
	case !s.schema.Namespaced && key.Namespace != "":
		err = fmt.Errorf("key %q/%q: the resource has no namespaces", key.Namespace, key.Name)
	}
	if err != nil {
		return "", nil, err
	}
	path = s.path(key)
	return path, []byte(s.schema.Prefix + path), nil
}

// encrypt makes the bytes that are kept at a key.
func (s *keyspace) encrypt(ctx context.Context, key, value []byte) ([]byte, error) {
	if s.schema.Transform == nil {
		return value, nil
	}
	return s.schema.Transform.ToStorage(ctx, value, string(key))
}

// prefixEnd is the first key after all keys that begin with prefix.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] < 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return []byte{0}
}

// router finds the table of a key by its longest registered prefix. It is immutable.
type router struct {
	tables map[string]*Table
}

// route returns the table of key, or nil.
func (r *router) route(key []byte) *Table {
	for i := len(key) - 1; i >= 0; i-- {
		if key[i] != '/' {
			continue
		}
		if t := r.tables[string(key[:i+1])]; t != nil {
			return t
		}
	}
	return nil
}

func (r *router) with(t *Table) *router {
	next := &router{tables: make(map[string]*Table, len(r.tables)+1)}
	for p, o := range r.tables {
		next.tables[p] = o
	}
	next.tables[t.space.schema.Prefix] = t
	return next
}

func (r *router) without(t *Table) *router {
	next := &router{tables: make(map[string]*Table, len(r.tables))}
	for p, o := range r.tables {
		if o != t {
			next.tables[p] = o
		}
	}
	return next
}
