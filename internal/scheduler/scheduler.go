package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
)

// booksAge is after how long sums that no decision needed are forgotten, or up to twice that.
const booksAge = time.Minute

// bindings is how many pods are being bound at once.
const bindings = 64

// Config is what a Scheduler needs.
type Config struct {
	// Client reads, writes and follows the API as system:kube-scheduler.
	Client barqueclient.Client
	// Recorder writes the events that pods show.
	Recorder record.EventRecorder
	// Name is the spec.schedulerName that this one serves; by default "default-scheduler".
	Name string
	// Metrics may be nil.
	Metrics *Metrics
	Log     *slog.Logger
}

// Scheduler is the loop around Decide.
type Scheduler struct {
	cfg   Config
	queue *queue

	deciding sync.Mutex // taken before mu
	books    *Books

	mu      sync.Mutex
	cluster *Cluster
	budgets []Budget
	start   int // where the next decision's search starts
}

// New makes a scheduler; it does nothing until Run.
func New(cfg Config) *Scheduler {
	if cfg.Name == "" {
		cfg.Name = corev1.DefaultSchedulerName
	}
	return &Scheduler{cfg: cfg, queue: newQueue(time.Now), books: NewBooks(), cluster: NewCluster()}
}

// Run schedules until ctx ends. A Scheduler is run once.
func (s *Scheduler) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer s.cfg.Metrics.follow(s.queue)()
	var followers, binders sync.WaitGroup
	follow := func(kind client.Object, synced func(), handle func(barqueclient.Event)) {
		followers.Go(func() {
			if err := s.cfg.Client.Follow(ctx, kind, synced, handle); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("follow %T: %w", kind, err))
			}
		})
	}
	var exist []chan struct{}
	for _, f := range []struct {
		kind   client.Object
		handle func(barqueclient.Event)
	}{
		{&policyv1.PodDisruptionBudget{}, s.budgetChanged},
		{&corev1.Namespace{}, s.namespaceChanged},
		{&corev1.Node{}, s.nodeChanged},
		{&corev1.Pod{}, s.podChanged},
	} {
		synced := make(chan struct{})
		exist = append(exist, synced)
		follow(f.kind, func() { close(synced) }, f.handle)
	}
	for _, synced := range exist {
		select {
		case <-synced:
		case <-ctx.Done():
		}
	}
	followers.Go(func() { s.clearBooks(ctx) })
	slots := make(chan struct{}, bindings)
	for {
		p, err := s.queue.Next(ctx)
		if err != nil {
			break
		}
		s.schedule(ctx, p, func(bind func()) {
			slots <- struct{}{}
			binders.Go(func() { bind(); <-slots })
		})
	}
	binders.Wait()
	followers.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// clearBooks forgets, now and then, what no decision needs.
func (s *Scheduler) clearBooks(ctx context.Context) {
	tick := time.NewTicker(booksAge)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.deciding.Lock()
		s.books.clear()
		s.deciding.Unlock()
	}
}

// schedule decides on one pod; dispatch runs what has to be told to the API beside the next decision.
func (s *Scheduler) schedule(ctx context.Context, p *Pod, dispatch func(tell func())) {
	s.deciding.Lock()
	defer s.deciding.Unlock()
	s.mu.Lock()
	started := time.Now()
	snapshot := s.cluster.Snapshot()
	d := Decide(p, snapshot, s.books, s.start, rand.IntN)
	s.cfg.Metrics.decided(time.Since(started))
	s.start = d.Next
	if d.Node != "" {
		// Taken for granted until the API says otherwise, so that the next decision knows.
		s.cluster.SetPod(p, d.Node)
	}
	budgets := s.budgets
	s.mu.Unlock()
	if d.Node != "" {
		dispatch(func() { s.bind(ctx, p, d.Node, started) })
		return
	}
	message, room := d.Message(), Preemption{}
	if d.Total > 0 {
		room = Preempt(p, snapshot, s.books, d, budgets, rand.IntN(d.Total), started)
		s.cfg.Metrics.preempts(len(room.Victims))
		message += " " + room.Message
	}
	s.cfg.Log.Debug("pod fits nowhere", "namespace", p.Namespace, "pod", p.Name, "reason", message)
	s.nominate(p, room)
	dispatch(func() { s.makeRoom(ctx, p, room, message) })
	s.cfg.Metrics.ended(resultUnschedulable, s.cfg.Name, started)
}

// bind tells the API of a decision on an attempt that started then.
func (s *Scheduler) bind(ctx context.Context, p *Pod, node string, started time.Time) {
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: p.Namespace, Name: p.Name, UID: p.UID},
		Target:     corev1.ObjectReference{Kind: "Node", Name: node},
	}
	err := s.cfg.Client.SubResource("binding").Create(ctx, p.Pod.DeepCopy(), binding)
	if err == nil {
		s.queue.Remove(p.UID)
		s.cfg.Metrics.ended(resultScheduled, s.cfg.Name, started)
		s.cfg.Recorder.Eventf(p.Pod, corev1.EventTypeNormal, "Scheduled", "Successfully assigned %s/%s to %s", p.Namespace, p.Name, node)
		return
	}
	s.mu.Lock()
	// Only the assumption is undone: a watch may have put the pod on a node meanwhile.
	if s.cluster.holds(p) {
		s.cluster.RemovePod(p.UID)
		s.cluster.Nominate(p)
	}
	s.mu.Unlock()
	switch {
	case ctx.Err() != nil, errors.Is(err, store.ErrFenced):
	case apierrors.IsNotFound(err):
		s.queue.Remove(p.UID)
		s.renounce(p.UID)
	default:
		s.cfg.Log.Warn("binding failed; will try again", "namespace", p.Namespace, "pod", p.Name, "node", node, "error", err)
		s.failed(p.UID, false)
		s.cfg.Metrics.ended(resultError, s.cfg.Name, started)
	}
}
