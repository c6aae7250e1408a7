package store_test

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

// A list and the watches that go on from it show every change, however often the table is replaced, or goes and comes
// again, meanwhile. Every revision is one write, so that none may be missing between a list and the next.
func TestListAndWatchLoseNothingOverReplacements(t *testing.T) {
	const writers, each, clients = 3, 150, 4
	m := startMember(t, etcd.Config{UnsafeNoSync: true})
	s, run := openStore(t, store.Config{Backend: m, ProgressEvery: 20 * time.Microsecond})
	run()
	var current atomic.Pointer[store.Table]
	current.Store(register(t, s, configMaps()))

	var writing, others sync.WaitGroup
	for w := range writers {
		writing.Go(func() { writeThrough(t, &current, strconv.Itoa(w), each) })
	}
	written := make(chan struct{})
	others.Go(func() { replaceUntil(t, s, &current, written) })
	var end atomic.Int64
	watched := make([]*listWatch, clients)
	for i := range watched {
		watched[i] = &listWatch{store: s, current: &current, end: &end, seen: map[int64]bool{}, state: map[store.Key]int64{}}
		others.Go(func() { watched[i].run(t) })
	}
	writing.Wait()
	revision, err := s.ReadIndex(t.Context())
	if err != nil {
		t.Error(err)
	}
	end.Store(revision)
	close(written)
	others.Wait()
	for i, w := range watched {
		w.check(t, i, m)
	}
}

// writeThrough creates, changes and removes objects through whichever table it finds.
func writeThrough(t *testing.T, current *atomic.Pointer[store.Table], name string, each int) {
	for i := range each {
		k := key("ns", fmt.Sprintf("%s-%d", name, i%5))
		table := current.Load()
		var err error
		if e, ok := table.Get(k); !ok {
			_, err = table.Create(t.Context(), k, []byte(strconv.Itoa(i)), store.WriteOptions{})
		} else if i%7 == 0 {
			_, _, err = table.Delete(t.Context(), k, e.Revision())
		} else {
			_, err = table.Update(t.Context(), k, []byte(strconv.Itoa(i)), e.Revision(), store.WriteOptions{})
		}
		// A table that went may show an older version, as an unregistered one does.
		if err != nil && !errors.Is(err, store.ErrConflict) && !errors.Is(err, store.ErrExists) && !errors.Is(err, store.ErrNotFound) {
			t.Error(err)
			return
		}
	}
}

// replaceUntil replaces the table all the time; now and then it takes it away and brings it back.
func replaceUntil(t *testing.T, s *store.Store, current *atomic.Pointer[store.Table], done <-chan struct{}) {
	for i := 0; ; i++ {
		select {
		case <-done:
			return
		default:
		}
		var next *store.Table
		var err error
		if i%3 == 2 {
			s.Unregister(current.Load())
			next, err = s.Register(configMaps())
		} else {
			next, err = s.Replace(current.Load(), configMaps())
		}
		if err != nil {
			t.Error(err)
			return
		}
		current.Store(next)
	}
}

// listWatch is a client: it lists, and watches on from where it is, as informers do.
type listWatch struct {
	store    *store.Store
	current  *atomic.Pointer[store.Table]
	end      *atomic.Int64 // where to stop; 0 until that is known
	revision int64         // up to which it has seen everything
	seen     map[int64]bool
	state    map[store.Key]int64
}

func (w *listWatch) done() bool { end := w.end.Load(); return end != 0 && w.revision >= end }

func (w *listWatch) run(t *testing.T) {
	for list := true; !w.done(); {
		table := w.current.Load() // and then, for all that is known, it is replaced
		if list {
			if _, err := w.store.ReadIndex(t.Context()); err != nil {
				t.Error(err)
				return
			}
			w.list(table.Snapshot())
		}
		cursor, err := table.Watch(w.revision)
		for err == nil && !w.done() {
			err = w.next(cursor)
		}
		if list = errors.Is(err, store.ErrCompacted); err != nil && !list && !errors.Is(err, store.ErrClosed) {
			t.Error(err)
			return
		}
	}
}

// list sees all that was until its revision.
func (w *listWatch) list(snapshot *store.Snapshot) {
	for w.revision < snapshot.Revision() {
		w.revision++
		w.seen[w.revision] = true
	}
	w.revision = snapshot.Revision() // a table that went shows what was when it went
	clear(w.state)
	snapshot.Ascend("", store.Key{}, func(e *store.Entry) bool { w.state[e.Key()] = e.Revision(); return true })
}

func (w *listWatch) next(cursor *store.Cursor) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Millisecond)
	defer cancel()
	events, progress, err := cursor.Next(ctx)
	for _, ev := range events {
		w.seen[ev.Revision] = true
		if ev.Type == store.Delete {
			delete(w.state, ev.Key)
		} else {
			w.state[ev.Key] = ev.Revision
		}
	}
	w.revision = max(w.revision, progress)
	if errors.Is(err, context.DeadlineExceeded) {
		return nil // look whether it is done
	}
	return err
}

// check compares what the client has seen with what etcd has.
func (w *listWatch) check(t *testing.T, client int, m *etcd.Member) {
	end := w.end.Load()
	for revision := range end {
		if !w.seen[revision+1] {
			t.Errorf("client %d missed revision %d", client, revision+1)
		}
	}
	resp, err := m.Range(context.Background(), &etcdserverpb.RangeRequest{Key: []byte("/registry/configmaps/"), RangeEnd: []byte("/registry/configmaps0"), Revision: end})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) != len(w.state) {
		t.Errorf("client %d has %d objects of %d", client, len(w.state), len(resp.Kvs))
	}
	for _, kv := range resp.Kvs {
		k := key("ns", string(kv.Key[len("/registry/configmaps/ns/"):]))
		if w.state[k] != kv.ModRevision {
			t.Errorf("client %d has %v at %d, not %d", client, k, w.state[k], kv.ModRevision)
		}
	}
}
