package run

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// diary notes what happens in which order.
type diary struct {
	mu    sync.Mutex
	lines []string
}

func (d *diary) note(line string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.lines = append(d.lines, line)
}

func (d *diary) service(name string) Service {
	return Service{Name: name, Run: func(ctx context.Context, ready func()) error {
		d.note(name + " starts")
		ready()
		<-ctx.Done()
		d.note(name + " stops")
		return ctx.Err()
	}}
}

var quiet = slog.New(slog.DiscardHandler)

func TestGroupStartsInOrderAndStopsInReverse(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var d diary
	err := Group(ctx, quiet, func() { d.note("ready"); cancel() }, d.service("a"), d.service("b"), d.service("c"))
	if err != nil {
		t.Fatalf("a group that was told to stop failed: %v", err)
	}
	want := []string{"a starts", "b starts", "c starts", "ready", "c stops", "b stops", "a stops"}
	if !slices.Equal(d.lines, want) {
		t.Errorf("got  %v\nwant %v", d.lines, want)
	}
}

func TestGroupEndsWithTheFirstFailure(t *testing.T) {
	broken := errors.New("broken")
	tests := []struct {
		name string
		last Service
		want error
	}{
		{"at the start", Func("x", func(context.Context) error { return broken }), broken},
		{"before it is ready", Service{Name: "x", Run: func(context.Context, func()) error { return broken }}, broken},
		{"without an error, though it should go on", Func("x", func(context.Context) error { return nil }), nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var d diary
			err := Group(t.Context(), quiet, func() {}, d.service("a"), tt.last)
			if err == nil || tt.want != nil && !errors.Is(err, tt.want) {
				t.Fatalf("got %v, want an error that wraps %v", err, tt.want)
			}
			if want := []string{"a starts", "a stops"}; !slices.Equal(d.lines, want) {
				t.Errorf("got %v, want %v", d.lines, want)
			}
		})
	}
}

func TestGroupStopsWhileAServiceIsNotReady(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	slow := Service{Name: "slow", Run: func(ctx context.Context, _ func()) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	}}
	never := Service{Name: "never", Run: func(context.Context, func()) error {
		t.Error("a service started although the one before was not ready")
		return nil
	}}
	if err := Group(ctx, quiet, func() { t.Error("the group was never ready") }, slow, never); err != nil {
		t.Fatal(err)
	}
}
