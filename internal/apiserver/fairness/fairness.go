// Package fairness shares a server's capacity among those who ask for it: API Priority and Fairness (KEP-1040).
//
// FlowSchemas sort requests into priority levels, and into flows within them; PriorityLevelConfigurations say which part
// of the server's seats a level has. A request takes a seat, or several if it is expected to be expensive, for as long as
// it runs. When a level has no seat left, its requests wait, each flow in its own few of the level's queues, and are
// served so that every flow gets its fair share: one that floods the server waits behind itself. Levels lend each other
// seats that they don't need. One level is exempt from all of this.
//
// What the objects mean is upstream's (k8s.io/apiserver/pkg/util/flowcontrol), and so are the objects themselves, which
// internal/controllers/flowcontrol keeps. The machinery is not, for three reasons. Upstream's puts every request into a
// queue, goes through all queues of the level several times, and sets some twenty metrics by their labels, which costs
// each request more than a GET takes here altogether: see BenchmarkAdmit and docs/performance.md. It wants to be fed by informers, which
// are a second copy of what the store's image holds; here [Control.Run] reads the image. And its metrics are variables of
// the process, while ours belong to a registry.
//
// A request that finds a seat free takes it under one short lock, without allocating; what counts as fair is the same
// whether anybody waits or not, for the books are kept either way (see level). Requests of components inside the server
// don't come by here.
package fairness

import (
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/store"
)

// Config configures a Control.
type Config struct {
	// Seats is how many requests run at once, those of the exempt level apart.
	Seats int
	// Table finds the table of a kept resource; nil for what is none. The configuration is read from there, and how
	// many objects a list goes through.
	Table func(schema.GroupResource) *store.Table
	// Metrics is where metrics are registered; nil for nowhere.
	Metrics prometheus.Registerer
	// Log may be nil.
	Log *slog.Logger
}

// Control decides which requests run, which wait, and which are turned away. It is safe for concurrent use.
type Control struct {
	cfg       Config
	planner   planner
	estimator estimator
	began     time.Time
	// now is the time that levels reckon with, since began.
	now func() time.Duration

	mu       sync.Mutex // held while the plan changes
	plan     atomic.Pointer[plan]
	balances map[string]balance
	fraction float64
}

// New makes a control that follows the configuration as it is now; Run keeps it up to date.
func New(cfg Config) (*Control, error) {
	if cfg.Seats <= 0 || cfg.Table == nil {
		return nil, errors.New("priority and fairness: Seats and Table are required")
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	c := &Control{cfg: cfg, planner: planner{seats: cfg.Seats, seed: maphash.MakeSeed(), log: cfg.Log}, began: time.Now()}
	c.now = func() time.Duration { return time.Since(c.began) }
	c.estimator.objects = c.objects
	c.replan()
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(newCollector(c)); err != nil {
			return nil, fmt.Errorf("priority and fairness: metrics: %w", err)
		}
	}
	return c, nil
}

// objects is how many there are of a resource.
func (c *Control) objects(gr schema.GroupResource) int {
	t := c.cfg.Table(gr)
	if t == nil {
		return 0
	}
	_, n := t.Changed()
	return n
}

// Admit gets a request a seat, or returns false: then it has to be refused with 429, and t says when it may come again.
// It waits until wait has passed, at most, or ctx ends. query is the request's, as it came. After true, t must be
// released: for a watch, that is when what there was in the beginning has been sent, or the watch ends.
func (c *Control) Admit(ctx context.Context, t *Ticket, info *request.RequestInfo, who user.Info, query string, wait time.Duration) bool {
	f, hash := c.plan.Load().classifier.find(info, who)
	l := f.level
	t.control, t.flow, t.info, t.user = c, f, info, who
	t.estimate = c.estimator.estimate(info, query, int(l.width.Load()))
	if l.exempt {
		t.final, t.linger = 0, 0 // it would hold back nobody
	}
	if l.enter(t, hash, c.now()) != "" {
		t.refused = true
		return false
	}
	if t.decided == nil {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	gone := false
	select {
	case <-t.decided:
		return true
	case <-timer.C:
	case <-ctx.Done():
		gone = errors.Is(ctx.Err(), context.Canceled)
	}
	t.refused = l.abandon(t, gone, c.now())
	return !t.refused
}

// Watching counts a watch, on whose account changes of what it watches are more expensive, until forget is called.
func (c *Control) Watching(info *request.RequestInfo, query string) (forget func()) {
	return c.estimator.watches.add(info, query)
}

// Levels and schemas, as resources.
var (
	levels  = flowcontrolv1.Resource("prioritylevelconfigurations")
	schemas = flowcontrolv1.Resource("flowschemas")
)

// replan follows the configuration as the image has it now.
func (c *Control) replan() {
	configs := read[*flowcontrolv1.PriorityLevelConfiguration](c, levels)
	flows := read[*flowcontrolv1.FlowSchema](c, schemas)
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.planner.plan(configs, flows, c.plan.Load(), c.now())
	c.balances, c.fraction = next.rebalance(c.now())
	c.plan.Store(next)
}

// rebalance lends the seats of levels anew, and forgets levels that are not wanted any more once they are empty.
func (c *Control) rebalance() {
	c.mu.Lock()
	current := c.plan.Load()
	lingering := false
	for name := range current.levels {
		lingering = lingering || !current.wanted[name]
	}
	if !lingering {
		c.balances, c.fraction = current.rebalance(c.now())
	}
	c.mu.Unlock()
	if lingering {
		c.replan()
	}
}

// read returns the objects of a resource that the image has. They are shared.
func read[T any](c *Control, gr schema.GroupResource) []T {
	table := c.cfg.Table(gr)
	if table == nil {
		return nil
	}
	var out []T
	table.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
		obj, err := e.Object()
		if err != nil {
			c.cfg.Log.Warn("an object can't be read and is passed over", "resource", gr.String(), "name", e.Key().Name, "error", err)
			return true
		}
		if typed, ok := obj.(T); ok {
			out = append(out, typed)
		}
		return true
	})
	return out
}

// Run follows the configuration, and lends seats between levels, until ctx ends.
func (c *Control) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	changed := make(chan struct{}, 1)
	var followers sync.WaitGroup
	defer followers.Wait()
	failed := make(chan error, 2)
	for _, gr := range []schema.GroupResource{levels, schemas} {
		followers.Go(func() {
			failed <- c.follow(ctx, gr, changed)
			cancel()
		})
	}
	tick := time.NewTicker(rebalancePeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return <-failed
		case <-changed:
			c.replan()
		case <-tick.C:
			c.rebalance()
		}
	}
}

// follow tells of changes to a resource.
func (c *Control) follow(ctx context.Context, gr schema.GroupResource, changed chan<- struct{}) error {
	tell := func() {
		select {
		case changed <- struct{}{}:
		default: // it is known already
		}
	}
	for {
		table := c.cfg.Table(gr)
		if table == nil {
			return fmt.Errorf("priority and fairness: %s are not kept", gr)
		}
		cursor, err := table.Watch(table.Snapshot().Revision())
		if err != nil && !errors.Is(err, store.ErrCompacted) {
			return fmt.Errorf("priority and fairness: watch %s: %w", gr, err)
		}
		tell()
		if err == nil {
			cursor.EventsOnly()
		}
		for err == nil {
			if _, _, err = cursor.Next(ctx); err == nil {
				tell()
			}
		}
		if cursor != nil {
			cursor.Close()
		}
		switch {
		case ctx.Err() != nil, errors.Is(err, store.ErrClosed):
			return nil // the server stops
		case !errors.Is(err, store.ErrCompacted):
			return fmt.Errorf("priority and fairness: watch %s: %w", gr, err)
		}
	}
}
