package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/store"
)

func TestWriteAndReadBack(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	k := key("ns", "a")

	created := mustCreate(t, tbl, k, "1")
	if created.Key() != k || string(created.Raw()) != "1" || created.CreateRevision() != created.Revision() {
		t.Fatalf("created %+v", created)
	}
	if got, ok := tbl.Get(k); !ok || got != created {
		t.Fatalf("Get is not the entry that Create returned: %v", got)
	}
	obj, err := created.Object()
	if err != nil || obj.(*corev1.ConfigMap).ResourceVersion != fmt.Sprint(created.Revision()) {
		t.Fatalf("Object %v, %v", obj, err)
	}
	if again, _ := created.Object(); again != obj {
		t.Error("decoded twice")
	}
	if _, err := tbl.Create(t.Context(), k, []byte("2"), store.WriteOptions{}); !errors.Is(err, store.ErrExists) {
		t.Errorf("second create: %v", err)
	}
	updated := mustUpdate(t, tbl, k, "2", created.Revision())
	if updated.CreateRevision() != created.Revision() || updated.Revision() <= created.Revision() {
		t.Errorf("updated %+v", updated)
	}
	if _, err := tbl.Update(t.Context(), k, []byte("3"), created.Revision(), store.WriteOptions{}); !errors.Is(err, store.ErrConflict) {
		t.Errorf("stale update: %v", err)
	}
	if _, err := tbl.Update(t.Context(), key("ns", "none"), []byte("3"), 1, store.WriteOptions{}); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("update of nothing: %v", err)
	}
	if _, _, err := tbl.Delete(t.Context(), k, created.Revision()); !errors.Is(err, store.ErrConflict) {
		t.Errorf("stale delete: %v", err)
	}
	prev, revision, err := tbl.Delete(t.Context(), k, updated.Revision())
	if err != nil || prev != updated || revision <= updated.Revision() {
		t.Errorf("delete: %v, %d, %v", prev, revision, err)
	}
	if _, ok := tbl.Get(k); ok {
		t.Error("still there")
	}
	if _, _, err := tbl.Delete(t.Context(), k, 0); !errors.Is(err, store.ErrNotFound) {
		t.Errorf("delete of nothing: %v", err)
	}
	if s.Revision() != revision {
		t.Errorf("image at %d, want %d", s.Revision(), revision)
	}
}

func TestUnconditionalWrites(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, nodes())
	k := key("", "n")
	if _, err := tbl.Update(t.Context(), k, []byte("x"), 0, store.WriteOptions{}); !errors.Is(err, store.ErrNotFound) {
		t.Fatalf("update of nothing: %v", err)
	}
	mustCreate(t, tbl, k, "1")
	e := mustUpdate(t, tbl, k, "2", 0)
	if string(e.Raw()) != "2" || e.Key() != k {
		t.Errorf("updated %q at %v", e.Raw(), e.Key())
	}
	if prev, _, err := tbl.Delete(t.Context(), k, 0); err != nil || prev != e {
		t.Errorf("delete: %v, %v", prev, err)
	}
}

func TestBadKeysAreRefused(t *testing.T) {
	s, _ := newStore(t)
	cms, ns := register(t, s, configMaps()), register(t, s, nodes())
	for _, c := range []struct {
		table *store.Table
		key   store.Key
	}{
		{cms, key("", "a")}, {cms, key("ns", "")}, {cms, key("n/s", "a")}, {cms, key("ns", "a/b")}, {ns, key("ns", "a")}, {ns, key("", "")},
	} {
		if _, err := c.table.Create(t.Context(), c.key, nil, store.WriteOptions{}); err == nil {
			t.Errorf("%v was written", c.key)
		}
	}
}

func TestFence(t *testing.T) {
	s, m := newStore(t)
	tbl := register(t, s, configMaps())
	put := func(v string) int64 {
		resp, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/barque/leader"), Value: []byte(v)})
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	ctx := store.WithFence(t.Context(), store.Fence{Key: "/barque/leader", CreateRevision: put("me")})
	e, err := tbl.Create(ctx, key("ns", "a"), []byte("1"), store.WriteOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tbl.Create(ctx, key("ns", "a"), []byte("1"), store.WriteOptions{}); !errors.Is(err, store.ErrExists) || errors.Is(err, store.ErrFenced) {
		t.Errorf("create under a held fence: %v", err)
	}
	if _, err := m.Server().DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: []byte("/barque/leader")}); err != nil {
		t.Fatal(err)
	}
	for range 2 { // without a leader, and under another one
		if _, err := tbl.Update(ctx, key("ns", "a"), []byte("2"), e.Revision(), store.WriteOptions{}); !errors.Is(err, store.ErrFenced) {
			t.Errorf("update by a deposed leader: %v", err)
		}
		if _, _, err := tbl.Delete(ctx, key("ns", "a"), e.Revision()); !errors.Is(err, store.ErrFenced) {
			t.Errorf("delete by a deposed leader: %v", err)
		}
		put("other")
	}
	if got, _ := tbl.Get(key("ns", "a")); got != e {
		t.Error("the object changed")
	}
}

func TestSnapshotOrderAndRanges(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	// "a-b" sorts before "a" in etcd, since '-' sorts before '/'.
	for _, k := range []store.Key{key("a", "x"), key("a-b", "x"), key("a", "y"), key("b", "x"), key("ab", "x")} {
		mustCreate(t, tbl, k, k.Namespace)
	}
	snap := tbl.Snapshot()
	names := func(ns string, after store.Key) (list []string) {
		snap.Ascend(ns, after, func(e *store.Entry) bool {
			list = append(list, e.Key().Namespace+"/"+e.Key().Name)
			return true
		})
		return list
	}
	for _, c := range []struct {
		ns    string
		after store.Key
		want  []string
	}{
		{"", store.Key{}, []string{"a-b/x", "a/x", "a/y", "ab/x", "b/x"}},
		{"a", store.Key{}, []string{"a/x", "a/y"}},
		{"a", key("a", "x"), []string{"a/y"}},
		{"a", key("a", "xx"), []string{"a/y"}},
		{"a", key("b", "x"), nil},
		{"", key("a", "x"), []string{"a/y", "ab/x", "b/x"}},
		{"none", store.Key{}, nil},
	} {
		if got := names(c.ns, c.after); !reflect.DeepEqual(got, c.want) {
			t.Errorf("Ascend(%q, %v) = %v, want %v", c.ns, c.after, got, c.want)
		}
	}
	if snap.Len("") != 5 || snap.Len("a") != 2 || snap.Len("none") != 0 {
		t.Errorf("Len = %d, %d, %d", snap.Len(""), snap.Len("a"), snap.Len("none"))
	}
	before := content(snap, "")
	mustUpdate(t, tbl, key("a", "x"), "new", 0)
	mustCreate(t, tbl, key("a", "z"), "new")
	if after := content(snap, ""); !reflect.DeepEqual(before, after) {
		t.Errorf("snapshot changed: %v to %v", before, after)
	}
	if got := tbl.Snapshot().ByIndex("v", "new"); len(got) != 2 || got[0].Key().Name != "x" || got[1].Key().Name != "z" {
		t.Errorf("ByIndex = %v", got)
	}
	if got := tbl.Snapshot().ByIndex("v", "a"); len(got) != 1 || got[0].Key().Name != "y" {
		t.Errorf("ByIndex = %v", got)
	}
}

func TestUndecodableEntriesAreListed(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	mustCreate(t, tbl, key("ns", "a"), "bad")
	mustUpdate(t, tbl, key("ns", "a"), "bad", 0)
	e, ok := tbl.Get(key("ns", "a"))
	if !ok || tbl.Snapshot().Len("") != 1 {
		t.Fatal("not listed")
	}
	if _, err := e.Object(); err == nil {
		t.Error("no error of decoding")
	}
	if _, _, err := tbl.Delete(t.Context(), key("ns", "a"), e.Revision()); err != nil {
		t.Error(err)
	}
}

func TestAt(t *testing.T) {
	s, m := newStore(t)
	tbl := register(t, s, configMaps())
	want := map[int64][]string{}
	note := func() { want[s.Revision()] = content(tbl.Snapshot(), "") }
	for i := range 5 {
		mustCreate(t, tbl, key("ns", fmt.Sprint(i)), "v")
		note()
	}
	mustUpdate(t, tbl, key("ns", "2"), "w", 0)
	note()
	if _, _, err := tbl.Delete(t.Context(), key("ns", "1"), 0); err != nil {
		t.Fatal(err)
	}
	note()
	check := func(tbl *store.Table) {
		t.Helper()
		for revision, list := range want {
			snap, err := tbl.At(t.Context(), revision)
			if err != nil {
				t.Errorf("At(%d): %v", revision, err)
				continue
			}
			if got := content(snap, ""); snap.Revision() != revision || !reflect.DeepEqual(got, list) {
				t.Errorf("At(%d) = %v at %d, want %v", revision, got, snap.Revision(), list)
			}
			if got := snap.ByIndex("v", "w"); len(got) > 1 {
				t.Errorf("ByIndex at %d finds %v", revision, got)
			}
		}
	}
	check(tbl) // from the log
	// A table that was registered later has no log that far back: from etcd.
	s.Unregister(tbl)
	later := register(t, s, configMaps())
	check(later)

	if err := m.Compact(t.Context(), s.Revision()); err != nil {
		t.Fatal(err)
	}
	s.Unregister(later) // and with it the snapshots that it keeps
	later = register(t, s, configMaps())
	if _, err := later.At(t.Context(), s.Revision()-2); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("At of a compacted revision: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := later.At(ctx, s.Revision()+1000); !errors.Is(err, store.ErrFuture) {
		t.Errorf("At of the future: %v", err)
	}
}

func TestRegisterAdoptsWhatExists(t *testing.T) {
	s, m := newStore(t)
	for i := range 2500 { // several pages
		if _, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{
			Key: fmt.Appendf(nil, "/registry/configmaps/ns/%04d", i), Value: []byte("v"),
		}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	tbl := register(t, s, configMaps())
	if n := tbl.Snapshot().Len(""); n != 2500 {
		t.Errorf("%d adopted", n)
	}
	if _, err := s.Register(configMaps()); err == nil {
		t.Error("registered twice")
	}
}

// While others write, tables come and go; each ends up with exactly what etcd has.
func TestRegisterWhileWriting(t *testing.T) {
	s, _ := newStore(t)
	ns := register(t, s, nodes())
	cms := register(t, s, configMaps())
	var stop atomic.Bool
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; !stop.Load(); i++ {
				mustCreate(t, cms, key("ns", fmt.Sprintf("%d-%d", w, i)), "v")
				mustCreate(t, ns, key("", fmt.Sprintf("%d-%d", w, i)), "v")
			}
		})
	}
	registered := ns // writing goes on through the first one, which is no longer fed
	for range 10 {
		s.Unregister(registered)
		again := register(t, s, nodes())
		registered = again
		snap := again.Snapshot()
		c, err := again.Watch(snap.Revision())
		if err != nil {
			t.Fatal(err)
		}
		n := snap.Len("")
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		for n < snap.Len("")+20 {
			events, _, err := c.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			for _, ev := range events {
				if ev.Type != store.Put || ev.Prev != nil {
					t.Errorf("event %+v: seen twice", ev)
				}
			}
			n += len(events)
		}
		cancel()
		if at, err := again.At(t.Context(), c.Revision()); err != nil || at.Len("") != n {
			t.Errorf("list and watch make %d, the table at %d has %d (%v)", n, c.Revision(), at.Len(""), err)
		}
	}
	stop.Store(true)
	wg.Wait()
}

func TestTTL(t *testing.T) {
	s, m := newStore(t)
	tbl := register(t, s, configMaps())
	c, err := tbl.Watch(s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 {
		if _, err := tbl.Create(t.Context(), key("ns", fmt.Sprint(i)), []byte("v"), store.WriteOptions{TTL: time.Second}); err != nil {
			t.Fatal(err)
		}
	}
	leases, err := m.Server().LeaseLeases(t.Context(), &etcdserverpb.LeaseLeasesRequest{})
	if err != nil || len(leases.Leases) != 1 {
		t.Errorf("%d leases for 3 objects of the same age", len(leases.GetLeases()))
	}
	mustUpdate(t, tbl, key("ns", "0"), "stays", 0)
	// The lease runs out.
	deleted := map[string]bool{}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for len(deleted) < 2 {
		events, _, err := c.Next(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, ev := range events {
			if ev.Type == store.Delete {
				deleted[ev.Key.Name] = true
			}
		}
	}
	if deleted["0"] {
		t.Error("an update without TTL did not make the object stay")
	}
	// etcd forgot the lease that the store may still share.
	if _, err := tbl.Create(t.Context(), key("ns", "late"), []byte("v"), store.WriteOptions{TTL: time.Second}); err != nil {
		t.Error(err)
	}
}

func TestReadIndexIsShared(t *testing.T) {
	s, m := newStore(t)
	tbl := register(t, s, configMaps())
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			if _, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/registry/configmaps/ns/k"), Value: []byte("v")}); err != nil {
				t.Error(err)
			}
			want := m.Server().KV().Rev()
			got, err := s.ReadIndex(t.Context())
			if err != nil || got < want || s.Revision() < want {
				t.Errorf("ReadIndex = %d, %v; want at least %d", got, err, want)
			}
			if e, ok := tbl.Get(key("ns", "k")); !ok || e.Revision() < want-50 {
				t.Error("the image does not hold what was acknowledged")
			}
		})
	}
	wg.Wait()
}

func TestStoppedStore(t *testing.T) {
	m := startMember(t, emptyConfig())
	s, err := store.Open(t.Context(), store.Config{Backend: m})
	if err != nil {
		t.Fatal(err)
	}
	tbl := register(t, s, configMaps())
	if _, err := tbl.Watch(0); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("watch of history before the load: %v", err)
	}
	c, err := tbl.Watch(s.Revision())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	mustCreate(t, tbl, key("ns", "a"), "1")
	if events, _, err := c.Next(t.Context()); err != nil || len(events) != 1 {
		t.Fatal(events, err)
	}
	next := make(chan error, 1)
	go func() { _, _, err := c.Next(context.Background()); next <- err }()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := <-next; !errors.Is(err, store.ErrClosed) {
		t.Errorf("cursor of a stopped store: %v", err)
	}
	if err := s.Healthy(); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("health of a stopped store: %v", err)
	}
	if err := s.WaitRevision(t.Context(), s.Revision()+1); !errors.Is(err, store.ErrClosed) {
		t.Errorf("wait on a stopped store: %v", err)
	}
	if _, err := s.ReadIndex(t.Context()); !errors.Is(err, store.ErrClosed) {
		t.Errorf("read index of a stopped store: %v", err)
	}
}

// rot is a transformer that adds one to every byte, after the key's length and a version.
type rot struct{ version byte }

func (r rot) ToStorage(_ context.Context, plain []byte, dataCtx string) ([]byte, error) {
	out := []byte{r.version, byte(len(dataCtx))}
	for _, b := range plain {
		out = append(out, b+1)
	}
	return out, nil
}

func (r rot) FromStorage(_ context.Context, stored []byte, dataCtx string) ([]byte, error) {
	if len(stored) < 2 || int(stored[1]) != len(dataCtx) {
		return nil, errors.New("wrong key")
	}
	var out []byte
	for _, b := range stored[2:] {
		out = append(out, b-1)
	}
	return out, nil
}

func (r rot) Stale(stored []byte, _ string) bool { return stored[0] != r.version }

func TestTransform(t *testing.T) {
	s, m := newStore(t)
	schema := configMaps()
	schema.Transform = rot{1}
	tbl := register(t, s, schema)
	e := mustCreate(t, tbl, key("ns", "a"), "plain")
	if string(e.Raw()) != "plain" || e.Stale() {
		t.Errorf("Raw = %q, stale %v", e.Raw(), e.Stale())
	}
	resp, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("/registry/configmaps/ns/a")})
	if err != nil || bytes.Contains(resp.Kvs[0].Value, []byte("plain")) {
		t.Errorf("stored %q, %v", resp.Kvs[0].Value, err)
	}
	if obj, err := e.Object(); err != nil || obj.(*corev1.ConfigMap).Data["v"] != "plain" {
		t.Errorf("Object = %v, %v", obj, err)
	}
	s.Unregister(tbl)
	schema.Transform = rot{2}
	tbl = register(t, s, schema)
	if e, _ := tbl.Get(key("ns", "a")); !e.Stale() {
		t.Error("not stale after rotation")
	}
	// A value that was moved from another key can't be read, but is listed.
	if _, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/registry/configmaps/ns/moved"), Value: resp.Kvs[0].Value}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	moved, ok := tbl.Get(key("ns", "moved"))
	if !ok || moved.Raw() != nil {
		t.Fatal("moved value was decrypted")
	}
	if _, err := moved.Object(); err == nil {
		t.Error("moved value was decoded")
	}
}

func TestWireIsMadeOnce(t *testing.T) {
	s, _ := newStore(t)
	tbl := register(t, s, configMaps())
	e := mustCreate(t, tbl, key("ns", "a"), "1")
	type json struct{}
	var calls atomic.Int32
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			b, err := e.Wire(json{}, func() ([]byte, error) { calls.Add(1); return []byte("wire"), nil })
			if err != nil || string(b) != "wire" {
				t.Error(b, err)
			}
		})
	}
	wg.Wait()
	if n := calls.Load(); n != 1 {
		t.Errorf("made %d times", n)
	}
	if b, _ := e.Wire(1, func() ([]byte, error) { return []byte("other"), nil }); string(b) != "other" {
		t.Errorf("another id gives %q", b)
	}
	if _, err := e.Wire(2, func() ([]byte, error) { return nil, errors.New("no") }); err == nil {
		t.Error("no error")
	}
	if b, err := e.Wire(2, func() ([]byte, error) { return []byte("yes"), nil }); err != nil || string(b) != "yes" {
		t.Error("an error was remembered")
	}
}
