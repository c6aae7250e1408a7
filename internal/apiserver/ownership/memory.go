package ownership

import (
	"sync"

	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// Bounds of a memory, in bytes of what was read; the sets made of it take about ten times as much.
const (
	maxRemembered = 4 << 10  // of one entry
	maxMemory     = 16 << 10 // of all
)

// memory holds the sets of fields that were read last: of most kinds a cluster's objects are owned in few ways, since
// the same programs write them. It is safe for concurrent use, and its zero value is empty.
type memory struct {
	mu   sync.Mutex
	sets map[string]*fieldpath.Set // by their JSON
	size int
}

// get returns what was read before; nil if it isn't known. It is shared, and must not be changed.
func (m *memory) get(raw []byte) *fieldpath.Set {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.sets[string(raw)]
}

// put remembers a set. What does not fit beside the others takes their place.
func (m *memory) put(raw []byte, set *fieldpath.Set) {
	if len(raw) > maxRemembered {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.sets == nil || m.size+len(raw) > maxMemory {
		m.sets, m.size = map[string]*fieldpath.Set{}, 0
	}
	if _, ok := m.sets[string(raw)]; !ok {
		m.sets[string(raw)] = set
		m.size += len(raw)
	}
}
