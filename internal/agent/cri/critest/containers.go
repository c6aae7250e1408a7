package critest

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

type container struct {
	sandbox string
	config  *runtimeapi.ContainerConfig
	status  runtimeapi.ContainerStatus
}

func (r *Runtime) exit(id string, c *container, code int32) {
	c.status.State = runtimeapi.ContainerState_CONTAINER_EXITED
	c.status.ExitCode, c.status.FinishedAt = code, r.tick()
	c.status.Reason = "Error"
	if code == 0 {
		c.status.Reason = "Completed"
	}
	r.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, id, c.sandbox)
}

// CreateContainer implements CRI.
func (r *Runtime) CreateContainer(_ context.Context, in *runtimeapi.CreateContainerRequest, _ ...grpc.CallOption) (*runtimeapi.CreateContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.call("CreateContainer", in.GetConfig().GetMetadata().GetName()); err != nil {
		return nil, err
	}
	s := r.sandboxes[in.GetPodSandboxId()]
	if s == nil {
		return nil, notFound("sandbox", in.GetPodSandboxId())
	}
	id := r.id("container")
	c := &container{sandbox: in.GetPodSandboxId(), config: in.GetConfig()}
	c.status.Id, c.status.Metadata, c.status.State = id, in.GetConfig().GetMetadata(), runtimeapi.ContainerState_CONTAINER_CREATED
	c.status.CreatedAt, c.status.Image, c.status.ImageRef = r.tick(), in.GetConfig().GetImage(), in.GetConfig().GetImage().GetImage()
	c.status.Labels, c.status.Annotations = in.GetConfig().GetLabels(), in.GetConfig().GetAnnotations()
	c.status.LogPath = filepath.Join(s.config.GetLogDirectory(), in.GetConfig().GetLogPath())
	r.containers[id] = c
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer implements CRI.
func (r *Runtime) StartContainer(ctx context.Context, in *runtimeapi.StartContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StartContainerResponse, error) {
	if err := r.held(ctx, "StartContainer"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[in.GetContainerId()]
	if c == nil {
		return nil, notFound("container", in.GetContainerId())
	}
	if err := r.call("StartContainer", c.config.GetMetadata().GetName()); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(c.status.GetLogPath()), 0o755); err != nil {
		return nil, err
	}
	line := time.Now().UTC().Format(time.RFC3339Nano) + " stdout F started " + c.config.GetMetadata().GetName() + "\n"
	if err := os.WriteFile(c.status.GetLogPath(), []byte(line), 0o644); err != nil {
		return nil, err
	}
	c.status.State, c.status.StartedAt = runtimeapi.ContainerState_CONTAINER_RUNNING, r.tick()
	r.publish(runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT, in.GetContainerId(), c.sandbox)
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer implements CRI. A container that ignores SIGTERM is killed after the timeout.
func (r *Runtime) StopContainer(ctx context.Context, in *runtimeapi.StopContainerRequest, _ ...grpc.CallOption) (*runtimeapi.StopContainerResponse, error) {
	r.mu.Lock()
	c := r.containers[in.GetContainerId()]
	if c == nil {
		r.mu.Unlock()
		return nil, notFound("container", in.GetContainerId())
	}
	err := r.call("StopContainer", fmt.Sprintf("%s %d", c.config.GetMetadata().GetName(), in.GetTimeout()))
	if err != nil || c.status.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		r.mu.Unlock()
		return &runtimeapi.StopContainerResponse{}, err
	}
	if in.GetTimeout() > 0 {
		if code, ends := r.signal(c.config.GetMetadata().GetName()); ends {
			r.exit(in.GetContainerId(), c, code)
			r.mu.Unlock()
			return &runtimeapi.StopContainerResponse{}, nil
		}
		r.mu.Unlock()
		select {
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		case <-time.After(time.Duration(in.GetTimeout()) * time.Second):
		}
		r.mu.Lock()
	}
	if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
		r.exit(in.GetContainerId(), c, 137)
	}
	r.mu.Unlock()
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer implements CRI.
func (r *Runtime) RemoveContainer(_ context.Context, in *runtimeapi.RemoveContainerRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveContainerResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.containers[in.GetContainerId()]; c != nil {
		if err := r.call("RemoveContainer", c.config.GetMetadata().GetName()); err != nil {
			return nil, err
		}
	}
	delete(r.containers, in.GetContainerId())
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers implements CRI.
func (r *Runtime) ListContainers(_ context.Context, in *runtimeapi.ListContainersRequest, _ ...grpc.CallOption) (*runtimeapi.ListContainersResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListContainersResponse{}
	for id, c := range r.containers {
		want := in.GetFilter().GetState()
		if matches(c.config.GetLabels(), in.GetFilter().GetLabelSelector()) && (want == nil || want.GetState() == c.status.State) {
			out.Containers = append(out.Containers, &runtimeapi.Container{
				Id: id, PodSandboxId: c.sandbox, Metadata: c.config.GetMetadata(), State: c.status.State, CreatedAt: c.status.CreatedAt,
				Labels: c.config.GetLabels(), Annotations: c.config.GetAnnotations(), Image: c.config.GetImage(), ImageRef: c.config.GetImage().GetImage(),
			})
		}
	}
	return out, nil
}

// ContainerStatus implements CRI.
func (r *Runtime) ContainerStatus(_ context.Context, in *runtimeapi.ContainerStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ContainerStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[in.GetContainerId()]
	if c == nil {
		return nil, notFound("container", in.GetContainerId())
	}
	s := &runtimeapi.ContainerStatus{
		Id: c.status.GetId(), Metadata: c.status.GetMetadata(), State: c.status.GetState(), CreatedAt: c.status.GetCreatedAt(),
		StartedAt: c.status.GetStartedAt(), FinishedAt: c.status.GetFinishedAt(), ExitCode: c.status.GetExitCode(), Image: c.status.GetImage(),
		Mounts: c.config.GetMounts(), ImageRef: c.status.GetImageRef(), Reason: c.status.GetReason(), Labels: c.status.GetLabels(), Annotations: c.status.GetAnnotations(), LogPath: c.status.GetLogPath(),
	}
	return &runtimeapi.ContainerStatusResponse{Status: s}, nil
}

// UpdateContainerResources implements CRI.
func (r *Runtime) UpdateContainerResources(_ context.Context, in *runtimeapi.UpdateContainerResourcesRequest, _ ...grpc.CallOption) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[in.GetContainerId()]
	if c == nil {
		return nil, notFound("container", in.GetContainerId())
	}
	if err := r.call("UpdateContainerResources", c.config.GetMetadata().GetName()); err != nil {
		return nil, err
	}
	c.config.Linux.Resources = in.GetLinux()
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog implements CRI: whatever is at the log's path is left alone, and a new file is
// made if nothing is.
func (r *Runtime) ReopenContainerLog(_ context.Context, in *runtimeapi.ReopenContainerLogRequest, _ ...grpc.CallOption) (*runtimeapi.ReopenContainerLogResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := r.containers[in.GetContainerId()]
	if c == nil {
		return nil, notFound("container", in.GetContainerId())
	}
	if err := r.call("ReopenContainerLog", c.config.GetMetadata().GetName()); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(c.status.GetLogPath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, f.Close()
}

// ExecSync implements CRI.
func (r *Runtime) ExecSync(_ context.Context, in *runtimeapi.ExecSyncRequest, _ ...grpc.CallOption) (*runtimeapi.ExecSyncResponse, error) {
	r.mu.Lock()
	c := r.containers[in.GetContainerId()]
	if c == nil {
		r.mu.Unlock()
		return nil, notFound("container", in.GetContainerId())
	}
	name, exec := c.config.GetMetadata().GetName(), r.exec
	r.calls = append(r.calls, "ExecSync "+name)
	r.mu.Unlock()
	code, output := exec(name, in.GetCmd())
	return &runtimeapi.ExecSyncResponse{ExitCode: code, Stdout: []byte(output)}, nil
}

func (r *Runtime) url() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.streamURL
}

// Exec implements CRI.
func (r *Runtime) Exec(context.Context, *runtimeapi.ExecRequest, ...grpc.CallOption) (*runtimeapi.ExecResponse, error) {
	return &runtimeapi.ExecResponse{Url: r.url()}, nil
}

// Attach implements CRI.
func (r *Runtime) Attach(context.Context, *runtimeapi.AttachRequest, ...grpc.CallOption) (*runtimeapi.AttachResponse, error) {
	return &runtimeapi.AttachResponse{Url: r.url()}, nil
}

// PortForward implements CRI.
func (r *Runtime) PortForward(context.Context, *runtimeapi.PortForwardRequest, ...grpc.CallOption) (*runtimeapi.PortForwardResponse, error) {
	return &runtimeapi.PortForwardResponse{Url: r.url()}, nil
}

// ListContainerStats implements CRI.
func (r *Runtime) ListContainerStats(context.Context, *runtimeapi.ListContainerStatsRequest, ...grpc.CallOption) (*runtimeapi.ListContainerStatsResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.failures["ListContainerStats"]; err != nil {
		return nil, err
	}
	out := &runtimeapi.ListContainerStatsResponse{}
	for id, c := range r.containers {
		out.Stats = append(out.Stats, &runtimeapi.ContainerStats{
			Attributes: &runtimeapi.ContainerAttributes{Id: id, Metadata: c.config.GetMetadata(), Labels: c.config.GetLabels()},
			Cpu:        &runtimeapi.CpuUsage{Timestamp: time.Now().UnixNano(), UsageCoreNanoSeconds: &runtimeapi.UInt64Value{Value: 2e9}},
			Memory:     &runtimeapi.MemoryUsage{Timestamp: time.Now().UnixNano(), WorkingSetBytes: &runtimeapi.UInt64Value{Value: 4096}},
		})
	}
	return out, nil
}
