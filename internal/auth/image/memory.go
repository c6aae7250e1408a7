package image

import (
	"cmp"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Memory is a Reader over objects that are put into it: for tests, and for decisions about a
// state that is not stored. It is safe for concurrent use.
type Memory struct {
	indexes []Index

	mu      sync.RWMutex
	objects map[schema.GroupResource]map[memoryKey]runtime.Object
	index   map[memoryIndex][]runtime.Object
}

type memoryKey struct{ namespace, name string }

type memoryIndex struct {
	gr          schema.GroupResource
	name, value string
}

// NewMemory returns an empty image with these indexes.
func NewMemory(indexes ...Index) *Memory {
	return &Memory{
		indexes: indexes,
		objects: map[schema.GroupResource]map[memoryKey]runtime.Object{},
		index:   map[memoryIndex][]runtime.Object{},
	}
}

// Put stores or replaces an object, which must have metadata.
func (m *Memory) Put(gr schema.GroupResource, obj runtime.Object) {
	key := keyOf(obj)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(gr, key)
	if m.objects[gr] == nil {
		m.objects[gr] = map[memoryKey]runtime.Object{}
	}
	m.objects[gr][key] = obj
	for _, ix := range m.indexes {
		if ix.Resource != gr {
			continue
		}
		for _, value := range ix.Values(obj) {
			at := memoryIndex{gr, ix.Name, value}
			m.index[at] = append(m.index[at], obj)
			slices.SortFunc(m.index[at], func(a, b runtime.Object) int {
				x, y := keyOf(a), keyOf(b)
				return cmp.Or(cmp.Compare(x.namespace, y.namespace), cmp.Compare(x.name, y.name))
			})
		}
	}
}

// Delete removes an object if it is there.
func (m *Memory) Delete(gr schema.GroupResource, namespace, name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remove(gr, memoryKey{namespace, name})
}

func (m *Memory) remove(gr schema.GroupResource, key memoryKey) {
	old, ok := m.objects[gr][key]
	if !ok {
		return
	}
	delete(m.objects[gr], key)
	for at, list := range m.index {
		if at.gr != gr {
			continue
		}
		m.index[at] = slices.DeleteFunc(slices.Clone(list), func(o runtime.Object) bool { return o == old })
	}
}

// Get implements Reader.
func (m *Memory) Get(gr schema.GroupResource, namespace, name string) runtime.Object {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.objects[gr][memoryKey{namespace, name}]
}

// ByIndex implements Reader.
func (m *Memory) ByIndex(gr schema.GroupResource, index, value string, f func(runtime.Object) bool) {
	m.mu.RLock()
	list := m.index[memoryIndex{gr, index, value}]
	m.mu.RUnlock()
	for _, obj := range list {
		if !f(obj) {
			return
		}
	}
}

func keyOf(obj runtime.Object) memoryKey {
	o, err := meta.Accessor(obj)
	if err != nil {
		return memoryKey{}
	}
	return memoryKey{o.GetNamespace(), o.GetName()}
}
