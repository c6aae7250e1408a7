package runtime

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// fake is a container runtime that does what the test says.
type fake struct {
	cri.UnimplementedRuntimeServiceServer
	stop   func(context.Context, *cri.StopContainerRequest) error
	ready  func() bool
	events []*cri.ContainerEventResponse
}

func (f *fake) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	return &cri.StopContainerResponse{}, f.stop(ctx, r)
}

func (f *fake) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake"}, nil
}

func (f *fake) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	return &cri.StatusResponse{Status: &cri.RuntimeStatus{Conditions: []*cri.RuntimeCondition{
		{Type: cri.NetworkReady, Status: false}, {Type: cri.RuntimeReady, Status: f.ready()},
	}}}, nil
}

func (f *fake) GetContainerEvents(_ *cri.GetEventsRequest, s grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	for _, e := range f.events {
		if err := s.Send(e); err != nil {
			return err
		}
	}
	return nil
}

// serve answers at socket until the returned function is called or the test ends.
func serve(t *testing.T, f *fake, socket string) (stop func()) {
	t.Helper()
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, f)
	done := make(chan struct{})
	go func() { defer close(done); _ = server.Serve(listener) }()
	stop = func() { server.Stop(); <-done }
	t.Cleanup(stop)
	return stop
}

func socket(t *testing.T) string {
	t.Helper()
	// t.TempDir may be too long for a socket.
	dir, err := os.MkdirTemp("", "cri")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "s")
}

func dial(t *testing.T, endpoint string, limits Limits) *Client {
	t.Helper()
	c, err := Dial(endpoint, limits)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

func TestObservers(t *testing.T) {
	path := socket(t)
	f := &fake{stop: func(context.Context, *cri.StopContainerRequest) error { return status.Error(codes.NotFound, "no") }}
	serve(t, f, path)
	type seen struct {
		call string
		err  error
	}
	var calls []seen
	c, err := Dial(path, Limits{}, func(call string, took time.Duration, err error) {
		if took <= 0 {
			t.Errorf("%s took %s", call, took)
		}
		calls = append(calls, seen{call, err})
	})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	_, want := c.StopContainer(t.Context(), &cri.StopContainerRequest{ContainerId: "c1"})
	if len(calls) != 1 || calls[0].call != "stop container" || want == nil || !errors.Is(calls[0].err, want) {
		t.Errorf("observed %v, returned %v", calls, want)
	}
}

func TestErrors(t *testing.T) {
	path := socket(t)
	f := &fake{}
	stop := serve(t, f, path)
	c := dial(t, "unix://"+path, Limits{Call: 100 * time.Millisecond})
	call := func(ctx context.Context) error {
		_, err := c.StopContainer(ctx, &cri.StopContainerRequest{ContainerId: "c1"})
		return err
	}

	f.stop = func(context.Context, *cri.StopContainerRequest) error { return nil }
	if err := call(t.Context()); err != nil {
		t.Error(err)
	}
	f.stop = func(context.Context, *cri.StopContainerRequest) error {
		return status.Error(codes.NotFound, "what container?")
	}
	err := call(t.Context())
	if !errors.Is(err, ErrNotFound) || errors.Is(err, ErrTimeout) || status.Code(err) != codes.NotFound || err.Error() != "stop container c1: what container?" {
		t.Errorf("not found: %v", err)
	}
	f.stop = func(ctx context.Context, _ *cri.StopContainerRequest) error { <-ctx.Done(); return ctx.Err() }
	if err := call(t.Context()); !errors.Is(err, ErrTimeout) {
		t.Errorf("too slow: %v", err)
	}
	cancelled, cancel := context.WithCancelCause(t.Context())
	reason := errors.New("the pod is gone")
	cancel(reason)
	if err := call(cancelled); !errors.Is(err, reason) {
		t.Errorf("given up by the caller: %v", err)
	}
	stop()
	if err := call(t.Context()); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "c1") {
		t.Errorf("unreachable: %v", err)
	}
}

// TestReconnects checks that a client survives its runtime's restart.
func TestReconnects(t *testing.T) {
	path := socket(t)
	f := &fake{ready: func() bool { return true }}
	stop := serve(t, f, path)
	c := dial(t, path, Limits{})
	for range 3 {
		if err := c.WaitReady(t.Context()); err != nil {
			t.Fatal(err)
		}
		stop()
		stop = serve(t, f, path)
	}
}

func TestWaitReady(t *testing.T) {
	path := socket(t)
	c := dial(t, path, Limits{})
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := c.WaitReady(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("nobody there: %v", err)
	}
	asked := 0
	serve(t, &fake{ready: func() bool { asked++; return asked == 3 }}, path)
	if err := c.WaitReady(t.Context()); err != nil || asked != 3 {
		t.Errorf("ready after %d questions, %v; want 3", asked, err)
	}
}

func TestEvents(t *testing.T) {
	path := socket(t)
	f := &fake{events: []*cri.ContainerEventResponse{{ContainerId: "a"}, {ContainerId: "b"}, {ContainerId: "c"}}}
	serve(t, f, path)
	c := dial(t, path, Limits{})
	var got []string
	subscribed := false
	err := c.Events(t.Context(), func() { subscribed = true }, func(e *cri.ContainerEventResponse) error {
		got = append(got, e.ContainerId)
		return nil
	})
	if !errors.Is(err, ErrUnavailable) || strings.Join(got, "") != "abc" || !subscribed {
		t.Errorf("events %v, %v", got, err)
	}
	enough := errors.New("enough")
	err = c.Events(t.Context(), nil, func(*cri.ContainerEventResponse) error { return enough })
	if !errors.Is(err, enough) {
		t.Errorf("a handler's error becomes %v", err)
	}
}

func TestEndpoints(t *testing.T) {
	for endpoint, want := range map[string]string{
		"unix:///run/a.sock": "/run/a.sock", "/run//a.sock": "/run/a.sock",
		"tcp://1.2.3.4:5": "", "a.sock": "", "": "", "unix://a.sock": "",
	} {
		if got, err := socketPath(endpoint); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v; want %q", endpoint, got, err, want)
		}
	}
}

func TestLimits(t *testing.T) {
	l := Limits{Call: time.Second, Sandbox: time.Minute}
	for _, c := range []struct {
		request any
		want    time.Duration
	}{
		{&cri.StatusRequest{}, time.Second},
		{&cri.RunPodSandboxRequest{}, time.Minute},
		{&cri.PullImageRequest{}, 0},
		{&cri.StopContainerRequest{Timeout: 30}, 31 * time.Second},
		{&cri.StopContainerRequest{Timeout: -1}, time.Second},
		{&cri.ExecSyncRequest{}, 0},
		{&cri.ExecSyncRequest{Timeout: 5}, 5*time.Second + execAnswer},
	} {
		if got := l.limit(c.request); got != c.want {
			t.Errorf("%T %v: %s, want %s", c.request, c.request, got, c.want)
		}
	}
	if got := l.limit(&cri.StopContainerRequest{Timeout: 1 << 62}); got <= 0 {
		t.Errorf("an enormous grace overflows to %s", got)
	}
}

func TestOperation(t *testing.T) {
	if got := operation("/runtime.v1.RuntimeService/RunPodSandbox"); got != "run pod sandbox" {
		t.Error(got)
	}
	for _, c := range []struct {
		request any
		want    string
	}{
		{&cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Namespace: "n", Name: "p"}}}, "n/p"},
		{&cri.ContainerStatusRequest{ContainerId: "c"}, "c"},
		{&cri.StopPodSandboxRequest{PodSandboxId: "s"}, "s"},
		{&cri.PullImageRequest{Image: &cri.ImageSpec{Image: "i"}}, "i"},
		{&cri.StatusRequest{}, ""},
	} {
		if got := object(c.request); got != c.want {
			t.Errorf("%T: %q, want %q", c.request, got, c.want)
		}
	}
}
