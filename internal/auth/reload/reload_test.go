package reload_test

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"barque.dev/internal/auth/reload"
	"barque.dev/internal/testkit"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"),
		goleak.IgnoreTopFunction("go.opencensus.io/stats/view.(*worker).start"),
	)
}

// follower notes what it is told.
type follower struct {
	mu    sync.Mutex
	notes []string
}

func (f *follower) note(s string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.notes = append(f.notes, s)
}

func (f *follower) has(s string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Contains(f.notes, s)
}

func (f *follower) count(s string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, note := range f.notes {
		if note == s {
			n++
		}
	}
	return n
}

func put(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	put(t, path, "first")
	var f follower
	config := reload.Config{
		Path: path, Log: slog.New(slog.DiscardHandler),
		Apply: func(_ context.Context, content []byte) error {
			f.note("try " + string(content))
			switch string(content) {
			case "bad":
				return errors.New("no good")
			case "later":
				return errors.Join(errors.New("not yet"), reload.ErrRetry)
			}
			return nil
		},
		Applied: func(content []byte) { f.note("applied " + string(content)) },
		Failed:  func() { f.note("failed") },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- reload.New(config, []byte("first")).Run(ctx) }()
	expect := func(note string) {
		t.Helper()
		testkit.Eventually(t, 10*time.Second, note, testkit.Holds(func() bool { return f.has(note) }))
	}
	put(t, path, "second")
	expect("applied second")
	put(t, path, "bad")
	expect("failed")
	put(t, path, "later")
	expect("try later")
	put(t, path, "third")
	expect("applied third")
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if f.has("try first") {
		t.Error("what was applied already was applied again")
	}
	if n := f.count("try bad"); n != 1 {
		t.Errorf("what is wrong for good was tried %d times", n)
	}
	if f.has("applied bad") || f.has("applied later") || f.count("failed") < 2 {
		t.Errorf("%v", f.notes)
	}
}

// A file that changed before it was followed is applied at once.
func TestFileThatChangedBefore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "file")
	put(t, path, "second")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	seen := make(chan string, 1)
	config := reload.Config{Path: path, Log: slog.New(slog.DiscardHandler), Apply: func(_ context.Context, content []byte) error {
		seen <- string(content)
		return nil
	}}
	done := make(chan error)
	go func() { done <- reload.New(config, []byte("first")).Run(ctx) }()
	select {
	case got := <-seen:
		if got != "second" {
			t.Errorf("applied %q", got)
		}
	case <-time.After(10 * time.Second):
		t.Error("the file was not applied")
	}
	cancel()
	<-done
}
