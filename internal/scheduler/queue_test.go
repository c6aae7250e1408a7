package scheduler

import (
	"context"
	"maps"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func withPriority(n int32) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Spec.Priority = &n }
}

// newTestQueue is a queue at a time that only the test moves.
func newTestQueue() (*queue, *time.Time) {
	now := time.Unix(0, 0)
	return newQueue(func() time.Time { return now }), &now
}

func TestQueueOrder(t *testing.T) {
	now := time.Unix(0, 0)
	q := newQueue(func() time.Time { now = now.Add(time.Millisecond); return now })
	q.Set(aPod("old"))
	q.Set(aPod("young"))
	q.Set(aPod("urgent", withPriority(7)))
	for _, want := range []string{"urgent", "old", "young"} {
		p, _ := q.take()
		if p == nil || p.Name != want {
			t.Fatalf("got %v, want %s", p, want)
		}
	}
}

func TestQueueRests(t *testing.T) {
	now := time.Unix(0, 0)
	q := newQueue(func() time.Time { return now })
	try := func(want bool) {
		t.Helper()
		if p, _ := q.take(); (p != nil) != want {
			t.Fatalf("at %v: ready is %v, want %v", now.Sub(time.Unix(0, 0)), p != nil, want)
		}
	}
	q.Set(aPod("p"))
	try(true)
	q.Failed("p", true)
	try(false)
	now = now.Add(2 * time.Second)
	try(false) // it waits for the cluster, not for its back-off
	q.Changed()
	try(true)
	q.Failed("p", false) // second failure: two seconds of back-off
	now = now.Add(1999 * time.Millisecond)
	try(false)
	now = now.Add(time.Millisecond)
	try(true)

	q.Changed() // while it is being tried
	q.Failed("p", true)
	now = now.Add(lastBackoff)
	try(true) // so it did not wait for the next change

	q.Failed("p", true)
	now = now.Add(retryAfter)
	try(true) // even if nobody ever calls Changed
	q.Failed("p", true)
	q.Remove("p")
	now = now.Add(retryAfter)
	try(false)
	if len(q.items) != 0 || q.ready.Len() != 0 || q.resting.Len() != 0 {
		t.Fatal("the queue keeps a removed pod")
	}
}

func TestQueueNextWakes(t *testing.T) {
	q := newQueue(time.Now)
	got := make(chan string)
	go func() {
		p, err := q.Next(t.Context())
		if err != nil {
			got <- err.Error()
			return
		}
		got <- p.Name
	}()
	q.Set(aPod("p"))
	if name := <-got; name != "p" {
		t.Fatal(name)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := q.Next(ctx); err == nil {
		t.Fatal("Next returned without a pod and without an error")
	}
}

func TestQueueTellsWhatPodsWaitFor(t *testing.T) {
	now := time.Unix(0, 0)
	q := newQueue(func() time.Time { return now })
	expect := func(want map[string]int) {
		t.Helper()
		if got := q.Pending(); !maps.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	for _, name := range []string{"ready", "refused", "large"} {
		q.Set(aPod(name))
	}
	expect(map[string]int{"active": 3})
	for range 3 {
		q.take()
	}
	q.Failed("refused", false)
	q.Failed("large", true)
	expect(map[string]int{"active": 0, "backoff": 1, "unschedulable": 1})
	q.Changed()
	expect(map[string]int{"active": 0, "backoff": 2})
}
