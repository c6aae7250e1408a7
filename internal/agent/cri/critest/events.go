package critest

import (
	"context"
	"io"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (r *Runtime) publish(kind runtimeapi.ContainerEventType, id, sandbox string) {
	s := r.sandboxes[sandbox]
	if s == nil {
		return
	}
	event := &runtimeapi.ContainerEventResponse{
		ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(),
		PodSandboxStatus: &runtimeapi.PodSandboxStatus{Id: sandbox, Metadata: s.config.GetMetadata(), Labels: s.config.GetLabels()},
	}
	for w := range r.watchers {
		w <- event
	}
}

// GetContainerEvents implements CRI.
func (r *Runtime) GetContainerEvents(ctx context.Context, _ *runtimeapi.GetEventsRequest, _ ...grpc.CallOption) (grpc.ServerStreamingClient[runtimeapi.ContainerEventResponse], error) {
	// Roomy enough that no test fills it: publishing holds the lock.
	events := make(chan *runtimeapi.ContainerEventResponse, 4096)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.watchers[events] = true
	return &stream{ctx: ctx, events: events, close: func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.watchers, events)
	}}, nil
}

type stream struct {
	grpc.ClientStream
	ctx    context.Context
	events chan *runtimeapi.ContainerEventResponse
	close  func()
}

// Recv implements the stream of events.
func (s *stream) Recv() (*runtimeapi.ContainerEventResponse, error) {
	select {
	case e := <-s.events:
		return e, nil
	case <-s.ctx.Done():
		s.close()
		return nil, io.EOF
	}
}
