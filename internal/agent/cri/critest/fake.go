// Package critest has a container runtime in memory, for tests of what stands on CRI. Containers are
// entries in a map; a test makes them exit.
package critest

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Runtime is a runtime in memory. It implements cri.Runtime and cri.Images. It is safe for
// concurrent use.
type Runtime struct {
	mu         sync.Mutex
	next       int
	sandboxes  map[string]*sandbox
	containers map[string]*container
	images     map[string]*runtimeapi.Image
	watchers   map[chan *runtimeapi.ContainerEventResponse]bool
	calls      []string

	// Failures, by call, such as "CreateContainer", are returned until they are removed.
	failures map[string]error
	// Holds, by call, are waited for by calls that change the runtime's state.
	holds map[string]*hold
	// Interrupted counts the calls that were given up while they were held.
	interrupted int
	// Signal decides how a container answers SIGTERM: exit code and true, or false to ignore it.
	signal func(name string) (int32, bool)
	// ExecHook answers ExecSync.
	exec func(container string, cmd []string) (int32, string)
	// StreamURL is what Exec, Attach and PortForward answer.
	streamURL string
}

type sandbox struct {
	config  *runtimeapi.PodSandboxConfig
	ready   bool
	created int64
	ip      string
}

type container struct {
	sandbox string
	config  *runtimeapi.ContainerConfig
	status  runtimeapi.ContainerStatus
}

// New returns a runtime that has the images named.
func New(images ...string) *Runtime {
	r := &Runtime{
		sandboxes: map[string]*sandbox{}, containers: map[string]*container{}, images: map[string]*runtimeapi.Image{},
		watchers: map[chan *runtimeapi.ContainerEventResponse]bool{}, failures: map[string]error{}, holds: map[string]*hold{},
		signal: func(string) (int32, bool) { return 143, true },
		exec:   func(string, []string) (int32, string) { return 0, "" },
	}
	for _, i := range images {
		r.images[i] = &runtimeapi.Image{Id: "sha256:" + i, RepoTags: []string{i}, Size: 1000}
	}
	return r
}

// hold is a call that takes its time.
type hold struct {
	reached, released chan struct{}
	once              sync.Once
}

// Hold makes the next calls of that name, RunPodSandbox or StartContainer, wait until release is
// called. The channel returned is closed when the first waits.
func (r *Runtime) Hold(call string) (reached <-chan struct{}, release func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	h := &hold{reached: make(chan struct{}), released: make(chan struct{})}
	r.holds[call] = h
	return h.reached, func() {
		r.mu.Lock()
		delete(r.holds, call)
		r.mu.Unlock()
		close(h.released)
	}
}

// Interrupted tells how many calls were given up by their caller while they were held: a real
// runtime can leave processes behind then.
func (r *Runtime) Interrupted() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.interrupted
}

func (r *Runtime) held(ctx context.Context, call string) error {
	r.mu.Lock()
	h := r.holds[call]
	r.mu.Unlock()
	if h == nil {
		return nil
	}
	h.once.Do(func() { close(h.reached) })
	select {
	case <-h.released:
		return nil
	case <-ctx.Done():
		r.mu.Lock()
		defer r.mu.Unlock()
		r.interrupted++
		return status.FromContextError(ctx.Err()).Err()
	}
}

// Fail makes a call fail with err from now on; nil lets it succeed again.
func (r *Runtime) Fail(call string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err == nil {
		delete(r.failures, call)
		return
	}
	r.failures[call] = err
}

// OnSignal sets how containers answer SIGTERM.
func (r *Runtime) OnSignal(f func(name string) (int32, bool)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.signal = f
}

// OnExec sets how containers answer commands.
func (r *Runtime) OnExec(f func(container string, cmd []string) (int32, string)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.exec = f
}

// SetStreamURL sets what streaming calls answer.
func (r *Runtime) SetStreamURL(u string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.streamURL = u
}

// Calls returns the calls that changed anything, in order: "CreateContainer web" and the like.
func (r *Runtime) Calls() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]string(nil), r.calls...)
}

// Exit ends the running container of that name, and tells whether there was one.
func (r *Runtime) Exit(name string, code int32) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for id, c := range r.containers {
		if c.config.GetMetadata().GetName() == name && c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			r.exit(id, c, code)
			return true
		}
	}
	return false
}

// Config returns the configuration of the newest container of that name, or nil.
func (r *Runtime) Config(name string) *runtimeapi.ContainerConfig {
	r.mu.Lock()
	defer r.mu.Unlock()
	var best *container
	for _, c := range r.containers {
		if c.config.GetMetadata().GetName() == name && (best == nil || c.status.CreatedAt > best.status.CreatedAt) {
			best = c
		}
	}
	if best == nil {
		return nil
	}
	return best.config
}

// Running returns the names of running containers, sorted.
func (r *Runtime) Running() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := []string{}
	for _, c := range r.containers {
		if c.status.State == runtimeapi.ContainerState_CONTAINER_RUNNING {
			out = append(out, c.config.GetMetadata().GetName())
		}
	}
	sort.Strings(out)
	return out
}

// Sandboxes returns how many sandboxes there are, and how many are ready.
func (r *Runtime) Sandboxes() (all, ready int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, s := range r.sandboxes {
		all++
		if s.ready {
			ready++
		}
	}
	return all, ready
}

func (r *Runtime) id(kind string) string {
	r.next++
	return fmt.Sprintf("%s-%d", kind, r.next)
}

// tick is a time that is later with each call, whatever the clock's resolution.
func (r *Runtime) tick() int64 {
	r.next++
	return time.Now().UnixNano() + int64(r.next)
}

func (r *Runtime) call(name, object string) error {
	r.calls = append(r.calls, name+" "+object)
	return r.failures[name]
}

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

func (r *Runtime) exit(id string, c *container, code int32) {
	c.status.State = runtimeapi.ContainerState_CONTAINER_EXITED
	c.status.ExitCode, c.status.FinishedAt = code, r.tick()
	c.status.Reason = "Error"
	if code == 0 {
		c.status.Reason = "Completed"
	}
	r.publish(runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT, id, c.sandbox)
}

func notFound(kind, id string) error {
	return status.Errorf(codes.NotFound, "%s %s not found", kind, id)
}

// Version implements CRI.
func (r *Runtime) Version(context.Context, *runtimeapi.VersionRequest, ...grpc.CallOption) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "fake", RuntimeVersion: "1.0"}, nil
}

// Status implements CRI.
func (r *Runtime) Status(context.Context, *runtimeapi.StatusRequest, ...grpc.CallOption) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true}, {Type: runtimeapi.NetworkReady, Status: true}}}}, nil
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
		ImageRef: c.status.GetImageRef(), Reason: c.status.GetReason(), Labels: c.status.GetLabels(), Annotations: c.status.GetAnnotations(), LogPath: c.status.GetLogPath(),
	}
	return &runtimeapi.ContainerStatusResponse{Status: s}, nil
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

// ListImages implements CRI.
func (r *Runtime) ListImages(context.Context, *runtimeapi.ListImagesRequest, ...grpc.CallOption) (*runtimeapi.ListImagesResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := &runtimeapi.ListImagesResponse{}
	for _, i := range r.images {
		out.Images = append(out.Images, i)
	}
	return out, nil
}

// ImageStatus implements CRI.
func (r *Runtime) ImageStatus(_ context.Context, in *runtimeapi.ImageStatusRequest, _ ...grpc.CallOption) (*runtimeapi.ImageStatusResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, i := range r.images {
		if name == in.GetImage().GetImage() || i.GetId() == in.GetImage().GetImage() {
			return &runtimeapi.ImageStatusResponse{Image: i}, nil
		}
	}
	return &runtimeapi.ImageStatusResponse{}, nil
}

// PullImage implements CRI.
func (r *Runtime) PullImage(_ context.Context, in *runtimeapi.PullImageRequest, _ ...grpc.CallOption) (*runtimeapi.PullImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	name := in.GetImage().GetImage()
	if err := r.call("PullImage", name); err != nil {
		return nil, err
	}
	i := &runtimeapi.Image{Id: "sha256:" + name, RepoTags: []string{name}, Size: 1000}
	r.images[name] = i
	return &runtimeapi.PullImageResponse{ImageRef: i.GetId()}, nil
}

// RemoveImage implements CRI.
func (r *Runtime) RemoveImage(_ context.Context, in *runtimeapi.RemoveImageRequest, _ ...grpc.CallOption) (*runtimeapi.RemoveImageResponse, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for name, i := range r.images {
		if i.GetId() == in.GetImage().GetImage() {
			delete(r.images, name)
		}
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}

// ImageFsInfo implements CRI.
func (r *Runtime) ImageFsInfo(context.Context, *runtimeapi.ImageFsInfoRequest, ...grpc.CallOption) (*runtimeapi.ImageFsInfoResponse, error) {
	return &runtimeapi.ImageFsInfoResponse{ImageFilesystems: []*runtimeapi.FilesystemUsage{{FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: os.TempDir()}}}}, nil
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
