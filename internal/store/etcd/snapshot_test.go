package etcd_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// saved is a snapshot's file without its checksum, which is checked first, and the snapshot's revision.
func saved(t *testing.T, m *etcd.Member) (path string, revision int64) {
	t.Helper()
	s, err := m.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	var file bytes.Buffer
	if n, err := s.WriteTo(&file); err != nil || n != s.Size() || n != int64(file.Len()) {
		t.Fatalf("wrote %d of %d bytes, said %d: %v", file.Len(), s.Size(), n, err)
	}
	db, sum := file.Bytes()[:file.Len()-sha256.Size], file.Bytes()[file.Len()-sha256.Size:]
	if want := sha256.Sum256(db); !bytes.Equal(sum, want[:]) {
		t.Error("the checksum at the end is wrong")
	}
	path = filepath.Join(t.TempDir(), "db")
	if err := os.WriteFile(path, db, 0o600); err != nil {
		t.Fatal(err)
	}
	return path, s.Revision
}

func putLease(t *testing.T, m *etcd.Member, key string, lease int64) {
	t.Helper()
	if _, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte("v"), Lease: lease}); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, m *etcd.Member, key string) {
	t.Helper()
	if _, err := m.Server().DeleteRange(t.Context(), &etcdserverpb.DeleteRangeRequest{Key: []byte(key)}); err != nil {
		t.Fatal(err)
	}
}

// restored starts a member from a snapshot.
func restored(t *testing.T, path string, at int64) *etcd.Member {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := etcd.Restore(t.Context(), etcd.RestoreConfig{Database: path, DataDir: dir, At: at}); err != nil {
		t.Fatal(err)
	}
	m, err := etcd.Start(t.Context(), etcd.Config{
		Name: "anew", DataDir: dir, PeerURL: etcdtest.FreeURL(t), UnsafeNoSync: true, Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(m.Close)
	<-m.Ready()
	return m
}

func TestSnapshotUnderWrites(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	m := c.Member(0)
	acked := put(t, m, "/first", "v")
	stop := make(chan struct{})
	var writer sync.WaitGroup
	writer.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
				put(t, m, fmt.Sprintf("/k%d", i%50), fmt.Sprint(i))
			}
		}
	})
	etcdtest.Eventually(t, "all keys are there", func(ctx context.Context) error {
		if n, err := m.Keys(ctx, 0); err != nil || n < 51 {
			return fmt.Errorf("%d keys: %w", n, err)
		}
		return nil
	})
	path, revision := saved(t, m)
	close(stop)
	writer.Wait()
	if revision < acked {
		t.Errorf("the snapshot is of revision %d, and %d was acknowledged before", revision, acked)
	}
	want, err := m.Keys(t.Context(), revision)
	if err != nil {
		t.Fatal(err)
	}
	values := map[string]string{}
	info, err := etcd.CheckDatabase(t.Context(), path, func(k, v []byte) error {
		values[string(k)] = string(v)
		return nil
	})
	if err != nil || info.Revision != revision || info.Keys != want || int64(len(values)) != want {
		t.Fatalf("found %+v and %d values, want revision %d and %d keys: %v", info, len(values), revision, want, err)
	}
	back := restored(t, path, 0)
	for k, v := range values {
		if got := get(t, back, k); got != v {
			t.Errorf("%s is %q, and was %q", k, got, v)
		}
	}
}

func TestRestoredMemberIsAClusterOfItsOwn(t *testing.T) {
	c := etcdtest.New(t, 3, nil)
	old := c.Member(0)
	put(t, old, "/k", "v")
	if _, err := old.Server().Alarm(t.Context(), &etcdserverpb.AlarmRequest{
		Action: etcdserverpb.AlarmRequest_ACTIVATE, MemberID: old.ID(), Alarm: etcdserverpb.AlarmType_NOSPACE,
	}); err != nil {
		t.Fatal(err)
	}
	path, revision := saved(t, old)
	if info, err := etcd.CheckDatabase(t.Context(), path, nil); err != nil || fmt.Sprint(info.Alarms) != "[NOSPACE]" {
		t.Errorf("found %+v: %v", info, err)
	}
	m := restored(t, path, 0)
	members := m.Members()
	if len(members) != 1 || m.ClusterID() == old.ClusterID() || m.ID() == old.ID() {
		t.Errorf("cluster %x of %v, and the one that was lost is %x", m.ClusterID(), members, old.ClusterID())
	}
	if len(members) == 1 && members[0].PeerURLs[0] == "https://restored.invalid:2380" {
		t.Error("the member does not know where it is")
	}
	if got := put(t, m, "/k", "w"); got <= revision+1_000_000 {
		t.Errorf("revision %d is not far ahead of %d", got, revision)
	}
	_, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte("/k"), Revision: revision + 10})
	if !errors.Is(err, store.ErrCompacted) {
		t.Errorf("whoever knows a revision of the old cluster is told: %v", err)
	}
	other, err := m.AddLearner(t.Context(), etcdtest.FreeURL(t))
	if err != nil || len(other) != 2 {
		t.Errorf("nobody can join: %v, %v", other, err)
	}
}

func TestRestoreAtARevision(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	m := c.Member(0)
	first := put(t, m, "/compacted", "v")
	put(t, m, "/kept", "old")
	lease, err := m.LeaseGrant(t.Context(), 1000)
	if err != nil {
		t.Fatal(err)
	}
	putLease(t, m, "/leased", lease)
	good := put(t, m, "/gone", "v")
	if err := m.Compact(t.Context(), first+1); err != nil {
		t.Fatal(err)
	}
	put(t, m, "/kept", "new")
	remove(t, m, "/gone")
	if _, err := m.Server().LeaseRevoke(t.Context(), &etcdserverpb.LeaseRevokeRequest{ID: lease}); err != nil {
		t.Fatal(err)
	}
	newest := put(t, m, "/later", "v")
	path, _ := saved(t, m)

	var changes []string
	if err := etcd.History(t.Context(), path, func(c etcd.Change) error {
		changes = append(changes, fmt.Sprintf("%s %d", c.Key, c.Version))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if want := "[/leased 1 /gone 1 /kept 2 /gone 0 /leased 0 /later 1]"; fmt.Sprint(changes) != want {
		t.Errorf("history is %v, want %s", changes, want)
	}
	for _, at := range []int64{first, newest + 1} {
		err := etcd.Restore(t.Context(), etcd.RestoreConfig{Database: path, DataDir: filepath.Join(t.TempDir(), "etcd"), At: at})
		if !errors.Is(err, etcd.ErrNotKept) {
			t.Errorf("at revision %d: %v", at, err)
		}
	}
	back := restored(t, path, good)
	for k, want := range map[string]string{"/compacted": "v", "/kept": "old", "/gone": "v", "/later": "", "/leased": ""} {
		if got := get(t, back, k); got != want {
			t.Errorf("%s is %q, want %q", k, got, want)
		}
	}
}

// checkEnv names a file that this program, run once more, is to check.
const checkEnv = "BARQUE_TEST_CHECK_DATABASE"

// TestDamagedDatabase lets another process check, as who checks what may be damaged has to.
func TestDamagedDatabase(t *testing.T) {
	c := etcdtest.New(t, 1, nil)
	m := c.Member(0)
	for i := range 200 {
		put(t, m, fmt.Sprintf("/k%d", i), fmt.Sprintf("%0400d", i))
	}
	path, _ := saved(t, m)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		content []byte
		well    bool
	}{
		"whole": {whole, true},
		"cut":   {whole[:len(whole)/2], false},
		"empty": {nil, false},
		"text":  {bytes.Repeat([]byte("no database "), 5000), false},
		"zeros": {append(bytes.Clone(whole[:8192]), make([]byte, len(whole)-8192)...), false},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "db")
			if err := os.WriteFile(file, tt.content, 0o600); err != nil {
				t.Fatal(err)
			}
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), checkEnv+"="+file)
			if out, err := cmd.CombinedOutput(); (err == nil) != tt.well {
				t.Errorf("%v: %s", err, out)
			}
		})
	}
}
