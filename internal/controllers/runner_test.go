package controllers

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/store"
)

// watcher is a client.Watcher whose events the test makes.
type watcher struct {
	mu      sync.Mutex
	follows int
	hold    chan struct{} // closed: the initial objects have been read
	events  chan barqueclient.Event
}

func newWatcher() *watcher {
	w := &watcher{hold: make(chan struct{}), events: make(chan barqueclient.Event)}
	close(w.hold)
	return w
}

func (w *watcher) Follow(ctx context.Context, _ client.Object, synced func(), handle func(barqueclient.Event)) error {
	w.mu.Lock()
	w.follows++
	w.mu.Unlock()
	handle(barqueclient.Event{New: named("first")})
	select {
	case <-w.hold:
	case <-ctx.Done():
		return ctx.Err()
	}
	synced()
	for {
		select {
		case e := <-w.events:
			handle(e)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func named(name string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
}

func podWatch() []Watch { return []Watch{{Kind: &corev1.Pod{}, Requests: kit.Self}} }

// start runs the controllers until the test ends, and checks that nothing is left then.
func start(t *testing.T, w *watcher, controllers ...Controller) (ready <-chan struct{}, stop func() error) {
	t.Helper()
	r, err := NewRunner(RunnerConfig{Watcher: w, Controllers: controllers, Metrics: prometheus.NewRegistry(), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	isReady, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(ctx, func() { close(isReady) }) }()
	var once sync.Once
	var result error
	stop = func() error {
		once.Do(func() { cancel(); result = <-done })
		return result
	}
	t.Cleanup(func() {
		_ = stop()
		goleak.VerifyNone(t)
	})
	return isReady, stop
}

func receive[T any](t *testing.T, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(10 * time.Second):
		t.Fatal("nothing came")
		panic("unreachable")
	}
}

func TestRunnerSharesOneFollowAndIdentifiesControllers(t *testing.T) {
	w := newWatcher()
	got := make(chan string, 10)
	reconciler := func(ctx context.Context, r reconcile.Request) (reconcile.Result, error) {
		u, _ := request.UserFrom(ctx)
		got <- u.GetName() + " " + r.Name
		return reconcile.Result{}, nil
	}
	ready, stop := start(t, w,
		Controller{Name: "a", Watches: podWatch(), Reconcile: reconciler},
		Controller{Name: "b", Account: "bee", Watches: podWatch(), Reconcile: reconciler})
	receive(t, ready)
	seen := map[string]bool{receive(t, got): true, receive(t, got): true}
	if !seen["system:serviceaccount:kube-system:a-controller first"] || !seen["system:serviceaccount:kube-system:bee first"] {
		t.Errorf("reconciled: %v", seen)
	}
	w.events <- barqueclient.Event{New: named("second")}
	receive(t, got)
	receive(t, got)
	if err := stop(); err != nil {
		t.Error(err)
	}
	if w.follows != 1 {
		t.Errorf("the kind was followed %d times", w.follows)
	}
}

func TestRunnerWaitsForTheFirstRead(t *testing.T) {
	w := newWatcher()
	w.hold = make(chan struct{})
	got := make(chan string, 1)
	ready, _ := start(t, w, Controller{Name: "a", Watches: podWatch(), Reconcile: func(_ context.Context, r reconcile.Request) (reconcile.Result, error) {
		got <- r.Name
		return reconcile.Result{}, nil
	}})
	select {
	case name := <-got:
		t.Fatalf("%s was reconciled before everything was read", name)
	case <-ready:
		t.Fatal("ready before everything was read")
	case <-time.After(50 * time.Millisecond): // shows only that nothing comes early
	}
	close(w.hold)
	receive(t, ready)
	receive(t, got)
}

func TestRunnerRetries(t *testing.T) {
	for name, outcome := range map[string]func() (reconcile.Result, error){
		"error":   func() (reconcile.Result, error) { return reconcile.Result{}, errors.New("broken") },
		"panic":   func() (reconcile.Result, error) { panic("broken") },
		"requeue": func() (reconcile.Result, error) { return reconcile.Result{RequeueAfter: time.Millisecond}, nil },
	} {
		t.Run(name, func(t *testing.T) {
			got := make(chan struct{}, 100)
			_, stop := start(t, newWatcher(), Controller{Name: "a", Watches: podWatch(), Reconcile: func(context.Context, reconcile.Request) (reconcile.Result, error) {
				got <- struct{}{}
				if len(got) > 3 {
					return reconcile.Result{}, nil
				}
				return outcome()
			}})
			receive(t, got)
			receive(t, got)
			receive(t, got)
			if err := stop(); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestRunnerDropsWhatTheFenceRefused(t *testing.T) {
	w := newWatcher()
	got := make(chan string, 10)
	ready, _ := start(t, w, Controller{Name: "a", Workers: 1, Watches: podWatch(), Reconcile: func(_ context.Context, r reconcile.Request) (reconcile.Result, error) {
		got <- r.Name
		return reconcile.Result{}, fmt.Errorf("update: %w", store.ErrFenced)
	}})
	receive(t, ready)
	receive(t, got)
	for i := range 5 {
		w.events <- barqueclient.Event{New: named(fmt.Sprint(i))}
		if name := receive(t, got); name != fmt.Sprint(i) {
			t.Fatalf("%s came again", name)
		}
	}
}

func TestRunnerRunsSourcesAndTerms(t *testing.T) {
	w := newWatcher()
	got := make(chan string, 10)
	r, err := NewRunner(RunnerConfig{Watcher: w, Log: slog.New(slog.DiscardHandler), Metrics: prometheus.NewRegistry(), Controllers: []Controller{{
		Name: "timer",
		Source: func(ctx context.Context, enqueue func(reconcile.Request)) error {
			enqueue(kit.RequestFor(named("tick")))
			<-ctx.Done()
			return nil
		},
		Reconcile: func(_ context.Context, r reconcile.Request) (reconcile.Result, error) {
			got <- r.Name
			return reconcile.Result{}, nil
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	defer goleak.VerifyNone(t)
	for range 2 {
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- r.Run(ctx, func() {}) }()
		if name := receive(t, got); name != "tick" {
			t.Errorf("request %s", name)
		}
		cancel()
		if err := receive(t, done); err != nil {
			t.Error(err)
		}
	}
}

func TestRunnerEndsWhenAFollowFails(t *testing.T) {
	r, err := NewRunner(RunnerConfig{Watcher: brokenWatcher{}, Log: slog.New(slog.DiscardHandler), Controllers: []Controller{{
		Name: "a", Watches: podWatch(), Reconcile: func(context.Context, reconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{}, nil
		},
	}}})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.Run(t.Context(), func() {}); !errors.Is(err, errBroken) {
		t.Errorf("error %v", err)
	}
}

var errBroken = errors.New("broken watch")

type brokenWatcher struct{}

func (brokenWatcher) Follow(context.Context, client.Object, func(), func(barqueclient.Event)) error {
	return errBroken
}

func TestNewRunnerRefusesDoubles(t *testing.T) {
	c := Controller{Name: "a", Reconcile: func(context.Context, reconcile.Request) (reconcile.Result, error) { return reconcile.Result{}, nil }}
	if _, err := NewRunner(RunnerConfig{Controllers: []Controller{c, c}}); err == nil {
		t.Error("two controllers of one name were taken")
	}
}
