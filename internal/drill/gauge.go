package drill

import (
	"context"
	"sync"
	"time"

	"barque.dev/internal/drill/report"
)

// A phase of a step, in order.
type phase int

const (
	calm phase = iota
	struck
	healing
	phases
)

// A gauge follows the acknowledgements that one prober gets, and keeps the longest time without one for
// each phase of a step. It is safe for concurrent use.
type gauge struct {
	mu      sync.Mutex
	last    time.Time
	during  phase // that last was in
	now     phase
	longest [phases]time.Duration
	woken   chan struct{} // closed by the next acknowledgement
}

func newGauge() *gauge { return &gauge{woken: make(chan struct{})} }

// ack takes an acknowledgement.
func (g *gauge) ack(at time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	// What begins before the fault and ends after it is the fault's.
	of := g.during
	if of == calm && g.now != calm {
		of = struck
	}
	if !g.last.IsZero() {
		g.longest[of] = max(g.longest[of], at.Sub(g.last))
	}
	g.last, g.during = at, g.now
	close(g.woken)
	g.woken = make(chan struct{})
}

// begin begins a phase; the first one begins a new step, and forgets all before it.
func (g *gauge) begin(p phase) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.now = p; p == calm {
		g.last, g.during, g.longest = time.Now(), calm, [phases]time.Duration{}
	}
}

// await waits for the next acknowledgement.
func (g *gauge) await(ctx context.Context) error {
	g.mu.Lock()
	woken := g.woken
	g.mu.Unlock()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-woken:
		return nil
	}
}

func (g *gauge) gap() report.Gap {
	g.mu.Lock()
	defer g.mu.Unlock()
	return report.Gap{Calm: g.longest[calm], Struck: g.longest[struck], Healing: g.longest[healing]}
}
