package follow

import (
	"maps"
	"slices"
	"time"
)

// Bounds on the time between two tries.
const (
	firstRetry = 100 * time.Millisecond
	lastRetry  = 30 * time.Second
)

// retries are objects to be tried again, together and ever later while any of them fails. One goroutine uses it.
type retries struct {
	names map[string]bool
	due   time.Time
	delay time.Duration // until due, when it was set; 0 when nothing has failed
}

func (r *retries) has(name string) bool { return r.names[name] }

// add notes a failure. While others wait for their next try, it waits with them.
func (r *retries) add(name string, now time.Time) {
	if r.names == nil {
		r.names = map[string]bool{}
	}
	r.names[name] = true
	if now.Before(r.due) {
		return
	}
	r.delay = max(firstRetry, min(2*r.delay, lastRetry))
	r.due = now.Add(r.delay)
}

func (r *retries) remove(name string) {
	delete(r.names, name)
	if len(r.names) == 0 {
		r.delay, r.due = 0, time.Time{}
	}
}

// next is when something is due; false if nothing has failed.
func (r *retries) next() (time.Time, bool) { return r.due, len(r.names) > 0 }

// take returns what is due. Each comes back by add, or is over by remove.
func (r *retries) take(now time.Time) []string {
	if len(r.names) == 0 || now.Before(r.due) {
		return nil
	}
	return slices.Sorted(maps.Keys(r.names))
}
