package store

import (
	"slices"
	"strings"

	"github.com/tidwall/btree"
)

// A Snapshot is a table at one revision. It never changes and needs no closing; what it alone
// refers to goes with it.
type Snapshot struct {
	space    *keyspace
	tree     *btree.Map[string, *Entry]
	indexes  map[string]*btree.Map[string, *Entry] // nil for older revisions
	unread   []*Entry                              // that no index has; in no order
	revision int64
	traits   *traits // nil for older revisions
	number   int64   // of the log's event that came next when the snapshot was taken
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
// a snapshot of an older revision it looks at every object. An object that can't be decrypted is under
// no value, unless its [Transformer] is [Remote]: then it may become readable at any time and is among
// the results, so that whoever asked learns what is wrong when he reads it.
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
		return s.addUnread(found, s.space.schema.Indexes[index], value)
	}
	values := s.space.schema.Indexes[index]
	if values == nil {
		return nil
	}
	s.tree.Scan(func(_ string, e *Entry) bool {
		if e.under(values, value) {
			found = append(found, e)
		}
		return true
	})
	return found
}

// addUnread adds what no index has, in its place.
func (s *Snapshot) addUnread(found []*Entry, values IndexFunc, value string) []*Entry {
	known := len(found)
	for _, e := range s.unread {
		if e.under(values, value) {
			found = append(found, e)
		}
	}
	if len(found) > known {
		slices.SortFunc(found, func(a, b *Entry) int { return strings.Compare(a.path, b.path) })
	}
	return found
}

// under tells whether an index finds the entry under value; see ByIndex.
func (e *Entry) under(values IndexFunc, value string) bool {
	obj, err := e.Object()
	if err == nil {
		return slices.Contains(values(obj), value)
	}
	return e.plain.Load() == nil && e.remote()
}
