package store

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
)

func TestPace(t *testing.T) {
	for _, c := range []struct {
		crowd      int64
		processors int
		want       time.Duration
	}{
		{0, 2, 0}, {35, 2, 0}, {36, 2, 1008 * time.Microsecond}, {400, 2, 11200 * time.Microsecond}, {1000, 2, 28 * time.Millisecond},
		{1000, 16, 3500 * time.Microsecond}, {100_000, 2, mostPace}, {100_000, 64, mostPace},
	} {
		if got := pace(c.crowd, c.processors); got != c.want {
			t.Errorf("a crowd of %d on %d processors is woken every %v, want %v", c.crowd, c.processors, got, c.want)
		}
	}
}

// crowd is a table without a backend, and cursors on it that write down when they saw what.
type crowd struct {
	table    *Table
	revision int64
	start    time.Time

	mu   sync.Mutex
	seen map[string][]string // by the cursor: time, number of events and progress
}

func newCrowd() *crowd {
	s := &Store{limits: logLimits{events: 1000, bytes: 1 << 20, age: time.Hour}}
	c := &crowd{table: newTable(s, Schema{Prefix: "/registry/pods/"}), start: time.Now(), seen: map[string][]string{}}
	c.table.loading = false
	return c
}

// put makes an event, as the feed does.
func (c *crowd) put() {
	c.revision++
	kv := &mvccpb.KeyValue{Key: []byte("/registry/pods/p"), ModRevision: c.revision}
	c.table.mu.Lock()
	c.table.takeLocked(changeset{c.revision, []change{c.table.read(&mvccpb.Event{Kv: kv})}}, time.Now())
	c.table.mu.Unlock()
	c.table.store.revision.Store(c.revision)
}

// announce tells of progress, as the store does once in a while.
func (c *crowd) announce() {
	c.table.store.tick.Add(1)
	c.table.wake()
}

func (c *crowd) follow(ctx context.Context, t *testing.T, name string, from int64, atOnce bool) *Cursor {
	cursor, err := c.table.Watch(from)
	if err != nil {
		t.Fatal(err)
	}
	if atOnce {
		cursor.EventsOnly()
	}
	go func() {
		for {
			events, progress, err := cursor.Next(ctx)
			if err != nil {
				return
			}
			c.mu.Lock()
			c.seen[name] = append(c.seen[name], fmt.Sprintf("%v: %d to %d", time.Since(c.start), len(events), progress))
			c.mu.Unlock()
		}
	}()
	return cursor
}

func (c *crowd) expect(t *testing.T, name string, want ...string) {
	t.Helper()
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	if got := c.seen[name]; fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("%s saw %q, want %q", name, got, want)
	}
	c.seen[name] = nil
}

// TestACrowdIsWokenAtAPace: the first event after a quiet time is seen at once, those that follow together; who serves
// this process waits for nothing.
func TestACrowdIsWokenAtAPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		c := newCrowd()
		var all []*Cursor
		n := 20 * runtime.GOMAXPROCS(0) * int(time.Millisecond/crowdShare/wakeCost)
		every := pace(int64(n), runtime.GOMAXPROCS(0))
		if every < 18*time.Millisecond || every > 20*time.Millisecond {
			t.Fatalf("a pace of %v", every)
		}
		for i := range n {
			all = append(all, c.follow(ctx, t, fmt.Sprint(i), 0, false))
		}
		c.follow(ctx, t, "inside", 0, true)
		synctest.Wait()

		c.put()
		c.expect(t, "7", "0s: 1 to 1")
		c.expect(t, "inside", "0s: 1 to 1")
		<-time.After(5 * time.Millisecond)
		c.put()
		synctest.Wait()
		c.put()
		c.expect(t, "7")
		c.expect(t, "inside", "5ms: 1 to 2", "5ms: 1 to 3")
		<-time.After(10 * time.Millisecond)
		c.put()
		late, err := c.table.Watch(0) // whoever comes late catches up with what the others have seen
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, late)
		if events, _, err := late.Next(ctx); err != nil || len(events) == 0 || events[0].Revision != 1 {
			t.Errorf("a late cursor sees %v, %v", events, err)
		}
		all = append(all, c.follow(ctx, t, "new", 3, false)) // and whoever comes up to date waits with them
		c.expect(t, "new")
		<-time.After(10 * time.Millisecond)
		c.expect(t, "7", fmt.Sprintf("%v: 3 to 4", every))
		c.expect(t, "new", fmt.Sprintf("%v: 1 to 4", every))

		<-time.After(5 * time.Millisecond)
		c.put()
		synctest.Wait()
		c.announce() // progress shows what was held back, and tells of nothing that wasn't shown
		c.expect(t, "7", "30ms: 1 to 5")
		<-time.After(time.Second)
		c.expect(t, "7")
		c.put()
		c.expect(t, "7", "1.03s: 1 to 6")

		for _, cursor := range all {
			cursor.Close()
			cursor.Close()
		}
		if n := c.table.gather.crowd.Load(); n != 0 {
			t.Errorf("%d of a crowd that is gone", n)
		}
	})
}

// TestFewAreWokenAtOnce: nothing is held back for a handful.
func TestFewAreWokenAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		c := newCrowd()
		for i := range 9 * runtime.GOMAXPROCS(0) {
			c.follow(ctx, t, fmt.Sprint(i), 0, false)
		}
		for range 3 {
			synctest.Wait()
			c.put()
		}
		c.expect(t, "7", "0s: 1 to 1", "0s: 1 to 2", "0s: 1 to 3")
	})
}

// TestACrowdLearnsThatItsTableIsGone: also of what was held back.
func TestACrowdLearnsThatItsTableIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer synctest.Wait()
		defer cancel()
		c := newCrowd()
		for i := range 200 * runtime.GOMAXPROCS(0) {
			c.follow(ctx, t, fmt.Sprint(i), 0, false)
		}
		synctest.Wait()
		c.put()
		synctest.Wait()
		c.put()
		c.table.close(nil)
		c.expect(t, "7", "0s: 1 to 1", "0s: 1 to 2")
		<-time.After(time.Second) // the timer finds nobody
	})
}

// TestAnAlarmWakesACursor: whoever has something to do at a time waits for events until then.
func TestAnAlarmWakesACursor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCrowd()
		cursor, err := c.table.Watch(0)
		if err != nil {
			t.Fatal(err)
		}
		defer cursor.Close()
		alarm := time.NewTimer(time.Minute)
		if events, progress, err := cursor.NextUntil(t.Context(), alarm.C); err != nil || len(events) != 0 || progress != 0 || time.Since(c.start) != time.Minute {
			t.Errorf("after %v: %v, %d, %v", time.Since(c.start), events, progress, err)
		}
		c.put()
		if events, progress, err := cursor.NextUntil(t.Context(), alarm.C); err != nil || len(events) != 1 || progress != 1 {
			t.Errorf("an event: %v, %d, %v", events, progress, err)
		}
	})
}
