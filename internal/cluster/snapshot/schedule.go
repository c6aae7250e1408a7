package snapshot

import (
	"context"
	"slices"
	"sync"
	"time"

	"barque.dev/internal/run"
)

const (
	// look is how often a keeper looks whether it is its turn: clocks jump.
	look = 20 * time.Second
	// firstAfter is when a server that has no snapshot yet takes the first.
	firstAfter = 10 * time.Minute
	// retryAfter is how long after a failure it tries again.
	retryAfter = 10 * time.Minute
)

// Run takes the scheduled snapshots until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.removeUnfinished()
	if k.cfg.Every == 0 {
		<-ctx.Done()
		return nil
	}
	var copying sync.WaitGroup
	defer copying.Wait()
	if k.cfg.Remote != nil {
		copying.Go(func() { k.followRemote(ctx) })
	}
	plan := plan{began: k.cfg.Now()}
	for ctx.Err() == nil {
		if k.due(&plan) {
			k.takeScheduled(ctx, &plan)
		}
		run.Pause(ctx, min(look, k.cfg.Every/4))
	}
	return nil
}

// plan is what a keeper remembers of its schedule.
type plan struct {
	began  time.Time
	failed time.Time // the last attempt; zero when that succeeded
	last   time.Time // the last one that was taken since
}

// due tells whether a snapshot is to be taken now.
func (k *Keeper) due(p *plan) bool {
	now := k.cfg.Now()
	own, err := k.own()
	if err != nil {
		k.tell(err)
		return false
	}
	var last time.Time
	for _, i := range slices.Concat(own, k.lastThere()) {
		if i.Time.After(last) {
			last = i.Time
		}
	}
	if last.Before(p.last) {
		last = p.last // it was copied, and is not here any more
	}
	servers := slices.Sorted(slices.Values(k.cfg.Servers()))
	rank := max(0, slices.Index(servers, k.cfg.Server))
	return isDue(now, last, p.began, p.failed, k.cfg.Every, rank, max(1, len(servers)))
}

// isDue decides whether a snapshot is to be taken. last is when the newest was, zero for never. A clock that went back
// has left times that are to come: they count as now.
func isDue(now, last, began, failed time.Time, every time.Duration, rank, of int) bool {
	if failed = earlier(failed, now); !failed.IsZero() && now.Sub(failed) < min(retryAfter, every) {
		return false
	}
	if last.IsZero() {
		return now.Sub(earlier(began, now)) >= min(firstAfter, every)
	}
	return !now.Before(turn(earlier(last, now), every, rank, of))
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}

func (k *Keeper) takeScheduled(ctx context.Context, p *plan) {
	info, err := k.keep(ctx, true)
	if err == nil {
		p.last = info.Time
		select {
		case k.another <- struct{}{}:
		default:
		}
		err = k.prune()
	}
	if ctx.Err() != nil {
		return
	}
	p.failed = time.Time{}
	if err != nil {
		p.failed = k.cfg.Now()
	}
	k.tell(err)
}

// tell notes how the last attempt ended.
func (k *Keeper) tell(err error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.problem = ""
	if err != nil {
		k.problem = err.Error()
		k.metrics.failures.Inc()
		k.log.Warn("no snapshot was taken", "dir", k.cfg.Dir, "error", err)
	}
}

// Problem says why the last scheduled snapshot was not taken; "" if it was.
func (k *Keeper) Problem() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.problem
}
