package node

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestPace(t *testing.T) {
	const mb = 1 << 20
	for _, c := range []struct {
		what           string
		live, headroom uint64
		busy           bool
		want           int
	}{
		{"idle", 20 * mb, 96 * mb, false, 100},
		{"busy and small", 24 * mb, 96 * mb, true, 400},
		{"busy and next to nothing", 0, 96 * mb, true, 2400},
		{"busy and large", 300 * mb, 96 * mb, true, 100},
		{"busy where the user chose", 24 * mb, 0, true, 100},
	} {
		if got := pace(c.live, c.headroom, c.busy); got != c.want {
			t.Errorf("%s: %d%%, want %d%%", c.what, got, c.want)
		}
	}
	if got := headroomOf(512 * mb); got != 16*mb {
		t.Errorf("a machine of 512 MB spares %d bytes", got)
	}
	if got := headroomOf(64 << 30); got != maxHeadroom {
		t.Errorf("a machine of 64 GB spares %d bytes", got)
	}
}

func TestPacesThatDiffer(t *testing.T) {
	for _, c := range []struct {
		a, b int
		want bool
	}{{100, 100, false}, {100, 105, true}, {400, 100, true}, {400, 380, false}, {400, 300, true}, {400, 400, false}} {
		if differs(c.a, c.b) != c.want {
			t.Errorf("%d and %d: differ %v", c.a, c.b, !c.want)
		}
	}
}

// A process that allocates much and keeps little collects a fraction as often as the runtime would have it.
func TestBusyProcessCollectsSeldom(t *testing.T) {
	t.Setenv("GOGC", "") // what the test was started with is put back at its end
	percent := debug.SetGCPercent(usualPercent)
	defer debug.SetGCPercent(percent)

	const round, size, rounds = 64 << 20, 64 << 10, 24
	churn := func() (collections uint32) {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		var kept [16][]byte
		for i := range rounds * round / size {
			kept[i%len(kept)] = make([]byte, size)
		}
		runtime.KeepAlive(kept)
		runtime.ReadMemStats(&after)
		return after.NumGC - before.NumGC
	}
	usual := churn()

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- releaseMemoryAt(ctx, newPacerOf(maxHeadroom), time.Hour) }()
	churn() // by its end the pace has been found
	paced := churn()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if paced*3 > usual {
		t.Errorf("%d collections at our pace, %d at the usual one", paced, usual)
	}
	if left := debug.SetGCPercent(usualPercent); left != usualPercent {
		t.Errorf("it leaves the pace at %d%%", left)
	}
}

func TestPaceOfTheUserIsKept(t *testing.T) {
	t.Setenv("GOGC", "50")
	if p := newPacer(); p.headroom != 0 {
		t.Errorf("it would have changed the pace, by %d bytes", p.headroom)
	}
}
