package daemonset

import (
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Failed pods on one node are deleted at once, then after a second, then after two, … at most
// a quarter of an hour. After twice that without a failure it starts anew.
const (
	firstWait = time.Second
	lastWait  = 15 * time.Minute
)

type waitKey struct {
	set        types.UID
	generation int64
	node       string
}

type waitEntry struct {
	delay time.Duration
	since time.Time
}

// waits remembers failures. The zero value is ready; it is safe for concurrent use.
type waits struct {
	mu      sync.Mutex
	entries map[waitKey]waitEntry
}

// left is how long the node is still to be left alone.
func (w *waits) left(key waitKey, now time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	e, has := w.entries[key]
	if !has {
		return 0
	}
	return max(0, e.since.Add(e.delay).Sub(now))
}

// failed notes a failure.
func (w *waits) failed(key waitKey, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for k, e := range w.entries {
		if now.Sub(e.since) > 2*lastWait {
			delete(w.entries, k)
		}
	}
	e := w.entries[key]
	e.delay = min(max(firstWait, 2*e.delay), lastWait)
	e.since = now
	if w.entries == nil {
		w.entries = map[waitKey]waitEntry{}
	}
	w.entries[key] = e
}
