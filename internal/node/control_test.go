package node

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// held is a data directory that a process holds.
func held(t *testing.T, dir string) *home {
	t.Helper()
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	h.keep()
	t.Cleanup(h.close)
	return h
}

func TestOrders(t *testing.T) {
	// A socket's address may have 107 bytes; the directory's path has more.
	dir := filepath.Join(t.TempDir(), strings.Repeat("long/", 30))
	h := held(t, dir)
	c, err := h.openControl(map[string]order{
		"/echo": func(_ context.Context, in json.RawMessage, say say) (any, error) {
			say("first")
			say("second of %d", 2)
			return in, nil
		},
		"/fail": func(context.Context, json.RawMessage, say) (any, error) { return nil, errors.New("not today") },
		"/hang": func(ctx context.Context, _ json.RawMessage, say say) (any, error) {
			say("waiting")
			<-ctx.Done()
			return nil, ctx.Err()
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	var heard []string
	hear := func(text string) { heard = append(heard, text) }
	got, err := tell(t.Context(), dir, "/echo", "hello", hear)
	if err != nil || string(got) != `"hello"` || !slices.Equal(heard, []string{"first", "second of 2"}) {
		t.Errorf("%s, %v, heard %q", got, err, heard)
	}
	if _, err := tell(t.Context(), dir, "/fail", nil, hear); err == nil || err.Error() != "not today" {
		t.Errorf("a failure: %v", err)
	}
	if _, err := tell(t.Context(), dir, "/sail", nil, hear); err == nil || !strings.Contains(err.Error(), "can't do this") {
		t.Errorf("an order that nobody knows: %v", err)
	}
	// When the process ends, whoever waits is told.
	waits, ended := make(chan bool), make(chan error)
	go func() {
		_, err := tell(t.Context(), dir, "/hang", nil, func(string) { close(waits) })
		ended <- err
	}()
	<-waits
	c.close()
	if err := <-ended; err == nil {
		t.Error("an order that was never carried out succeeded")
	}
	if _, err := tell(t.Context(), dir, "/echo", nil, hear); !errors.Is(err, ErrNotRunning) {
		t.Errorf("nobody listens: %v", err)
	}
	if _, err := tell(t.Context(), filepath.Join(dir, "none"), "/echo", nil, hear); err == nil || errors.Is(err, ErrNotRunning) {
		t.Errorf("no directory: %v", err)
	}
}

// What a killed process left behind keeps nobody from listening again.
func TestOrdersAfterACrash(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, controlSocket), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h := held(t, dir)
	c, err := h.openControl(map[string]order{"/x": func(context.Context, json.RawMessage, say) (any, error) { return nil, nil }})
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if _, err := tell(t.Context(), dir, "/x", nil, nil); err != nil {
		t.Error(err)
	}
}

// A machine leaves once, and only after it is ready to; what goes wrong then is told.
func TestLeaving(t *testing.T) {
	refusal, failure := errors.New("not now"), errors.New("half-way")
	in, quiet := json.RawMessage(`{"drain":5}`), func(string, ...any) {}
	l := newLeaving()
	var asked LeaveRequest
	ready := func(_ context.Context, r LeaveRequest, _ say) error { asked = r; return refusal }
	if _, err := l.begin(t.Context(), in, quiet, ready, nil); !errors.Is(err, refusal) || asked.Drain != 5 || l.decided.Load() {
		t.Errorf("%v, asked for %+v, decided %t", err, asked, l.decided.Load())
	}
	stopped := make(chan error, 1)
	ready = func(context.Context, LeaveRequest, say) error {
		if _, err := l.begin(t.Context(), in, quiet, nil, nil); err == nil || !strings.Contains(err.Error(), "already") {
			t.Errorf("it leaves twice: %v", err)
		}
		return nil
	}
	stop := func(err error) { stopped <- err; l.finish(failure) }
	if _, err := l.begin(t.Context(), in, quiet, ready, stop); !errors.Is(err, failure) || !errors.Is(<-stopped, ErrLeft) || !l.decided.Load() || !l.failed() {
		t.Errorf("%v, decided %t", err, l.decided.Load())
	}
}

func TestPurge(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	h, err := openHome(dir)
	if err != nil {
		t.Fatal(err)
	}
	h.keep()
	if err := os.MkdirAll(h.path("etcd", "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Purge(dir); err == nil || !strings.Contains(err.Error(), "nothing was removed") {
		t.Errorf("of one that has not left: %v", err)
	}
	if err := h.markLeft(time.Now()); err != nil {
		t.Fatal(err)
	}
	if err := h.checkLeft(); !errors.Is(err, ErrLeft) || !strings.Contains(err.Error(), dir) {
		t.Errorf("%v", err)
	}
	if err := Purge(dir); err == nil || !strings.Contains(err.Error(), "end it first") {
		t.Errorf("of one that runs: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*endPoll)
	defer cancel()
	if err := AwaitEnd(ctx, dir); err == nil {
		t.Error("it has ended while it runs")
	}
	h.close()
	if err := AwaitEnd(t.Context(), dir); err != nil {
		t.Error(err)
	}
	if err := Purge(dir); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("it is there: %v", err)
	}
}

// Data is moved aside, never over what was moved before.
func TestAside(t *testing.T) {
	h := held(t, t.TempDir())
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, want := range []string{"etcd.removed-20260102T030405Z", "etcd.removed-20260102T030406Z"} {
		if err := os.Mkdir(h.path("etcd"), 0o700); err != nil {
			t.Fatal(err)
		}
		if got, err := h.aside("removed", now); err != nil || got != h.path(want) {
			t.Errorf("%s, %v", got, err)
		}
		if _, err := os.Stat(h.path(want)); err != nil {
			t.Error(err)
		}
		now = now.Add(time.Second)
	}
	if _, err := h.aside("removed", now); err != nil {
		t.Errorf("of nothing: %v", err)
	}
}

func TestMajority(t *testing.T) {
	voter := func(answers bool) RecoverMember { return RecoverMember{Answers: answers, Votes: true} }
	for _, c := range []struct {
		what    string
		dropped []RecoverMember
		want    bool
	}{
		{"alone", nil, true},
		{"one of three", []RecoverMember{voter(false), voter(false)}, false},
		{"two of three", []RecoverMember{voter(true), voter(false)}, true},
		{"two of five", []RecoverMember{voter(true), voter(false), voter(false), voter(false)}, false},
		{"a learner counts for nothing", []RecoverMember{voter(false), {Answers: true}}, false},
	} {
		if got := (&RecoverPlan{Dropped: c.dropped}).Majority(); got != c.want {
			t.Errorf("%s: %t", c.what, got)
		}
	}
}

// Where no server has been, nothing is recovered.
func TestRecoverElsewhere(t *testing.T) {
	dir := t.TempDir()
	if _, err := PlanRecovery(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "not the data directory of a server") {
		t.Errorf("plan: %v", err)
	}
	err := Recover(t.Context(), dir, slog.New(slog.DiscardHandler), func(string) {})
	if err == nil || !strings.Contains(err.Error(), "not the data directory of a server") {
		t.Errorf("recovery: %v", err)
	}
}
