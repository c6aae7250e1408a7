package critest

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type sandbox struct {
	config  *runtimeapi.PodSandboxConfig
	ready   bool
	created int64
	ip      string
}

// RunPodSandbox implements CRI.
func (r *Runtime) RunPodSandbox(ctx context.Context, in *runtimeapi.RunPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RunPodSandboxResponse, error) {
	if err := r.held(ctx, "RunPodSandbox"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.call("RunPodSandbox", in.GetConfig().GetMetadata().GetName()); err != nil {
		return nil, err
	}
	id := r.id("sandbox")
	r.sandboxes[id] = &sandbox{config: in.GetConfig(), ready: true, created: r.tick(), ip: fmt.Sprintf("10.0.0.%d", r.next%250+1)}
	r.publish(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, id, id)
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox implements CRI.
func (r *Runtime) StopPodSandbox(_ context.Context, in *runtimeapi.StopPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.StopPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[in.GetPodSandboxId()]
	if s == nil {
		return nil, notFound("sandbox", in.GetPodSandboxId())
	}
	if err := r.call("StopPodSandbox", s.config.GetMetadata().GetName()); err != nil {
		return nil, err
	}
	for id, c := range r.containers {
		if c.sandbox == in.GetPodSandboxId() && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.exit(id, c, 137)
		}
	}
	s.ready = false
	r.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, in.GetPodSandboxId(), in.GetPodSandboxId())
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox implements CRI.
func (r *Runtime) RemovePodSandbox(_ context.Context, in *runtimeapi.RemovePodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.RemovePodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s := r.sandboxes[in.GetPodSandboxId()]; s != nil {
		if err := r.call("RemovePodSandbox", s.config.GetMetadata().GetName()); err != nil {
			return nil, err
		}
	}
	for id, c := range r.containers {
		if c.sandbox == in.GetPodSandboxId() {
			delete(r.containers, id)
		}
	}
	delete(r.sandboxes, in.GetPodSandboxId())
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// PodSandboxStatus implements CRI.
func (r *Runtime) PodSandboxStatus(_ context.Context, in *runtimeapi.PodSandboxStatusRequest, _ ...grpc.CallOption) (*runtimeapi.PodSandboxStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.sandboxes[in.GetPodSandboxId()]
	if s == nil {
		return nil, notFound("sandbox", in.GetPodSandboxId())
	}
	return &runtimeapi.PodSandboxStatusResponse{Status: &runtimeapi.PodSandboxStatus{
		Id: in.GetPodSandboxId(), Metadata: s.config.GetMetadata(), State: s.state(), CreatedAt: s.created,
		Network: &runtimeapi.PodSandboxNetworkStatus{Ip: s.ip}, Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations(),
	}}, nil
}

func (s *sandbox) state() runtimeapi.PodSandboxState {
	if s.ready {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}

func matches(labels, selector map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}

// ListPodSandbox implements CRI.
func (r *Runtime) ListPodSandbox(_ context.Context, in *runtimeapi.ListPodSandboxRequest, _ ...grpc.CallOption) (*runtimeapi.ListPodSandboxResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["ListPodSandbox"]; err != nil {
		return nil, err
	}
	out := &runtimeapi.ListPodSandboxResponse{}
	for id, s := range r.sandboxes {
		want := in.GetFilter().GetState()
		if matches(s.config.GetLabels(), in.GetFilter().GetLabelSelector()) && (want == nil || want.GetState() == s.state()) {
			out.Items = append(out.Items, &runtimeapi.PodSandbox{Id: id, Metadata: s.config.GetMetadata(), State: s.state(), CreatedAt: s.created, Labels: s.config.GetLabels(), Annotations: s.config.GetAnnotations()})
		}
	}
	return out, nil
}

// ListPodSandboxStats implements CRI.
func (r *Runtime) ListPodSandboxStats(context.Context, *runtimeapi.ListPodSandboxStatsRequest, ...grpc.CallOption) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["ListPodSandboxStats"]; err != nil {
		return nil, err
	}
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	for id, s := range r.sandboxes {
		out.Stats = append(out.Stats, &runtimeapi.PodSandboxStats{
			Attributes: &runtimeapi.PodSandboxAttributes{Id: id, Metadata: s.config.GetMetadata(), Labels: s.config.GetLabels()},
			Linux: &runtimeapi.LinuxPodSandboxStats{Network: &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano(), DefaultInterface: &runtimeapi.NetworkInterfaceUsage{
				Name: "eth0", RxBytes: &runtimeapi.UInt64Value{Value: 100}, TxBytes: &runtimeapi.UInt64Value{Value: 200},
			}}},
		})
	}
	return out, nil
}
