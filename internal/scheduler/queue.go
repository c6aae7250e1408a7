package scheduler

import (
	"cmp"
	"container/heap"
	"context"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Back-off of a pod that did not fit: it doubles from the first to the last (stock values).
const (
	firstBackoff = time.Second
	lastBackoff  = 10 * time.Second
	// retryAfter is when a pod that waits is tried again even if nothing happened that could
	// help it, against a wake-up that was missed.
	retryAfter = 5 * time.Minute
)

// item is a pod in the queue. It is in one of the two heaps, or in neither while the
// scheduler tries it, or makes room for it.
type item struct {
	pod      *Pod
	attempts int
	added    time.Time // when it became pending
	backoff  time.Time // not to be tried before
	due      time.Time // when it moves from resting to ready
	missed   bool      // the cluster changed while it was being tried
	freed    bool      // a pod left the node that it is nominated to while it was being tried
	heap     *itemHeap
	index    int // in heap
}

// queue holds the pods that have no node: those ready to be tried, by priority and age, and
// those that rest, by when they are due. It is safe for concurrent use.
type queue struct {
	mu      sync.Mutex
	now     func() time.Time
	items   map[types.UID]*item
	social  map[types.UID]*item // those of items that other pods may help by being somewhere
	ready   itemHeap
	resting itemHeap
	wake    chan struct{} // holds a token when the heaps may have changed
}

func newQueue(now func() time.Time) *queue {
	return &queue{
		now:     now,
		items:   map[types.UID]*item{},
		social:  map[types.UID]*item{},
		ready:   itemHeap{less: func(a, b *item) bool { return byPriority(a, b) < 0 }},
		resting: itemHeap{less: func(a, b *item) bool { return a.due.Before(b.due) }},
		wake:    make(chan struct{}, 1),
	}
}

func byPriority(a, b *item) int {
	return cmp.Or(cmp.Compare(b.pod.Priority, a.pod.Priority), a.added.Compare(b.added))
}

// Set adds a pending pod, or takes its new version; one whose spec changed is tried again.
func (q *queue) Set(p *Pod) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[p.UID]
	if it == nil {
		it = &item{pod: p, added: q.now()}
		q.items[p.UID] = it
		if p.social() {
			q.social[p.UID] = it
		}
		q.move(it, &q.ready)
		return
	}
	changed := it.pod.Generation != p.Generation
	it.pod = p
	switch {
	case it.heap == &q.ready:
		heap.Fix(it.heap, it.index)
	case changed:
		q.hasten(it)
	}
}

// Remove forgets a pod: it has a node, or is gone.
func (q *queue) Remove(uid types.UID) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if it := q.items[uid]; it != nil {
		q.move(it, nil)
		delete(q.items, uid)
		delete(q.social, uid)
	}
}

// Failed says that the pod that Next returned found no node. wait is whether it should rest
// until the cluster changes, or only for its back-off. It tells whether the pod still needs a node.
func (q *queue) Failed(uid types.UID, wait bool) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[uid]
	if it == nil || it.heap != nil {
		return it != nil
	}
	it.backoff = q.now().Add(min(firstBackoff<<min(it.attempts-1, 10), lastBackoff))
	switch {
	case it.freed:
		it.due = q.now()
	case wait && !it.missed:
		it.due = q.now().Add(retryAfter)
	default:
		it.due = it.backoff
	}
	q.move(it, &q.resting)
	return true
}

// Nominate says that a node was nominated for a pod that needs one, or none any more if it is
// empty. It is tried again as if the cluster had changed if it lost one.
func (q *queue) Nominate(uid types.UID, node string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	it := q.items[uid]
	if it == nil || it.pod.Nominated == node {
		return
	}
	it.pod = it.pod.nominatedTo(node)
	if node == "" {
		q.hasten(it)
	}
}

// Freed says that a pod left a node. Those that were waiting for that, since the node is nominated for
// them, are tried at once.
func (q *queue) Freed(node string) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		if it.pod.Nominated != node {
			continue
		}
		if it.heap == nil {
			it.freed = true
		} else if it.heap == &q.resting {
			it.due = q.now()
			heap.Fix(it.heap, it.index)
			q.signal()
		}
	}
}

// Changed says that the cluster changed in a way that may help pods that wait. They are tried
// when their back-off has passed.
func (q *queue) Changed() {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.items {
		q.hasten(it)
	}
}

// Placed says that a pod came to a node. Those whose constraints and terms it may satisfy are tried when
// their back-off has passed.
func (q *queue) Placed(p *Pod) {
	q.mu.Lock()
	defer q.mu.Unlock()
	for _, it := range q.social {
		if it.pod.helpedBy(p) {
			q.hasten(it)
		}
	}
}

func (q *queue) hasten(it *item) {
	switch it.heap {
	case &q.resting:
		it.due = it.backoff
		heap.Fix(it.heap, it.index)
		q.signal()
	case nil:
		it.missed = true
	}
}

// move puts it into to, out of where it is.
func (q *queue) move(it *item, to *itemHeap) {
	if it.heap != nil {
		heap.Remove(it.heap, it.index)
		it.heap = nil
	}
	if to != nil {
		it.heap = to
		heap.Push(to, it)
		q.signal()
	}
}

func (q *queue) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// Next waits for a pod that is ready to be tried, and takes it until Failed or Remove.
func (q *queue) Next(ctx context.Context) (*Pod, error) {
	for {
		p, wait := q.take()
		if p != nil {
			return p, nil
		}
		timer := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, ctx.Err()
		case <-q.wake:
			timer.Stop()
		case <-timer.C:
		}
	}
}

// take returns the first pod that is ready, or how long to wait for one.
func (q *queue) take() (*Pod, time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := q.now()
	for q.resting.Len() > 0 && !q.resting.items[0].due.After(now) {
		q.move(q.resting.items[0], &q.ready)
	}
	if q.ready.Len() == 0 {
		if q.resting.Len() == 0 {
			return nil, retryAfter
		}
		return nil, q.resting.items[0].due.Sub(now)
	}
	it := q.ready.items[0]
	q.move(it, nil)
	it.attempts++
	it.missed, it.freed = false, false
	return it.pod, 0
}

// Pending counts the pods by what they wait for, in stock's words: their turn ("active"), the end
// of a back-off ("backoff"), or a change of the cluster ("unschedulable").
func (q *queue) Pending() map[string]int {
	q.mu.Lock()
	defer q.mu.Unlock()
	counts := map[string]int{"active": q.ready.Len()}
	for _, it := range q.resting.items {
		if it.due.Equal(it.backoff) {
			counts["backoff"]++
		} else {
			counts["unschedulable"]++
		}
	}
	return counts
}

// itemHeap is a heap.Interface that keeps each item's index.
type itemHeap struct {
	items []*item
	less  func(a, b *item) bool
}

func (h *itemHeap) Len() int           { return len(h.items) }
func (h *itemHeap) Less(i, j int) bool { return h.less(h.items[i], h.items[j]) }
func (h *itemHeap) Swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	h.items[i].index, h.items[j].index = i, j
}
func (h *itemHeap) Push(x any) {
	it := x.(*item)
	it.index = len(h.items)
	h.items = append(h.items, it)
}
func (h *itemHeap) Pop() any {
	last := len(h.items) - 1
	it := h.items[last]
	h.items[last] = nil
	h.items = h.items[:last]
	return it
}
