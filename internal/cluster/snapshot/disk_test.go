package snapshot

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestSacrifice(t *testing.T) {
	list := []Info{{File: "d", Bytes: 40}, {File: "c", Bytes: 30}, {File: "b", Bytes: 20}, {File: "a", Bytes: 10}}
	for _, tt := range []struct {
		list  []Info
		short int64
		want  string
	}{
		{list, 1, "a"},
		{list, 10, "a"},
		{list, 11, "ba"},
		{list, 60, "cba"},
		{list, 61, ""}, // the newest would have to go
		{list[3:], 1, ""},
		{nil, 1, ""},
	} {
		got := ""
		for _, i := range sacrifice(tt.list, tt.short) {
			got += i.File
		}
		if got != tt.want {
			t.Errorf("of %d, %d bytes short: %q go, want %q", len(tt.list), tt.short, got, tt.want)
		}
	}
}

// A small disk stays away from where its node has DiskPressure. The oldest snapshot goes if that makes room for the next; if not, none.
func TestRoomOfScheduled(t *testing.T) {
	h := newHarness(t)
	h.cfg.Keep = 5
	p := plan{began: h.now}
	take := func() {
		t.Helper()
		h.now = h.now.Add(time.Hour)
		h.takeScheduled(t.Context(), &p)
	}
	h.total = 10 << 30
	for range 3 {
		take()
	}
	before := h.files(t)
	if len(before) != 3 {
		t.Fatalf("there are %v: %s", before, h.Problem())
	}
	stat, err := os.Stat(filepath.Join(h.cfg.Dir, before[0]))
	if err != nil {
		t.Fatal(err)
	}
	need := 2*h.member.DatabaseSize() + h.total/100*reservePercent
	if need < h.total/10 {
		t.Errorf("%d of %d bytes stay free, which is DiskPressure", need, h.total)
	}
	// The disk gives back what is removed.
	h.cfg.Disk = func(string) (int64, int64, error) {
		return h.free + int64(3-len(h.files(t)))*stat.Size(), h.total, nil
	}
	h.free = need - 2*stat.Size() - 1<<20
	if take(); !strings.Contains(h.Problem(), ErrNoRoom.Error()) || len(h.files(t)) != 3 {
		t.Errorf("nothing would help: %q, left are %v", h.Problem(), h.files(t))
	}
	h.free = need - 1
	if _, err := h.Save(t.Context()); err != nil {
		t.Errorf("who asks for one gets it: %v", err)
	}
	if err := os.Remove(filepath.Join(h.cfg.Dir, h.files(t)[3])); err != nil {
		t.Fatal(err)
	}
	take()
	if after := h.files(t); h.Problem() != "" || len(after) != 3 || after[0] != before[1] || after[1] != before[2] {
		t.Errorf("there were %v, and are %v: %q", before, after, h.Problem())
	}
}

// syncs counts what waits for a disk at most.
type syncs struct{ waiting, most, written int }

func (s *syncs) Write(b []byte) (int, error) {
	s.waiting += len(b)
	s.written += len(b)
	s.most = max(s.most, s.waiting)
	return len(b), nil
}

func (s *syncs) Sync() error { s.waiting = 0; return nil }

// What a snapshot is unpacked to for its check is written in steps as the snapshot is, beside etcd on the same disk.
func TestUnpackedIsWrittenInSteps(t *testing.T) {
	db := bytes.Repeat([]byte("database"), 4*syncEvery/8)
	sum := sha256.Sum256(db)
	disk := &syncs{}
	if err := copyDatabase(&steadyWriter{ctx: t.Context(), f: disk}, struct{ io.Reader }{io.MultiReader(bytes.NewReader(db), bytes.NewReader(sum[:]))}); err != nil {
		t.Fatal(err)
	}
	if disk.written != len(db) || disk.most > 2*syncEvery {
		t.Errorf("%d bytes of %d were written, and up to %d waited for the disk", disk.written, len(db), disk.most)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := copyDatabase(&steadyWriter{ctx: ctx, f: disk}, bytes.NewReader(db)); !errors.Is(err, context.Canceled) {
		t.Errorf("who gives up is told %v", err)
	}
}

func TestUnpackIsGivenUp(t *testing.T) {
	h := newHarness(t)
	info, err := h.Save(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Unpack(ctx, filepath.Join(h.cfg.Dir, info.File), t.TempDir(), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("who gives up is told %v", err)
	}
}

// A client that stops reading what it was sent keeps nobody from taking a snapshot, and is given up.
func TestClientThatStopsReading(t *testing.T) {
	h := newHarness(t)
	for i := range 12 { // more than sockets hold
		put(t, h.member, "/k"+string(rune('a'+i)), strings.Repeat("v", 1<<20))
	}
	h.patience = 50 * time.Millisecond
	ended := make(chan any, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() {
			end := recover()
			ended <- end
			panic(end)
		}()
		h.serveSend(w, r)
	}))
	defer server.Close()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, server.URL, nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := server.Client().Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	select {
	case end := <-ended:
		if err, ok := end.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
			t.Errorf("it ends with %v", end)
		}
	case <-time.After(time.Minute):
		t.Fatal("it waits for a client that does not read")
	}
}

// stuck is a client that reads nothing until it is let.
type stuck struct {
	*httptest.ResponseRecorder
	begun, let chan struct{}
}

func (s *stuck) Write(b []byte) (int, error) {
	select {
	case <-s.begun:
	default:
		close(s.begun)
	}
	<-s.let
	return s.ResponseRecorder.Write(b)
}

func TestSendingHoldsNobodyUp(t *testing.T) {
	h := newHarness(t)
	put(t, h.member, "/k", "v")
	client := &stuck{ResponseRecorder: httptest.NewRecorder(), begun: make(chan struct{}), let: make(chan struct{})}
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.serveSend(client, httptest.NewRequestWithContext(t.Context(), http.MethodPost, PathSend("/"), nil))
	}()
	<-client.begun
	p := plan{}
	if h.takeScheduled(t.Context(), &p); h.Problem() != "" {
		t.Errorf("while one is sent: %s", h.Problem())
	}
	close(client.let)
	<-done
	file := filepath.Join(t.TempDir(), "sent.tar")
	if err := os.WriteFile(file, client.Body.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	if c, err := Unpack(t.Context(), file, t.TempDir(), nil); err != nil || c.Info.Keys != 1 {
		t.Errorf("what was sent: %+v: %v", c, err)
	}
	if left := h.files(t); len(left) != 1 {
		t.Errorf("left are %v", left)
	}
}
