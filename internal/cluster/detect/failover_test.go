package detect_test

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"

	"barque.dev/internal/testkit"
)

// writer creates one object after the other through whichever server answers first: it asks the
// next server when one hasn't answered within hedge.
type writer struct {
	m     *machines
	name  string
	lines []*line

	mu    sync.Mutex
	acked []string
	times []time.Time
}

const (
	hedge      = 40 * time.Millisecond
	lineAnswer = 3 * time.Second
)

// line is the way to one server, which has one question under way.
type line struct {
	busy    sync.Mutex
	session *session
}

var errBusy = errors.New("busy")

func (l *line) create(m *machines, i int, name string) error {
	if !l.busy.TryLock() {
		return errBusy
	}
	defer l.busy.Unlock()
	if l.session == nil {
		s, err := m.dial(i, lineAnswer)
		if err != nil {
			return err
		}
		l.session = s
	}
	answer, err := l.session.ask("create "+name, lineAnswer)
	if err != nil {
		l.session.conn.Close()
		l.session = nil
		return err
	}
	if answer != "ok" {
		return errors.New(answer)
	}
	return nil
}

// run writes until ctx ends.
func (w *writer) run(ctx context.Context) {
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		for _, l := range w.lines {
			if l.session != nil {
				l.session.conn.Close()
			}
		}
	}()
	for range w.m.children {
		w.lines = append(w.lines, &line{})
	}
	first := 0
	for n := 0; ctx.Err() == nil; n++ {
		name := fmt.Sprintf("%s-%d", w.name, n)
		type result struct {
			server int
			err    error
		}
		results := make(chan result, 1000)
		ask := func(i int) {
			wg.Go(func() { results <- result{i, w.lines[i].create(w.m, i, name)} })
		}
		ask(first)
		next := first
		for done := false; !done && ctx.Err() == nil; {
			select {
			case r := <-results:
				if r.err == nil {
					first, done = r.server, true
				} else if len(results) == 0 {
					<-time.After(time.Millisecond) // a client's pause before it tries again
					next = (next + 1) % len(w.lines)
					ask(next)
				}
			case <-time.After(hedge):
				next = (next + 1) % len(w.lines)
				ask(next)
			}
			if done {
				w.mu.Lock()
				w.acked = append(w.acked, name)
				w.times = append(w.times, time.Now())
				w.mu.Unlock()
			}
		}
	}
}

func (w *writer) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked)
}

// gap is the longest time without an acknowledged write around the moment at.
func (w *writer) gap(at time.Time) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	longest := time.Duration(0)
	for i := 1; i < len(w.times); i++ {
		if w.times[i].After(at) {
			longest = max(longest, w.times[i].Sub(w.times[i-1]))
		}
	}
	return longest
}

// through runs a writer around a fault, until writes succeed again, and returns the gap.
func (m *machines) through(name string, fault func()) (*writer, time.Duration) {
	m.tb.Helper()
	w := &writer{m: m, name: name}
	ctx, cancel := context.WithCancel(m.tb.Context())
	done := make(chan struct{})
	go func() { defer close(done); w.run(ctx) }()
	defer func() { cancel(); <-done }()
	more := func(n int) {
		m.tb.Helper()
		target := w.count() + n
		testkit.Eventually(m.tb, patience, name+": writes succeed", testkit.Holds(func() bool { return w.count() >= target }))
	}
	more(20)
	at := time.Now()
	fault()
	more(20)
	return w, w.gap(at)
}

// holds checks that every server has every acknowledged write.
func (m *machines) holds(w *writer) {
	m.tb.Helper()
	for i := range m.children {
		answer, err := m.askOnce(i, "read")
		if err != nil || !strings.HasPrefix(answer, "ok") {
			m.tb.Fatalf("read from %d: %s, %v", i, answer, err)
		}
		have := map[string]bool{}
		for _, name := range strings.Fields(answer)[1:] {
			have[name] = true
		}
		for _, name := range w.acked {
			if !have[name] {
				m.tb.Errorf("server %d lost the acknowledged write %s", i, name)
			}
		}
	}
}

// faults are what may happen to the leader, and how it is mended.
var faults = map[string]struct {
	strike, mend func(m *machines, i int)
}{
	"kill": {(*machines).kill, (*machines).start},
	"cut":  {func(m *machines, i int) { m.plug(i, false) }, func(m *machines, i int) { m.plug(i, true) }},
}

func TestNoAcknowledgedWriteIsLost(t *testing.T) {
	m := newMachines(t, nil)
	for name, fault := range faults {
		for n := range 2 {
			leader := m.settled()
			w, gap := m.through(fmt.Sprintf("%s%d", name, n), func() { fault.strike(m, leader) })
			t.Logf("%s: no write for %v", name, gap)
			fault.mend(m, leader)
			m.settled()
			m.holds(w)
		}
	}
}

// BenchmarkFailover measures how long a client that hedges sees no acknowledged write. One
// operation is one fault and its mending. Three processes and their client share the machine.
func BenchmarkFailover(b *testing.B) {
	for name, fault := range faults {
		for _, detect := range []bool{true, false} {
			b.Run(fmt.Sprintf("%s/detector=%v", name, detect), func(b *testing.B) {
				m := newMachines(b, func(cfg *childConfig) { cfg.Detect = detect })
				var gaps []time.Duration
				b.ResetTimer()
				for n := range b.N {
					leader := m.settled()
					w, gap := m.through(fmt.Sprint(n), func() { fault.strike(m, leader) })
					gaps = append(gaps, gap)
					fault.mend(m, leader)
					m.settled()
					m.holds(w)
				}
				sort.Slice(gaps, func(i, j int) bool { return gaps[i] < gaps[j] })
				ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
				b.ReportMetric(ms(gaps[len(gaps)/2]), "p50-ms")
				b.ReportMetric(ms(gaps[len(gaps)*9/10]), "p90-ms")
				b.ReportMetric(ms(gaps[len(gaps)-1]), "worst-ms")
			})
		}
	}
}
