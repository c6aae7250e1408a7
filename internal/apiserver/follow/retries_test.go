package follow

import (
	"testing"
	"time"
)

// TestRetries: what failed is tried together, ever later, and from the start when all is well.
func TestRetries(t *testing.T) {
	var r retries
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	due := func(want time.Duration) {
		t.Helper()
		at, ok := r.next()
		if !ok || at.Sub(now) != want || r.take(at.Add(-1)) != nil {
			t.Fatalf("due in %v, %v", at.Sub(now), ok)
		}
		now = at
	}
	if _, ok := r.next(); ok || r.take(now) != nil {
		t.Fatal("nothing has failed")
	}
	r.add("a", now)
	r.add("b", now)
	for _, want := range []time.Duration{100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000} {
		due(want * time.Millisecond)
		for _, name := range r.take(now) {
			r.add(name, now)
		}
	}
	if r.remove("a"); r.has("a") || !r.has("b") {
		t.Error("one is well")
	}
	r.remove("b")
	if _, ok := r.next(); ok {
		t.Error("all are well")
	}
	r.add("a", now)
	due(firstRetry)
}
