package etcd_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// Of three members two are lost. The third goes on alone with everything that it has; a lost one that comes back is told
// to go, and joins anew with the same state.
func TestRecover(t *testing.T) {
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	c := etcdtest.New(t, 3, func(i int, cfg *etcd.Config) { cfg.DataDir = dirs[i] })
	const keys = 20
	var last int64
	for i := range keys {
		last = put(t, c.Member(0), fmt.Sprintf("/k/%d", i), "old")
	}
	if _, err := c.Member(2).ReadIndex(t.Context()); err != nil { // it has them all
		t.Fatal(err)
	}
	for i := range 3 {
		c.Crash(i)
	}

	found, err := etcd.Inspect(dirs[2])
	if err != nil || len(found.Members) != 3 || found.Members[1].Name != "m1" || found.Revision > last || found.LastWrite.IsZero() {
		t.Errorf("it holds %+v (%v), the last change was %d", found, err, last)
	}
	revision, err := etcd.Recover(t.Context(), "m2", dirs[2], etcd.Config{UnsafeNoSync: true})
	if err != nil {
		t.Fatal(err)
	}
	if revision < last+etcd.RevisionGap {
		t.Errorf("its revision is %d, the last change was %d", revision, last)
	}

	m := c.Start(2)
	for i := range keys {
		if v := get(t, m, fmt.Sprintf("/k/%d", i)); v != "old" {
			t.Fatalf("key %d is %q", i, v)
		}
	}
	if members := m.Members(); len(members) != 1 || members[0].Name != "m2" {
		t.Errorf("its members are %+v", members)
	}
	if n := put(t, m, "/k/0", "new"); n != revision+1 {
		t.Errorf("the next change has revision %d after %d", n, revision)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := m.Watch(ctx, last, nil); !errors.Is(err, store.ErrCompacted) {
		t.Errorf("a watch from before: %v", err)
	}

	old := c.Begin(1)
	select {
	case <-old.Done():
	case <-time.After(30 * time.Second):
		t.Fatal("a lost member that came back runs on")
	}
	if !old.Removed() {
		t.Error("it does not know that it was removed")
	}
	c.Stop(1)
	if err := os.Rename(filepath.Join(dirs[1], "member"), filepath.Join(dirs[1], "aside")); err != nil {
		t.Fatal(err)
	}
	joined := c.Join(1, 2)
	etcdtest.Eventually(t, "it has the same state", func(context.Context) error {
		a, _, errA := m.Server().KV().HashStorage().Hash()
		b, _, errB := joined.Server().KV().HashStorage().Hash()
		if a != b || errA != nil || errB != nil {
			return fmt.Errorf("%x (%v) and %x (%v)", a, errA, b, errB)
		}
		return nil
	})
	if v := get(t, joined, "/k/0"); v != "new" {
		t.Errorf("there the key is %q", v)
	}
}

// Where nothing is, nothing is made.
func TestRecoverNothing(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "none")
	if _, err := etcd.Recover(t.Context(), "m", dir, etcd.Config{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := etcd.Inspect(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("%v", err)
	}
	if _, err := os.Stat(dir); err == nil {
		t.Error("it made the directory")
	}
}

// What stands in the log of the one that is left stays, though it never learned that it was decided: another one may have
// acknowledged it.
func TestRecoverWhatWasNotKnownToBeDecided(t *testing.T) {
	dir := t.TempDir()
	c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.DataDir = dir })
	put(t, c.Member(0), "/k/known", "v")
	c.Crash(0)

	w, state, entries, err := etcd.OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	last := entries[len(entries)-1]
	data, err := proto.Marshal(&etcdserverpb.InternalRaftRequest{
		Header: &etcdserverpb.RequestHeader{ID: 1},
		Put:    &etcdserverpb.PutRequest{Key: []byte("/k/tail"), Value: []byte("v")},
	})
	if err != nil {
		t.Fatal(err)
	}
	index, term := last.GetIndex()+1, last.GetTerm()
	if err := errors.Join(w.Save(state, []*raftpb.Entry{{Index: &index, Term: &term, Data: data}}), w.Close()); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Recover(t.Context(), "m0", dir, etcd.Config{UnsafeNoSync: true}); err != nil {
		t.Fatal(err)
	}
	m := c.Start(0)
	for _, key := range []string{"/k/known", "/k/tail"} {
		if v := get(t, m, key); v != "v" {
			t.Errorf("%s is %q", key, v)
		}
	}
}
