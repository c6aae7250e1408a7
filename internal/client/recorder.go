package client

import (
	"context"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Recorder writes what a component tells about objects as Events, aggregated and limited in rate
// as client-go does, so that kubectl describe shows them.
type Recorder struct {
	record.EventRecorder
	broadcaster record.EventBroadcaster
	watcher     watch.Interface
	sink        *sink
}

// NewRecorder returns a recorder for a component, such as "kube-scheduler". Events are written by
// Run, which must be called; those recorded before are kept for it, up to a bound.
func NewRecorder(c client.Client, component string, log *slog.Logger) *Recorder {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	broadcaster := record.NewBroadcaster()
	r := &Recorder{
		EventRecorder: broadcaster.NewRecorder(c.Scheme(), corev1.EventSource{Component: component}),
		broadcaster:   broadcaster,
		sink:          &sink{client: c, log: log, started: make(chan struct{})},
	}
	r.watcher = broadcaster.StartRecordingToSink(r.sink)
	return r
}

// Run writes events until ctx ends. It must be called once; a recorder whose Run has ended
// records nothing more.
func (r *Recorder) Run(ctx context.Context) error {
	r.sink.start(ctx)
	<-ctx.Done()
	r.watcher.Stop()
	r.broadcaster.Shutdown()
	r.sink.stop()
	return ctx.Err()
}

// sink writes events through the client.
type sink struct {
	client client.Client
	log    *slog.Logger

	started chan struct{} // closed by start

	mu     sync.Mutex
	ctx    context.Context //nolint:containedctx // record.EventSink has no contexts
	closed bool
	active sync.WaitGroup
}

func (s *sink) start(ctx context.Context) {
	s.ctx = ctx
	close(s.started)
}

// stop waits for writes under way and refuses new ones.
func (s *sink) stop() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.active.Wait()
}

// begin waits until Run has started.
func (s *sink) begin() (context.Context, error) {
	<-s.started
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, context.Canceled
	}
	s.active.Add(1)
	return s.ctx, nil
}

// Create implements record.EventSink.
func (s *sink) Create(event *corev1.Event) (*corev1.Event, error) {
	return s.write("create", event, func(ctx context.Context, out *corev1.Event) error { return s.client.Create(ctx, out) })
}

// Update implements record.EventSink.
func (s *sink) Update(event *corev1.Event) (*corev1.Event, error) {
	return s.write("update", event, func(ctx context.Context, out *corev1.Event) error { return s.client.Update(ctx, out) })
}

// Patch implements record.EventSink.
func (s *sink) Patch(event *corev1.Event, data []byte) (*corev1.Event, error) {
	return s.write("patch", event, func(ctx context.Context, out *corev1.Event) error {
		return s.client.Patch(ctx, out, client.RawPatch(types.StrategicMergePatchType, data))
	})
}

// write lets do write a copy of the event, and returns it as it was written.
func (s *sink) write(verb string, event *corev1.Event, do func(context.Context, *corev1.Event) error) (*corev1.Event, error) {
	ctx, err := s.begin()
	if err != nil {
		return nil, err
	}
	defer s.active.Done()
	out := event.DeepCopy()
	if err := do(ctx, out); err != nil {
		s.log.Debug("could not write an event", "verb", verb, "namespace", event.Namespace,
			"object", event.InvolvedObject.Name, "reason", event.Reason, "error", err)
		return nil, err
	}
	return out, nil
}

var _ record.EventSink = (*sink)(nil)
var _ record.EventRecorder = (*Recorder)(nil)
