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
	silent  time.Time // since when it is; zero when it is not
	told    bool      // that it is silent, in the log
}

// tellAfter is how long a holder is silent before the log tells: on a busy machine an answer may come too
// late now and then.
const tellAfter = time.Second

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
	now := time.Now()
	stands := relies(asked, now)
	if ctx.Err() == nil {
		r.tell(stands, now, err)
	}
	return stands
}

// tell notes in the log that the holder is silent for long, and that it speaks again.
func (r *right) tell(stands bool, now time.Time, err error) {
	switch {
	case stands:
		if r.told {
			r.log.Info("this server answers for the virtual IP again", "after", now.Sub(r.silent))
		}
		r.silent, r.told = time.Time{}, false
	case r.silent.IsZero():
		r.silent = now
	case !r.told && now.Sub(r.silent) >= tellAfter:
		r.told = true
		r.log.Warn("no majority confirms that this server leads: it is silent about the virtual IP", "error", err)
	}
}

// doubt forgets the last answer: only what is asked from now on counts.
func (r *right) doubt() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked, r.doubted = time.Time{}, time.Now()
}
