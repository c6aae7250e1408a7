package snapshot

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"

	"barque.dev/internal/cluster/join"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) { etcdtest.Main(m) }

func put(t *testing.T, m *etcd.Member, key, value string) {
	t.Helper()
	if _, err := m.Server().Put(t.Context(), &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)}); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, m *etcd.Member, key string) string {
	t.Helper()
	resp, err := m.Range(t.Context(), &etcdserverpb.RangeRequest{Key: []byte(key)})
	if err != nil {
		t.Fatal(err)
	}
	if len(resp.Kvs) == 0 {
		return ""
	}
	return string(resp.Kvs[0].Value)
}

const cluster = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// harness is a keeper over a member of etcd, with a clock of its own.
type harness struct {
	*Keeper
	member *etcd.Member
	etcd   *etcdtest.Cluster
	now    time.Time
	free   int64
	total  int64
	broken error // what a check finds
}

func newHarness(t *testing.T) *harness {
	t.Helper()
	h := &harness{etcd: etcdtest.New(t, 1, nil), now: noon, free: 1 << 40, total: 1 << 40}
	h.member = h.etcd.Member(0)
	h.Keeper = NewKeeper(Config{
		Source: h.member, Dir: filepath.Join(t.TempDir(), "snapshots"), Server: "m0", Cluster: cluster, Version: "v1", Kubernetes: "v1.37.1",
		Every: time.Hour, Keep: 2, Servers: func() []string { return []string{"m0", "m1"} },
		Keys:  func() (json.RawMessage, error) { return json.RawMessage(`{"key":"secret"}`), nil },
		Facts: func() join.Facts { return join.Facts{CAHash: cluster, ClusterDomain: "cluster.local"} },
		Check: func(ctx context.Context, path, scratch string) error {
			_, err := Unpack(ctx, path, scratch, nil)
			return errors.Join(err, h.broken)
		},
		Now:  func() time.Time { return h.now },
		Disk: func(string) (int64, int64, error) { return h.free, h.total, nil },
	})
	return h
}

// files are those in the directory, hidden ones included.
func (h *harness) files(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(h.cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	names := []string{}
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestSaveAndRestore(t *testing.T) {
	h := newHarness(t)
	for i := range 100 {
		put(t, h.member, fmt.Sprintf("/k%d", i), fmt.Sprintf("v%d", i))
	}
	info, err := h.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := h.files(t); len(got) != 1 || got[0] != info.File {
		t.Errorf("the directory holds %v, want %s", got, info.File)
	}
	path := filepath.Join(h.cfg.Dir, info.File)
	if stat, err := os.Stat(path); err != nil || stat.Mode().Perm() != 0o600 || stat.Size() != info.Bytes {
		t.Errorf("%v, %d bytes: %v", stat.Mode(), stat.Size(), err)
	}
	if m, err := ReadManifest(path); err != nil || m.Cluster != cluster || m.Revision != info.Revision || m.Behind || m.Facts.ClusterDomain != "cluster.local" {
		t.Errorf("its manifest is %+v: %v", m, err)
	}
	seen := 0
	c, err := Unpack(t.Context(), path, t.TempDir(), func(_, _ []byte) error { seen++; return nil })
	if err != nil || seen != 100 || c.Manifest.Keys != 100 || string(c.Keys) != `{"key":"secret"}` {
		t.Fatalf("it holds %d keys of etcd's, %s: %v", seen, c.Keys, err)
	}
	dir := filepath.Join(t.TempDir(), "etcd")
	if err := etcd.Restore(t.Context(), etcd.RestoreConfig{Database: c.Database, DataDir: dir}); err != nil {
		t.Fatal(err)
	}
	m, err := etcd.Start(t.Context(), etcd.Config{Name: "m0", DataDir: dir, PeerURL: etcdtest.FreeURL(t), UnsafeNoSync: true, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	<-m.Ready()
	for i := range 100 {
		if got := get(t, m, fmt.Sprintf("/k%d", i)); got != fmt.Sprintf("v%d", i) {
			t.Errorf("/k%d is %q", i, got)
		}
	}
}

// TestToolsReadIt: what is in a snapshot can be had without Barque.
func TestToolsReadIt(t *testing.T) {
	h := newHarness(t)
	put(t, h.member, "/k", "v")
	info, err := h.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for _, args := range [][]string{{"tar", "-xf", filepath.Join(h.cfg.Dir, info.File)}, {"sha256sum", "-c", "SHA256SUMS"}} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
	}
	// It is what `etcdctl snapshot save` writes, and is read as that.
	c, err := Unpack(t.Context(), filepath.Join(dir, "etcd.db"), t.TempDir(), nil)
	if err != nil || c.Manifest != nil || c.Info.Keys != 1 || c.Info.Revision != info.Revision {
		t.Errorf("%+v: %v", c, err)
	}
}

// TestDamageIsRefused changes one byte after the other, and cuts the file: either that is noticed, or nothing of what
// counts has changed, as in what fills up the blocks of an archive.
func TestDamageIsRefused(t *testing.T) {
	h := newHarness(t)
	for i := range 20 {
		put(t, h.member, fmt.Sprintf("/k%d", i), strings.Repeat("v", 500))
	}
	info, err := h.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(h.cfg.Dir, info.File)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	was, err := Unpack(t.Context(), path, t.TempDir(), nil)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "damaged.tar")
	refused := func(what string, content []byte) bool {
		t.Helper()
		if err := os.WriteFile(file, content, 0o600); err != nil {
			t.Fatal(err)
		}
		scratch := t.TempDir()
		is, err := Unpack(t.Context(), file, scratch, nil)
		if err == nil && (!reflect.DeepEqual(is.Manifest, was.Manifest) || string(is.Keys) != string(was.Keys) || is.Info.Revision != was.Info.Revision) {
			t.Errorf("%s: is taken for %+v", what, is)
		}
		if left, _ := os.ReadDir(scratch); err != nil && len(left) != 0 {
			t.Errorf("%s: left %v behind", what, left)
		}
		return err != nil
	}
	noticed := 0
	for at := 0; at < len(whole); at += 101 {
		changed := bytes.Clone(whole)
		changed[at] ^= 0x20
		if refused(fmt.Sprintf("byte %d of %d", at, len(whole)), changed) {
			noticed++
		}
	}
	if noticed < len(was.database(t))/101 {
		t.Errorf("only %d changes were noticed, and of etcd's database there are %d bytes", noticed, len(was.database(t)))
	}
	for _, size := range []int{0, 100, 512, 5000, len(whole) / 2, bytes.LastIndex(whole, []byte("  "+databaseFile))} {
		if !refused(fmt.Sprintf("cut to %d of %d bytes", size, len(whole)), whole[:size]) {
			t.Errorf("cut to %d of %d bytes: nothing was found wrong", size, len(whole))
		}
	}
}

func (c *Contents) database(t *testing.T) []byte {
	t.Helper()
	db, err := os.ReadFile(c.Database)
	if err != nil {
		t.Fatal(err)
	}
	return db
}

func TestWhatIsNoSnapshot(t *testing.T) {
	dir := t.TempDir()
	for want, content := range map[string]string{
		"name a file that":    "hello",
		"does not end as one": "PK\x03\x04zip",
		"that gunzip makes":   "\x1f\x8bgzip",
		"has no checksum":     strings.Repeat("\x00", 16) + "\xed\xda\x0c\xed" + strings.Repeat("\x00", 4076),
		"of a newer Barque":   string(archiveOf(t, Manifest{Format: 99, Cluster: cluster, Revision: 1, Version: "v9"})),
	} {
		file := filepath.Join(dir, "file")
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Unpack(t.Context(), file, t.TempDir(), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("want %q: %v", want, err)
		}
		if _, err := ReadManifest(file); err == nil {
			t.Errorf("%q has a manifest", want)
		}
	}
}

// nothing is a database without content.
type nothing struct{}

func (nothing) Size() int64 { return 32 }
func (nothing) WriteTo(w io.Writer) (int64, error) {
	n, err := w.Write([]byte("\xe3\xb0\xc4\x42\x98\xfc\x1c\x14\x9a\xfb\xf4\xc8\x99\x6f\xb9\x24\x27\xae\x41\xe4\x64\x9b\x93\x4c\xa4\x95\x99\x1b\x78\x52\xb8\x55"))
	return int64(n), err
}

func archiveOf(t *testing.T, m Manifest) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := write(&b, m, json.RawMessage(`{}`), nothing{}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestScheduledAreReplaced(t *testing.T) {
	h := newHarness(t)
	if _, err := h.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := plan{began: h.now}
	var taken []string
	for range 4 {
		h.now = turn(h.now, time.Hour, 0, 2)
		if !h.due(&p) {
			t.Fatalf("nothing is due at %v", h.now)
		}
		h.takeScheduled(t.Context(), &p)
		if h.Problem() != "" || h.due(&p) {
			t.Fatalf("at %v: %q", h.now, h.Problem())
		}
		taken = append(taken, h.now.Format(timeFormat))
	}
	list, err := List(h.cfg.Dir)
	if err != nil || len(list) != 3 || !list[0].Scheduled || list[0].Time.Format(timeFormat) != taken[3] ||
		list[1].Time.Format(timeFormat) != taken[2] || list[2].Scheduled {
		t.Errorf("left are %+v of %v: %v", list, taken, err)
	}
}

func TestNothingIsLeftOfAFailure(t *testing.T) {
	h := newHarness(t)
	put(t, h.member, "/k", "v")
	for name, tt := range map[string]struct {
		prepare func()
		want    string
	}{
		"no room":           {func() { h.free, h.total = reserve, 4*reserve }, "remove old snapshots there"},
		"a full large disk": {func() { h.free, h.total = 100<<30, 1<<40 }, "157286 MiB are needed"},
		"the check fails":   {func() { h.broken = ErrDamaged }, "what was written is not right: the snapshot is damaged"},
		"no quorum":         {func() { h.cfg.Source = alone{h.member} }, "there is no quorum"},
		"keys can't be had": {func() { h.cfg.Keys = func() (json.RawMessage, error) { return nil, os.ErrPermission } }, "read the cluster's keys"},
	} {
		t.Run(name, func(t *testing.T) {
			was := *h
			wasConfig := h.cfg
			defer func() { h.free, h.total, h.broken, h.cfg = was.free, was.total, was.broken, wasConfig }()
			tt.prepare()
			p := plan{}
			h.takeScheduled(t.Context(), &p)
			if !strings.Contains(h.Problem(), tt.want) || p.failed.IsZero() {
				t.Errorf("the problem is %q, want %q", h.Problem(), tt.want)
			}
			if left := h.files(t); len(left) != 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
	p := plan{}
	if h.takeScheduled(t.Context(), &p); h.Problem() != "" || !p.failed.IsZero() {
		t.Errorf("a snapshot that was taken leaves the problem %q", h.Problem())
	}
}

// alone is a member that hears of nobody.
type alone struct{ *etcd.Member }

func (alone) ReadIndex(context.Context) (int64, error) { return 0, errors.New("no leader") }

// TestWithoutAQuorum: what is left can be saved, and says so.
func TestWithoutAQuorum(t *testing.T) {
	h := newHarness(t)
	h.cfg.Source = alone{h.member}
	info, err := h.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if m, err := ReadManifest(filepath.Join(h.cfg.Dir, info.File)); err != nil || !m.Behind {
		t.Errorf("%+v: %v", m, err)
	}
}

func TestUnfinishedIsRemoved(t *testing.T) {
	h := newHarness(t)
	h.cfg.Every = 0
	if err := os.MkdirAll(filepath.Join(h.cfg.Dir, h.temporary()+"check-1"), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{h.temporary() + "1", ".unfinished-m0-2_3", "mine.txt"} {
		if err := os.WriteFile(filepath.Join(h.cfg.Dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(h.files(t)); got != "[.unfinished-m0-2_3 mine.txt]" {
		t.Errorf("left are %s", got)
	}
}

func TestHandlers(t *testing.T) {
	h := newHarness(t)
	put(t, h.member, "/k", "v")
	handlers := h.Handlers("/long/")
	ask := func(method, path string) *httptest.ResponseRecorder {
		t.Helper()
		w := httptest.NewRecorder()
		handlers[path].ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), method, path, nil))
		return w
	}
	var info Info
	if w := ask("POST", PathSave("/long/")); w.Code != 200 || json.Unmarshal(w.Body.Bytes(), &info) != nil || info.Server != "m0" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	var status Status
	if w := ask("GET", PathStatus); w.Code != 200 || json.Unmarshal(w.Body.Bytes(), &status) != nil || len(status.Snapshots) != 1 || status.Snapshots[0].File != info.File || info.Dir != h.cfg.Dir {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	w := ask("POST", PathSend("/long/"))
	file := filepath.Join(t.TempDir(), "sent.tar")
	if err := os.WriteFile(file, w.Body.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Unpack(t.Context(), file, t.TempDir(), nil); err != nil || c.Info.Keys != 1 {
		t.Errorf("what was sent: %+v: %v", c, err)
	}
	if len(h.files(t)) != 1 {
		t.Errorf("what was sent is kept: %v", h.files(t))
	}
	h.busy.Lock()
	if w := ask("POST", PathSend("/long/")); w.Code != 409 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	h.busy.Unlock()
	h.free = 0
	if w := ask("POST", PathSave("/long/")); w.Code != 507 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w := ask("GET", PathSave("/long/")); w.Code != 405 || w.Header().Get("Allow") != "POST" {
		t.Errorf("%d %s", w.Code, w.Body)
	}
}
