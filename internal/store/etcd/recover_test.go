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

	before, err := etcd.Inspect(dir)
	if err != nil {
		t.Fatal(err)
	}
	end := appendPut(t, dir, "/k/tail")
	// That is what servers that are left are compared by: the database knows nothing of it.
	after, err := etcd.Inspect(dir)
	if err != nil || after.End != end || after.End.Compare(before.End) <= 0 || after.Revision != before.Revision {
		t.Errorf("with an entry more, %v, it holds %+v (%v); before, %+v", end, after, err, before)
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

// appendPut writes a change to the end of a log, and nowhere else.
func appendPut(t *testing.T, dir, key string) etcd.LogEnd {
	t.Helper()
	w, state, entries, err := etcd.OpenLog(dir)
	if err != nil {
		t.Fatal(err)
	}
	last := entries[len(entries)-1]
	data, err := proto.Marshal(&etcdserverpb.InternalRaftRequest{
		Header: &etcdserverpb.RequestHeader{ID: 1},
		Put:    &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte("v")},
	})
	if err != nil {
		t.Fatal(err)
	}
	index, term := last.GetIndex()+1, last.GetTerm()
	if err := errors.Join(w.Save(state, []*raftpb.Entry{{Index: &index, Term: &term, Data: data}}), w.Close()); err != nil {
		t.Fatal(err)
	}
	return etcd.LogEnd{Term: term, Index: index}
}

func TestLogEndCompare(t *testing.T) {
	for _, tt := range []struct {
		a, b etcd.LogEnd
		want int
	}{
		{etcd.LogEnd{}, etcd.LogEnd{}, 0},
		{etcd.LogEnd{Term: 2, Index: 7}, etcd.LogEnd{Term: 2, Index: 7}, 0},
		{etcd.LogEnd{Term: 2, Index: 8}, etcd.LogEnd{Term: 2, Index: 7}, 1},
		{etcd.LogEnd{Term: 3, Index: 7}, etcd.LogEnd{Term: 2, Index: 9000}, 1}, // what the longer one has beyond is of nobody who won
	} {
		if got, back := tt.a.Compare(tt.b), tt.b.Compare(tt.a); got != tt.want || back != -tt.want {
			t.Errorf("%v against %v: %d, and back %d; want %d", tt.a, tt.b, got, back, tt.want)
		}
	}
}

// A member that runs tells where its log ends, also behind a snapshot of raft's; and so does its directory afterwards.
func TestLogEndOfMember(t *testing.T) {
	dir := t.TempDir()
	c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.DataDir = dir })
	m := c.Member(0)
	var ends []etcd.LogEnd
	for i := range 5 {
		put(t, m, fmt.Sprintf("/k/%d", i), "v")
		end, err := m.LogEnd()
		if err != nil {
			t.Fatal(err)
		}
		if end.Index < m.Server().AppliedIndex() || end.Term != m.Term() {
			t.Errorf("the log ends at %v, and applied is index %d of term %d", end, m.Server().AppliedIndex(), m.Term())
		}
		if ends = append(ends, end); i > 0 && end.Compare(ends[i-1]) <= 0 {
			t.Errorf("after another change it ends at %v, before at %v", end, ends[i-1])
		}
	}
	c.Crash(0)
	found, err := etcd.Inspect(dir)
	if err != nil || found.End.Compare(ends[4]) < 0 {
		t.Errorf("the directory's log ends at %v (%v), the member's ended at %v", found.End, err, ends[4])
	}
	if _, err := etcd.Recover(t.Context(), "m0", dir, etcd.Config{UnsafeNoSync: true}); err != nil { // makes a snapshot
		t.Fatal(err)
	}
	if later, err := etcd.Inspect(dir); err != nil || later.End.Compare(found.End) <= 0 {
		t.Errorf("after a recovery it ends at %v (%v), before at %v", later.End, err, found.End)
	}
}

// A crash in a recovery, when the member is a cluster of its own already, gives no revision away twice: whoever uses the
// directory next raises it first.
func TestRecoveryIsFinished(t *testing.T) {
	for name, finish := range map[string]func(t *testing.T, c *etcdtest.Cluster, dir string){
		"by a start": func(*testing.T, *etcdtest.Cluster, string) {},
		"by another recovery": func(t *testing.T, _ *etcdtest.Cluster, dir string) {
			t.Helper()
			if _, err := etcd.Recover(t.Context(), "m0", dir, etcd.Config{UnsafeNoSync: true}); err != nil {
				t.Fatal(err)
			}
			if etcd.Recovering(dir) {
				t.Error("it does not know that it has come to its end")
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.DataDir = dir })
			last := put(t, c.Member(0), "/k", "v")
			c.Crash(0)
			if err := etcd.Isolate(t.Context(), "m0", dir, etcd.Config{UnsafeNoSync: true}); err != nil {
				t.Fatal(err)
			}
			if !etcd.Recovering(dir) {
				t.Error("nothing tells that a recovery has begun")
			}
			finish(t, c, dir)
			m := c.Start(0)
			if next := put(t, m, "/k/new", "v"); next <= last+etcd.RevisionGap {
				t.Errorf("the next change has revision %d, and %d was the last", next, last)
			}
			if v := get(t, m, "/k"); v != "v" {
				t.Errorf("the key is %q", v)
			}
			if etcd.Recovering(dir) {
				t.Error("the recovery has no end")
			}
		})
	}
}

// What can't be read is left as it is.
func TestRecoverDamagedLog(t *testing.T) {
	dir := t.TempDir()
	c := etcdtest.New(t, 1, func(_ int, cfg *etcd.Config) { cfg.DataDir = dir })
	put(t, c.Member(0), "/k", "v")
	c.Crash(0)
	logs, err := filepath.Glob(filepath.Join(dir, "member", "wal", "*.wal"))
	if err != nil || len(logs) == 0 {
		t.Fatal(logs, err)
	}
	content, err := os.ReadFile(logs[0])
	if err != nil {
		t.Fatal(err)
	}
	content[100] ^= 0xff
	if err := os.WriteFile(logs[0], content, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := etcd.Recover(t.Context(), "m0", dir, etcd.Config{UnsafeNoSync: true}); err == nil {
		t.Error("a damaged log was recovered")
	}
	if etcd.Recovering(dir) {
		t.Error("a recovery has begun that can't end")
	}
}
