package store_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"pgregory.net/rapid"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
)

// etcdContent is what etcd holds below the prefix, written as content writes a snapshot.
func etcdContent(tb rapid.TB, m *etcd.Member, prefix string) []string {
	resp, err := m.Range(context.Background(), &etcdserverpb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(prefix[:len(prefix)-1] + "0")})
	if err != nil {
		tb.Fatal(err)
	}
	var list []string
	for _, kv := range resp.Kvs {
		list = append(list, fmt.Sprintf("%s=%s@%d", kv.Key[len(prefix):], kv.Value, kv.ModRevision))
	}
	return list
}

// follower applies a cursor's events to a list taken earlier.
type follower struct {
	cursor *store.Cursor
	state  map[store.Key]*store.Entry
	last   int64
}

func newFollower(tb rapid.TB, t *store.Table) *follower {
	snap := t.Snapshot()
	f := &follower{state: map[store.Key]*store.Entry{}, last: snap.Revision()}
	snap.Ascend("", store.Key{}, func(e *store.Entry) bool { f.state[e.Key()] = e; return true })
	var err error
	if f.cursor, err = t.Watch(snap.Revision()); err != nil {
		tb.Fatal(err)
	}
	return f
}

// catchUp follows to revision and checks each event against the state before it.
func (f *follower) catchUp(tb rapid.TB, revision int64) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for f.cursor.Revision() < revision {
		events, progress, err := f.cursor.Next(ctx)
		if err != nil {
			tb.Fatalf("at %d of %d: %v", f.cursor.Revision(), revision, err)
		}
		for _, ev := range events {
			if ev.Revision <= f.last && !(ev.Revision == f.last && len(events) > 1) {
				tb.Fatalf("event of revision %d after %d", ev.Revision, f.last)
			}
			f.last = ev.Revision
			if f.state[ev.Key] != ev.Prev {
				tb.Fatalf("event at %d of %v: Prev is not what was seen before", ev.Revision, ev.Key)
			}
			if ev.Type == store.Delete {
				delete(f.state, ev.Key)
			} else {
				f.state[ev.Key] = ev.Entry
			}
		}
		if progress < f.last {
			tb.Fatalf("progress %d below event %d", progress, f.last)
		}
	}
}

// After random writes by the store and by others, image, index, snapshots of the past, cursors
// from any time and etcd agree.
func TestImageEqualsEtcd(t *testing.T) {
	m := startMember(t, etcd.Config{UnsafeNoSync: true})
	s, run := openStore(t, store.Config{Backend: m, ProgressEvery: time.Millisecond, EventLimit: 200})
	run()
	schema := configMaps()
	tbl := register(t, s, schema)
	ctx := context.Background()

	rapid.Check(t, func(t *rapid.T) {
		keys := rapid.Custom(func(t *rapid.T) store.Key {
			return key(rapid.SampledFrom([]string{"a", "a-b", "b"}).Draw(t, "ns"), rapid.StringMatching("[a-d]{1,2}").Draw(t, "name"))
		})
		values := rapid.SampledFrom([]string{"1", "2", "bad"})
		followers := []*follower{newFollower(t, tbl)}
		history := map[int64][]string{}
		t.Repeat(map[string]func(*rapid.T){
			"create": func(t *rapid.T) {
				k := keys.Draw(t, "key")
				_, exists := tbl.Get(k)
				_, err := tbl.Create(ctx, k, []byte(values.Draw(t, "v")), store.WriteOptions{})
				if exists != errors.Is(err, store.ErrExists) || (!exists && err != nil) {
					t.Fatalf("create, exists %v: %v", exists, err)
				}
			},
			"update": func(t *rapid.T) {
				k := keys.Draw(t, "key")
				old, exists := tbl.Get(k)
				expected := int64(1)
				if exists {
					expected = old.Revision()
				}
				e, err := tbl.Update(ctx, k, []byte(values.Draw(t, "v")), expected, store.WriteOptions{})
				if exists && (err != nil || e.CreateRevision() != old.CreateRevision()) || !exists && !errors.Is(err, store.ErrNotFound) {
					t.Fatalf("update, exists %v: %v", exists, err)
				}
			},
			"delete": func(t *rapid.T) {
				k := keys.Draw(t, "key")
				old, exists := tbl.Get(k)
				prev, _, err := tbl.Delete(ctx, k, 0)
				if exists && (err != nil || prev != old) || !exists && !errors.Is(err, store.ErrNotFound) {
					t.Fatalf("delete, exists %v: %v", exists, err)
				}
			},
			"deleteManyAtOnce": func(t *rapid.T) { // as the end of a lease does
				_, err := m.Server().DeleteRange(ctx, &etcdserverpb.DeleteRangeRequest{
					Key: []byte("/registry/configmaps/a/"), RangeEnd: []byte("/registry/configmaps/a0"),
				})
				if err != nil {
					t.Fatal(err)
				}
				if _, err := s.ReadIndex(ctx); err != nil {
					t.Fatal(err)
				}
			},
			"elsewhere": func(t *rapid.T) {
				if _, err := m.Server().Put(ctx, &etcdserverpb.PutRequest{Key: []byte("/registry/configmapsx/a"), Value: []byte("x")}); err != nil {
					t.Fatal(err)
				}
			},
			"watch": func(t *rapid.T) { followers = append(followers, newFollower(t, tbl)) },
			"note":  func(t *rapid.T) { snap := tbl.Snapshot(); history[snap.Revision()] = content(snap, "") },
			"": func(t *rapid.T) {
				revision, err := s.ReadIndex(ctx)
				if err != nil {
					t.Fatal(err)
				}
				snap := tbl.Snapshot()
				if snap.Revision() != revision {
					t.Fatalf("image at %d, etcd at %d", snap.Revision(), revision)
				}
				want := etcdContent(t, m, schema.Prefix)
				if got := content(snap, ""); !reflect.DeepEqual(got, want) {
					t.Fatalf("image %v\netcd  %v", got, want)
				}
				found := len(snap.ByIndex("v", "1")) + len(snap.ByIndex("v", "2"))
				bad := 0
				snap.Ascend("", store.Key{}, func(e *store.Entry) bool {
					if string(e.Raw()) == "bad" {
						bad++
					}
					return true
				})
				if found+bad != snap.Len("") {
					t.Fatalf("index finds %d of %d, %d undecodable", found, snap.Len(""), bad)
				}
			},
		})
		for revision, want := range history {
			snap, err := tbl.At(ctx, revision)
			if err != nil {
				t.Fatal(err)
			}
			if got := content(snap, ""); !reflect.DeepEqual(got, want) {
				t.Fatalf("At(%d) = %v, was %v", revision, got, want)
			}
		}
		revision, err := s.ReadIndex(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range followers {
			f.catchUp(t, revision)
			n := 0
			tbl.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
				if f.state[e.Key()] != e {
					t.Fatalf("follower has another %v", e.Key())
				}
				n++
				return true
			})
			if n != len(f.state) {
				t.Fatalf("follower has %d objects of %d", len(f.state), n)
			}
		}
	})
}
