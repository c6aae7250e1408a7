package vip

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// right is what a holder knows of its right to speak for the address. It is safe for concurrent
// use; who comes while another asks waits for the same answer.
type right struct {
	confirm func(ctx context.Context, since time.Time) (asked time.Time, err error)
	log     *slog.Logger

	mu      sync.Mutex
	asked   time.Time // the question behind the last answer; zero for none
	doubted time.Time // answers to what was asked before count no longer
	silent  bool      // told so in the log
}

// relies is the decision: whether an answer to what was asked then still holds now.
func relies(asked, now time.Time) bool {
	return !asked.IsZero() && now.Sub(asked) < Good
}

// stands tells whether a frame may be sent now, and asks a majority if need be. An answer that
// takes too long is none.
func (r *right) stands(ctx context.Context) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if relies(r.asked, time.Now()) {
		return true
	}
	asking, cancel := context.WithTimeout(ctx, Good)
	defer cancel()
	since := time.Now().Add(-Good)
	if since.Before(r.doubted) {
		since = r.doubted
	}
	asked, err := r.confirm(asking, since)
	if err != nil || asked.Before(since) {
		asked = time.Time{}
	}
	r.asked = asked
	stands := relies(asked, time.Now())
	if silent := !stands && ctx.Err() == nil; silent != r.silent {
		r.silent = silent
		if silent {
			r.log.Warn("no majority confirms that this server leads: it is silent about the virtual IP", "error", err)
		} else {
			r.log.Info("this server answers for the virtual IP again")
		}
	}
	return stands
}

// doubt forgets the last answer: only what is asked from now on counts.
func (r *right) doubt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked, r.doubted = time.Time{}, time.Now()
}
