package store

import (
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/tidwall/btree"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
)

// A Trait is one thing about objects by which lists select some of them: the value of one label, or of one field.
//
// Unlike the schema's indexes, which every write keeps, what is known of traits is kept by those who ask: a list that
// selects by one for the second time within a while makes an index of it, and every later one adds what the log says happened
// since. So writes pay nothing, nor does a table that nobody selects from, nor a label that nobody selects by; what nobody
// asked for during [traitSweeps] sweeps is forgotten. An index takes about 100 bytes for every object that has
// the trait, and a table has at most [maxTraits].
type Trait struct {
	// Name tells the table's traits apart. Of one name there is one Value.
	Name string
	// Value is an object's value; ok is false when it has none. It is pure, and asks nobody.
	Value func(obj runtime.Object) (value string, ok bool)
}

// LabelTrait is the value of a label.
func LabelTrait(key string) Trait {
	return Trait{Name: "label " + key, Value: func(obj runtime.Object) (string, bool) {
		m, err := meta.Accessor(obj)
		if err != nil {
			return "", false
		}
		value, ok := m.GetLabels()[key]
		return value, ok
	}}
}

const (
	// maxTraits is how many indexes of traits a table has at once. A trait more is walked for, until one of them is forgotten.
	maxTraits = 8
	// maxAsked bounds how many traits are remembered that were asked for once.
	maxAsked = 64
	// traitSweeps is for how many sweeps an index is kept that nobody asks for.
	traitSweeps = 3
	// minTraitObjects is from how many objects on an index is worth it.
	minTraitObjects = 256
)

// traits are the indexes that a table's readers keep.
type traits struct {
	table *Table

	mu    sync.RWMutex
	known map[string]*traitIndex
	asked map[string]struct{} // since the sweep before the last one
}

// traitIndex finds the entries of one table version by a trait.
type traitIndex struct {
	trait Trait
	used  atomic.Int64 // sweep in which it was last asked for

	mu sync.RWMutex
	// number is that of the log's event that comes next: the index is what the table was before it. It is
	// negative before the first load.
	number int64
	values map[string]*btree.Map[string, *Entry] // by value and path
	of     map[string]string                     // the value by path
	// unclear are the paths of objects that can't be decoded. While there are any the index answers nothing: a walk finds
	// them, and says so.
	unclear map[string]struct{}
}

// AscendTrait calls f with the objects of a namespace, or all when namespace is empty, whose trait has one of values,
// in the order of their keys, starting behind after, until f returns false. It returns false, having called nothing, when
// that can only be found by looking at every object, which is then for the caller to do. f must not block, nor ask the
// same snapshot for traits.
func (s *Snapshot) AscendTrait(trait Trait, values []string, namespace string, after Key, f func(*Entry) bool) bool {
	if s.traits == nil || s.tree.Len() < minTraitObjects {
		return false
	}
	if remote, ok := s.space.schema.Transform.(Remote); ok && remote.Remote() {
		return false // looking at an object may take time
	}
	index := s.traits.index(trait)
	if index == nil || !index.reach(s) {
		return false
	}
	defer index.mu.RUnlock()
	prefix, pivot := "", ""
	if namespace != "" {
		if !s.space.schema.Namespaced {
			return true
		}
		prefix = namespace + "/"
		pivot = prefix
	}
	behind := ""
	if after != (Key{}) {
		behind = s.space.path(after)
		pivot = max(pivot, behind)
	}
	if len(values) > 1 {
		index.ascendAll(values, prefix, pivot, behind, f)
		return true
	}
	for _, value := range values {
		index.ascend(value, prefix, pivot, behind, f)
	}
	return true
}

// ascend calls f with the entries of one value, from pivot on, as long as they have the prefix.
func (x *traitIndex) ascend(value, prefix, pivot, behind string, f func(*Entry) bool) {
	paths := x.values[value]
	if paths == nil {
		return
	}
	paths.Ascend(pivot, func(path string, e *Entry) bool {
		if path == behind && behind != "" {
			return true
		}
		return strings.HasPrefix(path, prefix) && f(e)
	})
}

// ascendAll is ascend for several values at once, which may be repeated.
func (x *traitIndex) ascendAll(values []string, prefix, pivot, behind string, f func(*Entry) bool) {
	var all []*Entry
	for i, value := range values {
		if !slices.Contains(values[:i], value) {
			x.ascend(value, prefix, pivot, behind, func(e *Entry) bool { all = append(all, e); return true })
		}
	}
	slices.SortFunc(all, func(a, b *Entry) int { return strings.Compare(a.path, b.path) })
	for _, e := range all {
		if !f(e) {
			return
		}
	}
}

// index returns the index of a trait, or nil when it is asked for the first time.
func (t *traits) index(trait Trait) *traitIndex {
	sweep := t.table.space.sweeps.Load()
	t.mu.RLock()
	x := t.known[trait.Name]
	t.mu.RUnlock()
	if x != nil {
		if x.used.Load() != sweep {
			x.used.Store(sweep)
		}
		return x
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if x := t.known[trait.Name]; x != nil {
		return x
	}
	if _, again := t.asked[trait.Name]; !again || len(t.known) >= maxTraits {
		if len(t.asked) < maxAsked {
			if t.asked == nil {
				t.asked = map[string]struct{}{}
			}
			t.asked[trait.Name] = struct{}{}
		}
		return nil
	}
	x = &traitIndex{trait: trait, number: -1}
	x.used.Store(sweep)
	if t.known == nil {
		t.known = map[string]*traitIndex{}
	}
	t.known[trait.Name] = x
	return x
}

// sweep forgets what nobody asked for in a while.
func (t *traits) sweep(sweep int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if sweep%2 == 0 {
		clear(t.asked)
	}
	for name, x := range t.known {
		if x.used.Load() <= sweep-traitSweeps {
			delete(t.known, name)
		}
	}
}

// reach brings the index to where the snapshot is, and returns with its read lock held; or false, without, when the index is
// ahead of the snapshot or some object can't be read.
func (x *traitIndex) reach(s *Snapshot) bool {
	x.mu.RLock()
	if x.number == s.number {
		if len(x.unclear) == 0 {
			return true
		}
		x.mu.RUnlock()
		return false
	}
	ahead := x.number > s.number
	x.mu.RUnlock()
	if ahead {
		return false
	}
	x.mu.Lock()
	if x.number < s.number && !x.follow(s) {
		x.load(s)
	}
	x.mu.Unlock()
	x.mu.RLock()
	// Others may have brought it further meanwhile.
	if x.number == s.number && len(x.unclear) == 0 {
		return true
	}
	x.mu.RUnlock()
	return false
}

// follow applies what the log has between the index and the snapshot; false, having done nothing, when it does not have all of
// it, or it is so much that a load is cheaper.
func (x *traitIndex) follow(s *Snapshot) bool {
	if x.number < 0 || s.number-x.number > int64(s.tree.Len()/2) {
		return false
	}
	var parts [][]Event
	t := s.traits.table
	t.mu.RLock()
	for n := x.number; n < s.number; {
		events, ok := t.log.read(n)
		if !ok || len(events) == 0 {
			t.mu.RUnlock()
			return false
		}
		events = events[:min(int64(len(events)), s.number-n)]
		n += int64(len(events))
		parts = append(parts, events)
	}
	t.mu.RUnlock()
	for _, events := range parts {
		for i := range events {
			if e := events[i].Entry; e != nil {
				x.put(e)
			} else {
				x.remove(events[i].Prev.path)
			}
		}
	}
	x.number = s.number
	return true
}

// load takes everything from the snapshot.
func (x *traitIndex) load(s *Snapshot) {
	x.values, x.of, x.unclear = map[string]*btree.Map[string, *Entry]{}, map[string]string{}, nil
	s.tree.Scan(func(_ string, e *Entry) bool {
		x.put(e)
		return true
	})
	x.number = s.number
}

func (x *traitIndex) put(e *Entry) {
	obj, err := e.Object()
	if err != nil {
		x.remove(e.path)
		if x.unclear == nil {
			x.unclear = map[string]struct{}{}
		}
		x.unclear[e.path] = struct{}{}
		return
	}
	value, ok := x.trait.Value(obj)
	if old, had := x.of[e.path]; !ok || !had || old != value || len(x.unclear) > 0 {
		x.remove(e.path)
	}
	if !ok {
		return
	}
	paths := x.values[value]
	if paths == nil {
		paths = btree.NewMap[string, *Entry](treeDegree)
		x.values[value] = paths
	}
	paths.Set(e.path, e)
	x.of[e.path] = value
}

func (x *traitIndex) remove(path string) {
	delete(x.unclear, path)
	value, ok := x.of[path]
	if !ok {
		return
	}
	delete(x.of, path)
	if paths := x.values[value]; paths != nil {
		if paths.Delete(path); paths.Len() == 0 {
			delete(x.values, value)
		}
	}
}
