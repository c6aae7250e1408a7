package snapshot

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMissing(t *testing.T) {
	at := func(minutes ...int) []Info {
		var list []Info
		for _, m := range minutes {
			list = append(list, infoOf(Name{noon.Add(time.Duration(m) * time.Minute), "11111111", 1, true, "a"}, 1))
		}
		return list
	}
	other := at(2)
	other[0].Bytes = 7
	for _, tt := range []struct {
		here, there []Info
		keep        int
		want        []Info
	}{
		{at(3, 2, 1), nil, 8, at(3, 2, 1)},
		{at(3, 2, 1), nil, 2, at(3, 2)},
		{at(3, 2, 1), at(2), 8, at(3, 1)},
		{at(3, 2, 1), at(3, 2, 1), 8, nil},
		{at(3, 2, 1), at(5, 4), 2, nil}, // they are too old there
		{at(6, 1), at(5, 4), 2, at(6)},
		{at(3, 2, 1), other, 8, at(3, 2, 1)}, // what has its name is something else
		{nil, at(5), 8, nil},
		{nil, nil, 8, nil},
	} {
		got := missing(tt.here, tt.there, tt.keep)
		if fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("here %d, there %d, keep %d: %v are missing, want %v", len(tt.here), len(tt.there), tt.keep, got, tt.want)
		}
	}
}

// shelf is a remote that is a directory, which can be away, or stuck.
type shelf struct {
	mu   sync.Mutex
	dir  string
	away error
	// stuck, if there, holds up who puts something until it is closed.
	stuck chan struct{}
	puts  chan struct{}
}

func (s *shelf) String() string { return "shelf:" }

func (s *shelf) failing() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.away
}

func (s *shelf) set(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.away = err
}

func (s *shelf) List(context.Context) ([]Info, error) {
	if err := s.failing(); err != nil {
		return nil, err
	}
	return List(s.dir)
}

func (s *shelf) Put(ctx context.Context, file string) error {
	if s.puts != nil {
		s.puts <- struct{}{}
	}
	if s.stuck != nil {
		select {
		case <-s.stuck:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := s.failing(); err != nil {
		return err
	}
	content, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, filepath.Base(file)), content, 0o600)
}

func (s *shelf) Remove(_ context.Context, name string) error {
	if err := s.failing(); err != nil {
		return err
	}
	return os.Remove(filepath.Join(s.dir, name))
}

func (s *shelf) names(t *testing.T) []string {
	t.Helper()
	list, err := List(s.dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, i := range list {
		names = append(names, i.File)
	}
	return names
}

func newShelf(t *testing.T, h *harness, keep int) *shelf {
	t.Helper()
	s := &shelf{dir: t.TempDir()}
	h.cfg.Remote, h.cfg.RemoteKeep = s, keep
	return s
}

// step lets an hour pass and takes a scheduled snapshot.
func (h *harness) step(t *testing.T, p *plan) {
	t.Helper()
	h.now = turn(h.now, time.Hour, 0, 2)
	if !h.due(p) {
		t.Fatalf("nothing is due at %v", h.now)
	}
	if h.takeScheduled(t.Context(), p); h.Problem() != "" {
		t.Fatal(h.Problem())
	}
}

// TestCopied: scheduled snapshots go to the remote and are replaced there, apart from those here; a remote that was away gets
// what it missed.
func TestCopied(t *testing.T) {
	h := newHarness(t)
	s := newShelf(t, h, 3)
	foreign := Name{noon, "22222222", 9, true, "m0"}.String()
	for _, name := range []string{foreign, "notes.txt"} {
		if err := os.WriteFile(filepath.Join(s.dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	p := plan{began: h.now}
	if _, err := h.Save(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.step(t, &p)
	s.set(errors.New("nobody is there"))
	if err := h.copyAll(t.Context()); err == nil || len(s.names(t)) != 1 {
		t.Errorf("%v, and there are %v", err, s.names(t))
	}
	h.step(t, &p) // it does not need the remote
	s.set(nil)
	for range 4 {
		if err := h.copyAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.step(t, &p)
	}
	if err := h.copyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	here, err := h.own()
	if err != nil || len(here) != h.cfg.Keep {
		t.Fatalf("here are %v: %v", here, err)
	}
	there := s.names(t)
	if len(there) != 4 || !slices.Contains(there, foreign) || there[0] != here[0].File || there[1] != here[1].File {
		t.Errorf("here are %v, there %v", here, there)
	}
	if st := h.remoteStatus(); st.Where != "shelf:" || st.Keep != 3 || len(st.Snapshots) != 3 || st.Snapshots[0].File != there[0] {
		t.Errorf("it tells of %+v", st)
	}
	if _, err := os.Stat(filepath.Join(s.dir, "notes.txt")); err != nil {
		t.Error(err)
	}
}

// TestOnlyThere: with nothing to be kept here, a snapshot stays until it is there, and the schedule goes on as if it were here.
func TestOnlyThere(t *testing.T) {
	h := newHarness(t)
	s := newShelf(t, h, 2)
	h.cfg.Keep = 0
	p := plan{began: h.now}
	h.step(t, &p)
	if err := h.copyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := h.files(t); len(left) != 0 || len(s.names(t)) != 1 {
		t.Errorf("here are %v, there %v", left, s.names(t))
	}
	for what, p := range map[string]*plan{"the process that took it": &p, "another": {began: noon}} {
		if h.due(p) {
			t.Errorf("%s is to take another at once", what)
		}
	}
	s.set(errors.New("nobody is there"))
	for range 3 {
		h.step(t, &p)
		if err := h.copyAll(t.Context()); err == nil {
			t.Fatal("it was copied to nowhere")
		}
	}
	if left := h.files(t); len(left) != 1 {
		t.Errorf("while nobody is there, here are %v", left)
	}
	s.set(nil)
	if err := h.copyAll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := h.files(t); len(left) != 0 || len(s.names(t)) != 2 {
		t.Errorf("here are %v, there %v", left, s.names(t))
	}
}

// TestStuckRemote: a remote that takes for ever holds up nothing but itself, and ends with the server.
func TestStuckRemote(t *testing.T) {
	h := newHarness(t)
	s := newShelf(t, h, 2)
	s.stuck, s.puts = make(chan struct{}), make(chan struct{})
	p := plan{began: h.now}
	h.step(t, &p)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		h.followRemote(ctx)
	}()
	<-s.puts
	h.step(t, &p)
	if left := h.files(t); len(left) != 2 {
		t.Errorf("here are %v", left)
	}
	cancel()
	<-done
}

// TestRemoteProblem: why nothing is copied is told, until it is.
func TestRemoteProblem(t *testing.T) {
	h := newHarness(t)
	s := newShelf(t, h, 2)
	h.tellRemote(errors.New("nobody is there"))
	if st := h.remoteStatus(); !strings.Contains(st.Problem, "nobody is there") || h.Problem() != "" {
		t.Errorf("%+v, %q", st, h.Problem())
	}
	h.tellRemote(h.copyAll(t.Context()))
	if st := h.remoteStatus(); st.Problem != "" {
		t.Errorf("%+v", st)
	}
	if len(s.names(t)) != 0 {
		t.Errorf("there are %v", s.names(t))
	}
}
