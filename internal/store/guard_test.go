package store_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"barque.dev/internal/store"
)

const guardKey = "/barque/guard"

// epochs puts the revision of the guard that it knows of before each value.
type epochs struct{ known atomic.Int64 }

func (e *epochs) ToStorage(_ context.Context, plain []byte, _ string) ([]byte, error) {
	return fmt.Appendf(nil, "%d:%s", e.known.Load(), plain), nil
}

func (e *epochs) FromStorage(_ context.Context, stored []byte, _ string) ([]byte, error) {
	_, plain, ok := bytes.Cut(stored, []byte{':'})
	if !ok {
		return nil, errors.New("it has no epoch")
	}
	return plain, nil
}

func (e *epochs) Guard(stored []byte) (string, int64) {
	epoch, _, _ := bytes.Cut(stored, []byte{':'})
	revision, err := strconv.ParseInt(string(epoch), 10, 64)
	if err != nil {
		return guardKey, -1
	}
	return guardKey, revision
}

// A value that was encrypted before its keys changed is not written, but encrypted again; and one that got
// through is not written twice.
func TestGuardedWrites(t *testing.T) {
	f := newFaulty(startMember(t, emptyConfig()))
	s, run := openStore(t, store.Config{Backend: f})
	run()
	e := &epochs{}
	schema := configMaps()
	schema.Transform = e
	tbl := register(t, s, schema)
	plain := register(t, s, nodes())
	move := func() {
		resp, err := f.Member.Server().Put(context.Background(), &etcdserverpb.PutRequest{Key: []byte(guardKey)})
		if err != nil {
			t.Error(err)
			return
		}
		e.known.Store(resp.Header.Revision)
	}
	mustCreate(t, tbl, key("ns", "before"), "1") // there is no guard yet, and none is expected
	move()
	for _, verb := range []string{"create", "update", "companion"} {
		for _, o := range []outcome{lost, applied, overtaken} {
			k := key("ns", fmt.Sprintf("%s-%.4s", verb, o))
			var old *store.Entry
			if verb != "create" {
				old = mustCreate(t, tbl, k, "old")
			}
			f.next(func(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
				if o == overtaken { // the guard moves between encryption and proposal
					move()
					return f.Member.Txn(ctx, req)
				}
				if o == applied { // it gets through, but nobody is told
					if resp, err := f.Member.Txn(context.Background(), req); err != nil || !resp.Succeeded {
						t.Errorf("%s: the proposal was to get through: %v %v", verb, resp, err)
					}
				}
				move()
				go f.newLeader()
				<-ctx.Done()
				return nil, ctx.Err()
			})
			var err error
			switch verb {
			case "create":
				_, err = tbl.Create(t.Context(), k, []byte("new"), store.WriteOptions{})
			case "update":
				_, err = tbl.Update(t.Context(), k, []byte("new"), old.Revision(), store.WriteOptions{})
			case "companion":
				_, err = plain.Create(t.Context(), key("", k.Name), []byte("x"), store.WriteOptions{With: []store.Change{{
					Table: tbl, Key: k, Value: []byte("new"), Expected: old.Revision(),
				}}})
			}
			got, _ := tbl.Get(k)
			if err != nil || got == nil || string(got.Raw()) != "new" {
				t.Fatalf("%s, the guard moved and the proposal was %s: %v, %v", verb, o, got, err)
			}
			if again := bytes.HasPrefix(got.Stored(), fmt.Appendf(nil, "%d:", e.known.Load())); again == (o == applied) {
				t.Errorf("%s, the guard moved and the proposal was %s: %q stands in etcd, the guard is at %d", verb, o, got.Stored(), e.known.Load())
			}
		}
	}
}

// A leader that lost its fence learns that first, whatever became of the guard.
func TestGuardAndFence(t *testing.T) {
	s, m := newStore(t)
	e := &epochs{}
	e.known.Store(7) // there is no such guard
	schema := configMaps()
	schema.Transform = e
	tbl := register(t, s, schema)
	ctx := store.WithFence(t.Context(), store.Fence{Key: "/barque/leader", CreateRevision: 5})
	if _, err := tbl.Create(ctx, key("ns", "a"), []byte("x"), store.WriteOptions{}); !errors.Is(err, store.ErrFenced) {
		t.Errorf("without a fence: %v", err)
	}
	resp, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/barque/leader")})
	if err != nil {
		t.Fatal(err)
	}
	// A transformer that never finds out what the guard is now doesn't keep the writer for ever.
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	ctx = store.WithFence(ctx, store.Fence{Key: "/barque/leader", CreateRevision: resp.Header.Revision})
	if _, err := tbl.Create(ctx, key("ns", "a"), []byte("x"), store.WriteOptions{}); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("with a guard that never holds: %v", err)
	}
}

// What is written again as it is keeps the time that it has.
func TestKeepTTL(t *testing.T) {
	s, m := newStore(t)
	tbl := register(t, s, configMaps())
	lease := func(name string) int64 {
		resp, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("/registry/configmaps/ns/" + name)})
		if err != nil || len(resp.Kvs) != 1 {
			t.Fatalf("%s: %v %v", name, resp, err)
		}
		return resp.Kvs[0].Lease
	}
	if _, err := tbl.Create(t.Context(), key("ns", "a"), []byte("x"), store.WriteOptions{TTL: time.Hour}); err != nil {
		t.Fatal(err)
	}
	mustCreate(t, tbl, key("ns", "b"), "x")
	before := lease("a")
	for _, name := range []string{"a", "b"} {
		if _, err := tbl.Update(t.Context(), key("ns", name), []byte("y"), 0, store.WriteOptions{KeepTTL: true}); err != nil {
			t.Fatal(err)
		}
	}
	if before == 0 || lease("a") != before || lease("b") != 0 {
		t.Errorf("leases %d and %d, want %d and none", lease("a"), lease("b"), before)
	}
}

// service decrypts as long as it is there.
type service struct {
	away  atomic.Bool
	calls atomic.Int64
}

func (s *service) Remote() bool { return true }

func (s *service) ToStorage(_ context.Context, plain []byte, _ string) ([]byte, error) {
	return append([]byte("enc:"), plain...), nil
}

func (s *service) FromStorage(_ context.Context, stored []byte, _ string) ([]byte, error) {
	s.calls.Add(1)
	if s.away.Load() {
		return nil, errors.New("the service is away")
	}
	return bytes.TrimPrefix(stored, []byte("enc:")), nil
}

// Objects whose key service was away when they came are found by index all the same once it is back, and the
// image never waits for it.
func TestIndexOfRemote(t *testing.T) {
	s, m := newStore(t)
	remote := &service{}
	remote.away.Store(true)
	for i, v := range []string{"x", "y"} {
		_, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{
			Key: fmt.Appendf(nil, "/registry/configmaps/ns/%d", i), Value: []byte("enc:" + v),
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	schema := configMaps()
	schema.Transform = remote
	tbl := register(t, s, schema)
	mustCreate(t, tbl, key("ns", "2"), "x")
	if n := remote.calls.Load(); n != 0 {
		t.Errorf("the image asked the service %d times", n)
	}
	names := func(value string) (list []string) {
		for _, e := range tbl.Snapshot().ByIndex("v", value) {
			list = append(list, e.Key().Name)
		}
		return list
	}
	same := func(what, value string, want ...string) {
		t.Helper()
		if got := names(value); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s, under %s: %v, want %v", what, value, got, want)
		}
	}
	// Nobody knows what they are: whoever reads them gets the error.
	same("away", "x", "0", "1", "2")
	remote.away.Store(false)
	same("back", "x", "0", "2")
	same("back", "y", "1")
	// From the next change on they are in the index itself.
	mustCreate(t, tbl, key("ns", "3"), "x")
	before := remote.calls.Load()
	same("indexed", "x", "0", "2", "3")
	same("indexed", "x", "0", "2", "3")
	if n := remote.calls.Load() - before; n != 1 {
		t.Errorf("the service was asked %d times, want once, for the new object", n)
	}
	mustUpdate(t, tbl, key("ns", "0"), "y", 0)
	remote.away.Store(true)
	mustUpdate(t, tbl, key("ns", "1"), "x", 0)
	if _, _, err := tbl.Delete(t.Context(), key("ns", "2"), 0); err != nil {
		t.Fatal(err)
	}
	remote.away.Store(false)
	same("changed", "x", "1", "3")
	same("changed", "y", "0")
	// A table that takes the place of another knows as much.
	next, err := s.Replace(tbl, schema)
	if err != nil {
		t.Fatal(err)
	}
	tbl = next
	same("replaced", "x", "1", "3")
}

// What the cluster can't decrypt by itself is under no value.
func TestIndexOfUnreadable(t *testing.T) {
	s, m := newStore(t)
	for name, value := range map[string]string{"good": "1:x", "sealed": "sealed"} {
		_, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte("/registry/configmaps/ns/" + name), Value: []byte(value)})
		if err != nil {
			t.Fatal(err)
		}
	}
	schema := configMaps()
	schema.Transform = &epochs{}
	tbl := register(t, s, schema)
	if _, err := s.ReadIndex(t.Context()); err != nil {
		t.Fatal(err)
	}
	found := tbl.Snapshot().ByIndex("v", "x")
	if len(found) != 1 || found[0].Key().Name != "good" {
		t.Errorf("found %v", found)
	}
}
