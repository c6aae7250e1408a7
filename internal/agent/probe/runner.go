package probe

import (
	"context"
	"math/rand/v2"
	"time"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/plan"
)

// Kind is what a probe's verdict is about.
type Kind string

// The kinds of probes, as events name them.
const (
	Startup   Kind = "Startup"
	Liveness  Kind = "Liveness"
	Readiness Kind = "Readiness"
)

// Counter turns single outcomes into a verdict: it takes as many of a kind in a row as the probe's
// thresholds say. It holds no clock.
type Counter struct {
	success, failure int32 // thresholds
	last             Outcome
	run              int32
	verdict          plan.Result
}

// NewCounter returns a counter with the verdict to begin with.
func NewCounter(p *corev1.Probe, verdict plan.Result) *Counter {
	return &Counter{success: max(p.SuccessThreshold, 1), failure: max(p.FailureThreshold, 1), verdict: verdict}
}

// Add counts an outcome and returns the verdict, and whether this outcome changed it.
func (c *Counter) Add(o Outcome) (plan.Result, bool) {
	if o == Unknown {
		return c.verdict, false
	}
	if o == c.last {
		c.run++
	} else {
		c.last, c.run = o, 1
	}
	next := c.verdict
	switch {
	case o == Failure && c.run >= c.failure:
		next = plan.Failure
	case o == Success && c.run >= c.success:
		next = plan.Success
	}
	changed := next != c.verdict
	c.verdict = next
	return next, changed
}

// Runner probes one container in one way.
type Runner struct {
	Kind   Kind
	Probe  *corev1.Probe
	Target Target
	// StartedAt is when the container was started: the initial delay counts from there.
	StartedAt time.Time
	// Begin, if set, is closed when the probe may begin: once the startup probe has succeeded.
	Begin <-chan struct{}
	// Initial is the verdict before the first answer.
	Initial plan.Result
	// Verdict is called when the verdict changed, Answered for each outcome with the time it took,
	// Failed for each failure, with its text.
	Verdict  func(plan.Result)
	Answered func(o Outcome, took time.Duration)
	Failed   func(text string)
}

// Run probes until ctx ends, or until the verdict needs no more asking: a startup probe ends with
// its first verdict, a liveness probe when it failed, since the container is then stopped.
func (r Runner) Run(ctx context.Context) {
	if r.Begin != nil {
		select {
		case <-r.Begin:
		case <-ctx.Done():
			return
		}
	}
	period := time.Duration(max(r.Probe.PeriodSeconds, 1)) * time.Second
	// After a restart of the agent all probes of a node would begin at once.
	first := time.Until(r.StartedAt.Add(time.Duration(r.Probe.InitialDelaySeconds) * time.Second))
	if first <= 0 && time.Since(r.StartedAt) > period {
		first = rand.N(period)
	}
	timer := time.NewTimer(max(first, 0))
	defer timer.Stop()
	counter := NewCounter(r.Probe, r.Initial)
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		began := time.Now()
		outcome, text := Do(ctx, r.Probe, r.Target)
		if ctx.Err() != nil {
			return
		}
		if r.Answered != nil {
			r.Answered(outcome, time.Since(began))
		}
		if r.Failed != nil && (outcome == Failure || text != "") {
			r.Failed(text)
		}
		verdict, changed := counter.Add(outcome)
		if changed {
			r.Verdict(verdict)
			if r.Kind == Startup || r.Kind == Liveness && verdict == plan.Failure {
				return
			}
		}
		timer.Reset(max(period-time.Since(began), 0))
	}
}
