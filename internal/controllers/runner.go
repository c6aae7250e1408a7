package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"reflect"
	"runtime/debug"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
)

const (
	defaultWorkers = 4
	// A failing request comes again after 5 ms, 10 ms, … at most a minute.
	minBackoff = 5 * time.Millisecond
	// quietRetries are not worth a warning, some 2.5 s together: much passes by itself, such as
	// a role that another controller is about to fill.
	quietRetries = 9
	maxBackoff   = time.Minute
)

// RunnerConfig is what a Runner needs.
type RunnerConfig struct {
	Watcher     barqueclient.Watcher
	Controllers []Controller
	// Metrics is where the queues' metrics are registered, under upstream's names; nil for none.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// A Runner feeds controllers. It may run several times, one after the other: once for each term
// of leadership.
type Runner struct {
	cfg     RunnerConfig
	metrics *metrics
}

// NewRunner checks the controllers and registers the metrics.
func NewRunner(cfg RunnerConfig) (*Runner, error) {
	seen := map[string]bool{}
	for _, c := range cfg.Controllers {
		if c.Name == "" || c.Reconcile == nil || seen[c.Name] {
			return nil, fmt.Errorf("controller %q: lacks a name or a reconciler, or is listed twice", c.Name)
		}
		seen[c.Name] = true
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	return &Runner{cfg: cfg, metrics: m}, nil
}

// Run follows each kind once for all controllers, starts the workers of a controller when its
// kinds have been read in full, calls ready when all have started, and goes on until ctx ends.
// Writes carry ctx's fence; one that is refused because of it ends quietly, for the term is over.
func (r *Runner) Run(ctx context.Context, ready func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	defer wg.Wait()
	fail := func(err error) {
		if ctx.Err() == nil {
			cancel(err)
		}
	}

	loops := make([]*loop, len(r.cfg.Controllers))
	for i, c := range r.cfg.Controllers {
		loops[i] = r.newLoop(c)
		defer loops[i].queue.ShutDown()
	}
	feeds := groupByKind(loops)
	for _, f := range feeds {
		wg.Go(func() {
			err := r.cfg.Watcher.Follow(ctx, f.kind, f.markSynced, f.handle)
			if ctx.Err() == nil {
				fail(fmt.Errorf("follow %T: stopped: %w", f.kind, errOrUnexpected(err)))
			}
		})
	}
	var started sync.WaitGroup
	for _, l := range loops {
		started.Add(1)
		wg.Go(func() { l.run(ctx, started.Done, fail) })
	}
	allStarted := make(chan struct{})
	wg.Go(func() { started.Wait(); close(allStarted) })
	select {
	case <-allStarted:
		if ctx.Err() == nil {
			ready()
		}
	case <-ctx.Done():
	}
	<-ctx.Done()
	for _, l := range loops {
		l.queue.ShutDown()
	}
	wg.Wait()
	if cause := context.Cause(ctx); !errors.Is(cause, context.Canceled) && !errors.Is(cause, context.DeadlineExceeded) {
		return fmt.Errorf("controllers: %w", cause)
	}
	return nil
}

func errOrUnexpected(err error) error {
	if err == nil {
		return errors.New("ended unexpectedly")
	}
	return err
}

// A feed is one kind and who wants it.
type feed struct {
	kind   client.Object
	takers []taker
	synced chan struct{}
	once   sync.Once
}

type taker struct {
	requests func(barqueclient.Event) []reconcile.Request
	loop     *loop
}

func (f *feed) markSynced() { f.once.Do(func() { close(f.synced) }) }

func (f *feed) handle(e barqueclient.Event) {
	for _, t := range f.takers {
		t.loop.contain(reconcile.Request{}, func() error {
			for _, request := range t.requests(e) {
				t.loop.queue.Add(request)
			}
			return nil
		})
	}
}

// groupByKind makes one feed per kind and tells each loop which feeds it waits for.
func groupByKind(loops []*loop) []*feed {
	type kindKey struct {
		goType reflect.Type
		gvk    string
	}
	byKind := map[kindKey]*feed{}
	var feeds []*feed
	for _, l := range loops {
		for _, w := range l.controller.Watches {
			key := kindKey{reflect.TypeOf(w.Kind), w.Kind.GetObjectKind().GroupVersionKind().String()}
			f := byKind[key]
			if f == nil {
				f = &feed{kind: w.Kind, synced: make(chan struct{})}
				byKind[key] = f
				feeds = append(feeds, f)
			}
			f.takers = append(f.takers, taker{w.Requests, l})
			l.feeds = append(l.feeds, f)
		}
	}
	return feeds
}

// A loop is one controller during one term.
type loop struct {
	controller Controller
	queue      workqueue.TypedRateLimitingInterface[reconcile.Request]
	feeds      []*feed
	metrics    *metrics
	log        *slog.Logger
}

func (r *Runner) newLoop(c Controller) *loop {
	limiter := workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](minBackoff, maxBackoff)
	qc := workqueue.TypedRateLimitingQueueConfig[reconcile.Request]{Name: c.Name}
	if r.metrics != nil {
		qc.MetricsProvider = r.metrics
	}
	return &loop{
		controller: c,
		queue:      workqueue.NewTypedRateLimitingQueueWithConfig(limiter, qc),
		metrics:    r.metrics,
		log:        r.cfg.Log.With("controller", c.Name),
	}
}

// run waits for the feeds, then works until the queue is shut down, which it does itself when
// ctx ends.
func (l *loop) run(ctx context.Context, started func(), fail func(error)) {
	ctx = l.identify(ctx)
	for _, f := range l.feeds {
		select {
		case <-f.synced:
		case <-ctx.Done():
			started()
			return
		}
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	workers := l.controller.Workers
	if workers == 0 {
		workers = defaultWorkers
	}
	for range workers {
		wg.Go(func() {
			for l.next(ctx) {
			}
		})
	}
	if l.controller.Source != nil {
		wg.Go(func() {
			err := l.controller.Source(ctx, l.queue.Add)
			if ctx.Err() == nil {
				fail(fmt.Errorf("%s: source: %w", l.controller.Name, errOrUnexpected(err)))
			}
		})
	}
	started()
	<-ctx.Done()
	l.queue.ShutDown()
}

// identify makes the controller's service account the user of its writes.
func (l *loop) identify(ctx context.Context) context.Context {
	account := l.controller.Account
	if account == "" {
		account = l.controller.Name + "-controller"
	}
	return request.WithUser(ctx, serviceaccount.UserInfo("kube-system", account, ""))
}

// next handles one request; false when the queue has been shut down.
func (l *loop) next(ctx context.Context) bool {
	req, shutdown := l.queue.Get()
	if shutdown {
		return false
	}
	defer l.queue.Done(req)
	if ctx.Err() != nil {
		return false
	}
	var result reconcile.Result
	err := l.contain(req, func() (err error) {
		result, err = l.controller.Reconcile(ctx, req)
		return err
	})
	switch {
	case err == nil && result.RequeueAfter > 0:
		l.queue.Forget(req)
		l.queue.AddAfter(req, result.RequeueAfter)
	case err == nil:
		l.queue.Forget(req)
	case ctx.Err() != nil, errors.Is(err, store.ErrFenced):
		l.log.Debug("term is over", "namespace", req.Namespace, "name", req.Name, "error", err)
	case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause):
		// The namespace takes nothing any more, and its end removes the object too.
		l.queue.Forget(req)
	case errors.Is(err, reconcile.TerminalError(nil)):
		l.queue.Forget(req)
		l.metrics.reconcileError(l.controller.Name)
		l.log.Error("reconcile", "namespace", req.Namespace, "name", req.Name, "error", err)
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		l.log.Debug("reconcile: conflict", "namespace", req.Namespace, "name", req.Name, "error", err)
		l.queue.AddRateLimited(req)
	default:
		l.metrics.reconcileError(l.controller.Name)
		level, retries := slog.LevelDebug, l.queue.NumRequeues(req)
		if retries >= quietRetries {
			level = slog.LevelWarn
		}
		l.log.Log(ctx, level, "reconcile", "namespace", req.Namespace, "name", req.Name, "error", err, "retries", retries)
		l.queue.AddRateLimited(req)
	}
	return true
}

// contain calls f and turns a panic into an error: one controller's bug must not end the server.
func (l *loop) contain(req reconcile.Request, f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			l.metrics.panicked(l.controller.Name)
			l.log.Error("panic", "namespace", req.Namespace, "name", req.Name, "panic", p, "stack", string(debug.Stack()))
			err = fmt.Errorf("panic: %v", p)
		}
	}()
	return f()
}
