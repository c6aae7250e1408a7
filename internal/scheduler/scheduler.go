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
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
)

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

	mu      sync.Mutex
	cluster *Cluster
	start   int // where the next decision's search starts
}

// New makes a scheduler; it does nothing until Run.
func New(cfg Config) *Scheduler {
	if cfg.Name == "" {
		cfg.Name = corev1.DefaultSchedulerName
	}
	return &Scheduler{cfg: cfg, queue: newQueue(time.Now), cluster: NewCluster()}
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
	nodes, pods := make(chan struct{}), make(chan struct{})
	follow(&corev1.Node{}, func() { close(nodes) }, s.nodeChanged)
	follow(&corev1.Pod{}, func() { close(pods) }, s.podChanged)
	for _, synced := range []chan struct{}{nodes, pods} {
		select {
		case <-synced:
		case <-ctx.Done():
		}
	}
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

// nodeChanged keeps the model; what changes a node's room for pods wakes those that wait.
func (s *Scheduler) nodeChanged(e barqueclient.Event) {
	s.mu.Lock()
	if e.New == nil {
		s.cluster.RemoveNode(e.Old.GetName())
	} else {
		s.cluster.SetNode(e.New.(*corev1.Node))
	}
	s.mu.Unlock()
	if e.New == nil {
		return
	}
	if e.Old == nil || roomChanged(e.Old.(*corev1.Node), e.New.(*corev1.Node)) {
		s.queue.Changed()
	}
}

func roomChanged(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable != b.Spec.Unschedulable ||
		!equality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints) ||
		!equality.Semantic.DeepEqual(a.Labels, b.Labels) ||
		!equality.Semantic.DeepEqual(a.Status.Allocatable, b.Status.Allocatable)
}

func (s *Scheduler) podChanged(e barqueclient.Event) {
	pod := e.Object().(*corev1.Pod)
	ended := e.New == nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case ended:
		s.queue.Remove(pod.UID)
		s.mu.Lock()
		s.cluster.RemovePod(pod.UID)
		s.mu.Unlock()
		if pod.Spec.NodeName != "" {
			s.queue.Changed()
		}
	case pod.Spec.NodeName != "":
		s.queue.Remove(pod.UID)
		p := NewPod(pod)
		s.mu.Lock()
		s.cluster.SetPod(p, pod.Spec.NodeName)
		s.mu.Unlock()
	case pod.Spec.SchedulerName != s.cfg.Name || pod.DeletionTimestamp != nil || len(pod.Spec.SchedulingGates) > 0:
		s.queue.Remove(pod.UID)
	default:
		s.mu.Lock()
		_, assumed := s.cluster.where[pod.UID]
		s.mu.Unlock()
		// A late event of a pod that is being bound must not have it scheduled twice.
		if !assumed {
			s.queue.Set(NewPod(pod))
		}
	}
}

// schedule decides on one pod; dispatch runs its binding beside the next decision.
func (s *Scheduler) schedule(ctx context.Context, p *Pod, dispatch func(bind func())) {
	s.mu.Lock()
	started := time.Now()
	d := Decide(p, s.cluster.Snapshot(), s.start, rand.IntN)
	s.cfg.Metrics.decided(time.Since(started))
	s.start = d.Next
	if d.Node != "" {
		// Taken for granted until the API says otherwise, so that the next decision knows.
		s.cluster.SetPod(p, d.Node)
	}
	s.mu.Unlock()
	if d.Node == "" {
		s.cfg.Log.Debug("pod fits nowhere", "namespace", p.Namespace, "pod", p.Name, "reason", d.Message())
		dispatch(func() { s.reportFailure(ctx, p, d.Message()) })
		s.queue.Failed(p.UID, true)
		s.cfg.Metrics.ended(resultUnschedulable, s.cfg.Name, started)
		return
	}
	dispatch(func() { s.bind(ctx, p, d.Node, started) })
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
	}
	s.mu.Unlock()
	switch {
	case ctx.Err() != nil, errors.Is(err, store.ErrFenced):
	case apierrors.IsNotFound(err):
		s.queue.Remove(p.UID)
	default:
		s.cfg.Log.Warn("binding failed; will try again", "namespace", p.Namespace, "pod", p.Name, "node", node, "error", err)
		s.queue.Failed(p.UID, false)
		s.cfg.Metrics.ended(resultError, s.cfg.Name, started)
	}
}

// reportFailure says in the pod's condition and in an event why it has no node.
func (s *Scheduler) reportFailure(ctx context.Context, p *Pod, message string) {
	s.cfg.Recorder.Event(p.Pod, corev1.EventTypeWarning, "FailedScheduling", message)
	changed := p.Pod.DeepCopy()
	if !setUnschedulable(&changed.Status, message, metav1.Now()) {
		return
	}
	err := s.cfg.Client.Status().Patch(ctx, changed, barqueclient.PatchSame(p.Pod))
	if barqueclient.IgnoreGone(err) != nil && ctx.Err() == nil && !errors.Is(err, store.ErrFenced) {
		s.cfg.Log.Warn("report that a pod fits nowhere", "namespace", p.Namespace, "pod", p.Name, "error", err)
	}
}

// setUnschedulable sets the PodScheduled condition; it tells whether that changed anything.
func setUnschedulable(status *corev1.PodStatus, message string, now metav1.Time) bool {
	cond := corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
		Message: message, LastTransitionTime: now,
	}
	for i := range status.Conditions {
		c := &status.Conditions[i]
		if c.Type != cond.Type {
			continue
		}
		if c.Status == cond.Status && c.Reason == cond.Reason && c.Message == cond.Message {
			return false
		}
		if c.Status == cond.Status {
			cond.LastTransitionTime = c.LastTransitionTime
		}
		*c = cond
		return true
	}
	status.Conditions = append(status.Conditions, cond)
	return true
}
