package run_test

import (
	"context"
	"testing"
	"time"

	"barque.dev/internal/run"
)

func TestPause(t *testing.T) {
	began := time.Now()
	if !run.Pause(t.Context(), 10*time.Millisecond) || time.Since(began) < 10*time.Millisecond {
		t.Errorf("it ended after %v", time.Since(began))
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(time.Millisecond, cancel)
	if run.Pause(ctx, time.Hour) {
		t.Error("it did not tell that its context ended")
	}
}
