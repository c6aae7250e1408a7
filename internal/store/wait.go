package store

import (
	"container/heap"
	"context"
	"fmt"
	"sync"
)

// waiters are those who wait for the image to reach a revision.
type waiters struct {
	mu   sync.Mutex
	heap waiterHeap
}

type waiter struct {
	revision int64
	reached  chan struct{}
	index    int // in the heap; -1 once taken out
}

type waiterHeap []*waiter

func (h waiterHeap) Len() int           { return len(h) }
func (h waiterHeap) Less(i, j int) bool { return h[i].revision < h[j].revision }
func (h waiterHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}
func (h *waiterHeap) Push(x any) {
	w := x.(*waiter)
	w.index = len(*h)
	*h = append(*h, w)
}
func (h *waiterHeap) Pop() any {
	old := *h
	n := len(old) - 1
	w := old[n]
	old[n], w.index = nil, -1
	*h = old[:n]
	return w
}

// release wakes those whose revision is reached.
func (ws *waiters) release(revision int64) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	for len(ws.heap) > 0 && ws.heap[0].revision <= revision {
		close(heap.Pop(&ws.heap).(*waiter).reached)
	}
}

// WaitRevision returns when the image has reached revision: every event up to it is in its table
// and log. It returns ErrFuture when ctx ends first and ErrClosed when the store stops.
func (s *Store) WaitRevision(ctx context.Context, revision int64) error {
	if s.revision.Load() >= revision {
		return nil
	}
	w := &waiter{revision: revision, reached: make(chan struct{})}
	s.waiters.mu.Lock()
	if s.revision.Load() >= revision {
		s.waiters.mu.Unlock()
		return nil
	}
	heap.Push(&s.waiters.heap, w)
	s.waiters.mu.Unlock()

	var err error
	select {
	case <-w.reached:
		return nil
	case <-s.done:
		err = fmt.Errorf("wait for revision %d: %w", revision, ErrClosed)
	case <-ctx.Done():
		err = fmt.Errorf("wait for revision %d, the image is at %d: %w", revision, s.revision.Load(), ErrFuture)
	}
	s.waiters.mu.Lock()
	defer s.waiters.mu.Unlock()
	if w.index < 0 {
		return nil // reached meanwhile
	}
	heap.Remove(&s.waiters.heap, w.index)
	return err
}
