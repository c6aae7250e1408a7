package server_test

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/rest"
	clientremote "k8s.io/client-go/tools/remotecommand"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/cri/critest"
	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/agent/nodestatus"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/server"
)

type byHeader struct{}

func (byHeader) AuthenticateRequest(r *http.Request) (*authenticator.Response, bool, error) {
	name := r.Header.Get("X-User")
	return &authenticator.Response{User: &user.DefaultInfo{Name: name}}, name != "", nil
}

// allow lets alice do everything, and metrics only what metrics needs.
func allow(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetResource() != "nodes" || a.GetName() != "node-1" {
		return authorizer.DecisionDeny, "", errors.New("asked for something else")
	}
	if a.GetUser().GetName() == "alice" || a.GetUser().GetName() == "metrics" && a.GetSubresource() == "metrics" {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

type fixture struct {
	*testing.T
	runtime *critest.Runtime
	http    *httptest.Server
	pod     *corev1.Pod
	metrics *metrics.Set
	// lookups counts how often a volume was looked for; it is in volume.
	volume  string
	lookups int
}

func newFixture(t *testing.T) *fixture {
	t.Helper()
	f := &fixture{T: t, runtime: critest.New(), metrics: metrics.New(), volume: t.TempDir()}
	f.pod = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "default", UID: "u"}}
	f.pod.Spec.Containers = []corev1.Container{{Name: "a", Image: "i"}, {Name: "idle", Image: "i"}}
	f.pod.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "idle", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}}}}
	s, err := server.New(server.Config{
		NodeName: "node-1", Authenticator: byHeader{}, Authorizer: authorizer.AuthorizerFunc(allow), Runtime: f.runtime,
		Pods: func() []*corev1.Pod { return []*corev1.Pod{f.pod} }, Facts: func() nodestatus.Facts { return nodestatus.Facts{Memory: 100, Available: 40} },
		VolumePath: func(context.Context, *corev1.Pod, *corev1.Volume) (string, error) {
			f.lookups++
			return f.volume, nil
		},
		Metrics: f.metrics, Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	f.http = httptest.NewServer(s)
	t.Cleanup(f.http.Close)
	node := podspec.Node{LogRoot: t.TempDir()}
	config, err := node.SandboxConfig(f.pod, 0, "/x")
	if err != nil {
		t.Fatal(err)
	}
	sandbox, err := f.runtime.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	container, err := node.ContainerConfig(f.pod, &f.pod.Spec.Containers[0], podspec.Launch{ImageRef: "i"})
	if err != nil {
		t.Fatal(err)
	}
	created, err := f.runtime.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox.GetPodSandboxId(), Config: container, SandboxConfig: config})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.runtime.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: created.GetContainerId()}); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fixture) get(user, method, path string) (int, string) {
	f.Helper()
	r, err := http.NewRequestWithContext(f.Context(), method, f.http.URL+path, nil)
	if err != nil {
		f.Fatal(err)
	}
	if user != "" {
		r.Header.Set("X-User", user)
	}
	reply, err := f.http.Client().Do(r)
	if err != nil {
		f.Fatal(err)
	}
	defer reply.Body.Close()
	data, err := io.ReadAll(reply.Body)
	if err != nil {
		f.Fatal(err)
	}
	return reply.StatusCode, string(data)
}

func TestAccess(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		user, method, path string
		want               int
	}{
		{"", "GET", "/healthz", 200}, {"", "GET", "/pods", 401}, {"bob", "GET", "/pods", 403}, {"alice", "GET", "/pods", 200},
		{"metrics", "GET", "/metrics/resource", 200}, {"metrics", "GET", "/pods", 403}, {"metrics", "GET", "/stats/summary", 403}, {"alice", "GET", "/stats/summary", 200},
		{"metrics", "GET", "/metrics", 200}, {"metrics", "GET", "/metrics/cadvisor", 200}, {"metrics", "GET", "/metrics/probes", 200},
		{"", "GET", "/metrics", 401}, {"bob", "GET", "/metrics", 403}, {"bob", "GET", "/metrics/cadvisor", 403}, {"bob", "GET", "/metrics/probes", 403},
		{"", "POST", "/exec/default/web/a?command=sh&output=1", 401}, {"bob", "POST", "/run/default/web/a?cmd=ls", 403},
	} {
		if got, body := f.get(tt.user, tt.method, tt.path); got != tt.want {
			t.Errorf("%s %s %s: %d %s", tt.user, tt.method, tt.path, got, body)
		}
	}
	// A WebSocket's GET that runs a command asks for the right to create.
	r := httptest.NewRequest("GET", "/exec/default/web/a?command=sh", nil)
	if a := server.Attributes("n", r); len(a) != 1 || a[0].Verb != "create" || a[0].Subresource != "proxy" {
		t.Errorf("attributes %+v", a)
	}
}

func TestLogs(t *testing.T) {
	f := newFixture(t)
	for _, tt := range []struct {
		path string
		code int
		body string
	}{
		{"/containerLogs/default/web/a", 200, "started a\n"},
		{"/containerLogs/default/web/a?tailLines=0", 200, ""},
		{"/containerLogs/default/web/a?limitBytes=3", 200, "sta"},
		{"/containerLogs/default/web/a?stream=Stderr", 200, ""},
		{"/containerLogs/default/web/a?tailLines=-1", 400, "invalid tailLines \"-1\"\n"},
		{"/containerLogs/default/web/a?previous=true", 400, "previous terminated container \"a\" in pod \"web\" not found\n"},
		{"/containerLogs/default/web/idle", 400, "container \"idle\" in pod \"web\" is waiting to start: ContainerCreating\n"},
		{"/containerLogs/default/web/none", 404, "container \"none\" not found in pod \"web\"\n"},
		{"/containerLogs/default/none/a", 404, "pod \"none\" not found in namespace \"default\"\n"},
	} {
		if code, body := f.get("alice", "GET", tt.path); code != tt.code || body != tt.body {
			t.Errorf("%s: %d %q", tt.path, code, body)
		}
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	f := newFixture(t)
	r, err := http.NewRequestWithContext(t.Context(), "GET", f.http.URL+"/containerLogs/default/web/a?follow=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	r.Header.Set("X-User", "alice")
	reply, err := f.http.Client().Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	lines := bufio.NewReader(reply.Body)
	if line, err := lines.ReadString('\n'); err != nil || line != "started a\n" {
		t.Fatalf("%q, %v", line, err)
	}
	f.runtime.Exit("a", 0)
	if rest, err := io.ReadAll(lines); err != nil || len(rest) != 0 {
		t.Errorf("%q, %v", rest, err)
	}
}

func TestRun(t *testing.T) {
	f := newFixture(t)
	f.runtime.OnExec(func(_ string, cmd []string) (int32, string) { return int32(len(cmd) - 2), strings.Join(cmd, "|") })
	if code, body := f.get("alice", "POST", "/run/default/web/a?cmd=ls+-l"); code != 200 || body != "ls|-l" {
		t.Errorf("%d %q", code, body)
	}
	if code, _ := f.get("alice", "POST", "/run/default/web/a?cmd=ls+-l+x"); code != 500 {
		t.Errorf("a command that failed: %d", code)
	}
}

// echo is a runtime's side of the streaming server: it answers with what it is told.
type echo struct{}

func (echo) Exec(_ context.Context, id string, cmd []string, in io.Reader, out, errs io.WriteCloser, _ bool, _ <-chan remotecommand.TerminalSize) error {
	fmt.Fprintf(out, "%s %v ", id, cmd)
	if in != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	_, err := io.WriteString(errs, "errors")
	return err
}

func (echo) Attach(context.Context, string, io.Reader, io.WriteCloser, io.WriteCloser, bool, <-chan remotecommand.TerminalSize) error {
	return nil
}

func (echo) PortForward(context.Context, string, int32, io.ReadWriteCloser) error { return nil }

func TestExecIsRelayed(t *testing.T) {
	f := newFixture(t)
	var stream streaming.Server
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("X-User") != "" && r.Header.Get("Authorization") != "" {
			t.Error("the caller's credentials went to the runtime")
		}
		stream.ServeHTTP(w, r)
	}))
	defer back.Close()
	base, err := url.Parse(back.URL)
	if err != nil {
		t.Fatal(err)
	}
	config := streaming.DefaultConfig
	config.BaseURL = base
	if stream, err = streaming.NewServer(config, echo{}); err != nil {
		t.Fatal(err)
	}
	for _, protocol := range []string{"SPDY", "WebSocket"} {
		pod, err := cri.Observe(t.Context(), f.runtime, "u")
		if err != nil {
			t.Fatal(err)
		}
		c, _ := pod.Newest("a")
		answer, err := stream.GetExec(&runtimeapi.ExecRequest{ContainerId: c.ID, Cmd: []string{"cat"}, Stdin: protocol == "SPDY", Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		f.runtime.SetStreamURL(answer.GetUrl())
		target, err := url.Parse(f.http.URL + "/exec/default/web/a?command=cat&output=1&error=1&input=1")
		if err != nil {
			t.Fatal(err)
		}
		options := &rest.Config{Host: f.http.URL, WrapTransport: func(rt http.RoundTripper) http.RoundTripper { return withUser{rt} }, BearerToken: "secret"}
		var e clientremote.Executor
		if protocol == "SPDY" {
			e, err = clientremote.NewSPDYExecutor(options, http.MethodPost, target)
		} else {
			e, err = clientremote.NewWebSocketExecutorForProtocols(options, http.MethodGet, target.String(), "v4.channel.k8s.io")
		}
		if err != nil {
			t.Fatal(err)
		}
		var out, errs bytes.Buffer
		stdio := clientremote.StreamOptions{Stdout: &out, Stderr: &errs}
		want := c.ID + " [cat] "
		if protocol == "SPDY" {
			stdio.Stdin = strings.NewReader("hello")
			want += "hello"
		}
		if err := e.StreamWithContext(t.Context(), stdio); err != nil {
			t.Fatalf("%s: %v", protocol, err)
		}
		if out.String() != want || errs.String() != "errors" {
			t.Errorf("%s: %q %q", protocol, out.String(), errs.String())
		}
	}
}

type withUser struct{ next http.RoundTripper }

func (w withUser) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	r.Header.Set("X-User", "alice")
	return w.next.RoundTrip(r)
}
