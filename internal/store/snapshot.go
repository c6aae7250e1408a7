package store

import (
	"strings"

	"github.com/tidwall/btree"
)

// A Snapshot is a table at one revision. It never changes and needs no closing; what it alone
// refers to goes with it.
type Snapshot struct {
	space    *keyspace
	tree     *btree.Map[string, *Entry]
	indexes  map[string]*btree.Map[string, *Entry] // nil for older revisions
	revision int64
}

// at is the same content seen at a later revision, up to which nothing changed.
func (s *Snapshot) at(revision int64) *Snapshot {
	if s.revision == revision {
		return s
	}
	c := *s
	c.revision = revision
	return &c
}

// Revision is the store's revision that the snapshot shows.
func (s *Snapshot) Revision() int64 { return s.revision }

// Get returns an object's version.
func (s *Snapshot) Get(key Key) (*Entry, bool) { return s.tree.Get(s.space.path(key)) }

// Len counts the objects of a namespace, or all when namespace is empty. Counting one
// namespace walks it.
func (s *Snapshot) Len(namespace string) int {
	if namespace == "" {
		return s.tree.Len()
	}
	n := 0
	s.Ascend(namespace, Key{}, func(*Entry) bool { n++; return true })
	return n
}

// Ascend calls f with the objects of a namespace, or all when namespace is empty, in the order
// of their etcd keys, starting behind after (at the start when it is zero), until f returns false.
func (s *Snapshot) Ascend(namespace string, after Key, f func(*Entry) bool) {
	prefix, pivot := "", ""
	if namespace != "" {
		if !s.space.schema.Namespaced {
			return
		}
		prefix = namespace + "/"
		pivot = prefix
	}
	behind := after != Key{}
	if behind {
		if p := s.space.path(after); p >= pivot {
			pivot = p
		} else {
			behind = false
		}
	}
	s.tree.Ascend(pivot, func(path string, e *Entry) bool {
		if behind && path == pivot {
			return true
		}
		if !strings.HasPrefix(path, prefix) {
			return false
		}
		return f(e)
	})
}

// ByIndex returns the objects that an index of the schema finds under value, in key order. On
// a snapshot of an older revision it looks at every object.
func (s *Snapshot) ByIndex(index, value string) []*Entry {
	var found []*Entry
	if s.indexes != nil {
		idx := s.indexes[index]
		if idx == nil {
			return nil
		}
		prefix := value + "\x00"
		idx.Ascend(prefix, func(k string, e *Entry) bool {
			if !strings.HasPrefix(k, prefix) {
				return false
			}
			found = append(found, e)
			return true
		})
		return found
	}
	values := s.space.schema.Indexes[index]
	if values == nil {
		return nil
	}
	s.tree.Scan(func(_ string, e *Entry) bool {
		if obj, err := e.Object(); err == nil {
			for _, v := range values(obj) {
				if v == value {
					found = append(found, e)
					break
				}
			}
		}
		return true
	})
	return found
}
