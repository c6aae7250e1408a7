package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"go.uber.org/goleak"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
)

// stage is an API server that keeps nothing but what the scheduler does to it.
type stage struct {
	barqueclient.Client // nil: anything else that is called is a bug

	mu       sync.Mutex
	handlers map[string]func(barqueclient.Event)
	synced   sync.WaitGroup
	bound    chan string // "pod → node"
	refuse   func(pod, node string) error
	statuses chan corev1.PodCondition
	patched  chan *corev1.Pod // as their status is after each patch
	deleted  chan string
}

func newStage() *stage {
	s := &stage{handlers: map[string]func(barqueclient.Event){}, bound: make(chan string, 100), statuses: make(chan corev1.PodCondition, 100), patched: make(chan *corev1.Pod, 100), deleted: make(chan string, 100)}
	s.synced.Add(4) // as many kinds as the scheduler follows
	return s
}

func (s *stage) Follow(ctx context.Context, kind client.Object, synced func(), handle func(barqueclient.Event)) error {
	s.mu.Lock()
	s.handlers[fmt.Sprintf("%T", kind)] = handle
	s.mu.Unlock()
	synced()
	s.synced.Done()
	<-ctx.Done()
	return ctx.Err()
}

// tell hands an object over as a new one.
func (s *stage) tell(obj client.Object) { s.event(barqueclient.Event{New: obj}) }

func (s *stage) event(e barqueclient.Event) {
	s.synced.Wait()
	s.mu.Lock()
	handle := s.handlers[fmt.Sprintf("%T", e.Object())]
	s.mu.Unlock()
	handle(e)
}

func (s *stage) SubResource(string) client.SubResourceClient { return binder{stage: s} }
func (s *stage) Status() client.SubResourceWriter            { return binder{stage: s} }

type binder struct {
	client.SubResourceClient
	stage *stage
}

func (b binder) Create(_ context.Context, obj, sub client.Object, _ ...client.SubResourceCreateOption) error {
	node := sub.(*corev1.Binding).Target.Name
	b.stage.mu.Lock()
	refuse := b.stage.refuse
	b.stage.mu.Unlock()
	if refuse != nil {
		if err := refuse(obj.GetName(), node); err != nil {
			return err
		}
	}
	b.stage.bound <- obj.GetName() + " → " + node
	return nil
}

func (b binder) Patch(_ context.Context, obj client.Object, _ client.Patch, _ ...client.SubResourcePatchOption) error {
	pod := obj.(*corev1.Pod)
	b.stage.patched <- pod
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			b.stage.statuses <- c
		}
	}
	return nil
}

func (s *stage) Delete(_ context.Context, obj client.Object, _ ...client.DeleteOption) error {
	s.deleted <- obj.GetName()
	return nil
}

// nothing is a recorder of events that nobody reads.
type nothing struct{}

func (nothing) Event(runtime.Object, string, string, string)          {}
func (nothing) Eventf(runtime.Object, string, string, string, ...any) {}
func (nothing) AnnotatedEventf(runtime.Object, map[string]string, string, string, string, ...any) {
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func start(t *testing.T, s *stage) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	sched := New(Config{Client: s, Recorder: record.NewFakeRecorder(100), Log: slog.New(slog.DiscardHandler)})
	go func() { done <- sched.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
		goleak.VerifyNone(t)
	}
}

func pending(name string, edit ...func(*corev1.Pod)) *corev1.Pod {
	return aPod(name, append(edit, func(p *corev1.Pod) { p.Spec.SchedulerName = corev1.DefaultSchedulerName })...).Pod
}

func TestBindsAndRemembersWhatItAssumed(t *testing.T) {
	s := newStage()
	stop := start(t, s)
	defer stop()
	s.tell(aNode("a"))
	s.tell(aNode("b"))
	// Each fills a node; that the second goes elsewhere shows that the first is remembered,
	// although no watch has confirmed it.
	s.tell(pending("one", requests("2", "1Gi")))
	s.tell(pending("two", requests("2", "1Gi")))
	got := map[string]bool{}
	for range 2 {
		bound := <-s.bound
		got[bound[len(bound)-1:]] = true
	}
	if !got["a"] || !got["b"] {
		t.Errorf("both went to one node: %v", got)
	}
}

func TestExplainsAndTriesAgainWhenRoomAppears(t *testing.T) {
	s := newStage()
	stop := start(t, s)
	defer stop()
	s.tell(aNode("small"))
	s.tell(pending("big", requests("5", "1Gi")))
	c := <-s.statuses
	if c.Type != corev1.PodScheduled || c.Status != corev1.ConditionFalse || c.Reason != "Unschedulable" ||
		c.Message != "0/1 nodes are available: 1 Insufficient cpu. preemption: 0/1 nodes are available: 1 Preemption is not helpful for scheduling." {
		t.Errorf("condition %+v", c)
	}
	s.tell(aNode("large", func(n *corev1.Node) { n.Status.Allocatable[corev1.ResourceCPU] = *milli(8000) }))
	if bound := <-s.bound; bound != "big → large" {
		t.Error(bound)
	}
}

func TestARefusedBindingIsForgotten(t *testing.T) {
	s := newStage()
	first := true
	s.refuse = func(string, string) error {
		if first {
			first = false
			return apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, "one", errors.New("changed"))
		}
		return nil
	}
	stop := start(t, s)
	defer stop()
	s.tell(aNode("a"))
	s.tell(pending("one", requests("2", "1Gi"))) // takes all of the node: it must be free again
	if bound := <-s.bound; bound != "one → a" {
		t.Error(bound)
	}
}

func TestADeposedLeaderEndsQuietly(t *testing.T) {
	s := newStage()
	tried := make(chan struct{}, 10)
	s.refuse = func(string, string) error { tried <- struct{}{}; return fmt.Errorf("bind: %w", store.ErrFenced) }
	stop := start(t, s)
	s.tell(aNode("a"))
	s.tell(pending("one"))
	<-tried
	stop()
	if len(tried) > 0 {
		t.Error("a fenced binding was tried again")
	}
}

func TestLeavesOthersPodsAlone(t *testing.T) {
	s := newStage()
	stop := start(t, s)
	defer stop()
	s.tell(aNode("a"))
	other := pending("other")
	other.Spec.SchedulerName = "another-scheduler"
	s.tell(other)
	s.tell(pending("gated", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "wait"}} }))
	s.tell(pending("mine"))
	if bound := <-s.bound; bound != "mine → a" {
		t.Error(bound)
	}
}
