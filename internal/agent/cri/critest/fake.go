// Package critest has a container runtime in memory, for tests of what stands on CRI. Containers are
// entries in a map; a test makes them exit.
package critest

import (
	"context"
	"fmt"
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

	// failures, by call, such as "CreateContainer", are returned until they are removed.
	failures map[string]error
	// holds, by call, are waited for by calls that change the runtime's state.
	holds map[string]*hold
	// interrupted counts the calls that were given up while they were held.
	interrupted int
	// signal decides how a container answers SIGTERM: exit code and true, or false to ignore it.
	signal func(name string) (int32, bool)
	// exec answers ExecSync.
	exec func(container string, cmd []string) (int32, string)
	// streamURL is what Exec, Attach and PortForward answer.
	streamURL string
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
