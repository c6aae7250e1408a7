package probe_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	grpchealth "google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"pgregory.net/rapid"

	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/probe"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func do(t *testing.T, h corev1.ProbeHandler, target probe.Target) (probe.Outcome, string) {
	t.Helper()
	return probe.Do(t.Context(), &corev1.Probe{ProbeHandler: h, TimeoutSeconds: 1}, target)
}

func TestHTTP(t *testing.T) {
	var secure bool
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.Host == "virtual" && r.Header.Get("X-A") == "b":
			w.WriteHeader(http.StatusOK)
		case r.URL.Path == "/away":
			http.Redirect(w, r, "http://192.0.2.1/", http.StatusFound)
		case r.URL.Path == "/here":
			http.Redirect(w, r, "/bad", http.StatusFound)
		case r.URL.Path == "/slow":
			<-r.Context().Done()
		case r.URL.Path == "/good" && r.URL.Query().Get("q") == "1":
		default:
			w.WriteHeader(http.StatusInternalServerError)
		}
	})
	for _, secure = range []bool{false, true} {
		server := httptest.NewUnstartedServer(handler)
		scheme := corev1.URISchemeHTTP
		if secure {
			server.StartTLS()
			scheme = corev1.URISchemeHTTPS
		} else {
			server.Start()
		}
		port := server.Listener.Addr().(*net.TCPAddr).Port
		target := probe.Target{IP: "127.0.0.1", Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: int32(port)}}}
		for path, want := range map[string]probe.Outcome{"/good?q=1": probe.Success, "/bad": probe.Failure, "/away": probe.Success, "/here": probe.Failure, "/slow": probe.Failure} {
			got, text := do(t, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: path, Port: intstr.FromString("web"), Scheme: scheme}}, target)
			if got != want {
				t.Errorf("%s %s: %v %s", scheme, path, got, text)
			}
			if path == "/bad" && text != "HTTP probe failed with statuscode: 500" {
				t.Errorf("text %q", text)
			}
		}
		got, text := do(t, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/x", Port: intstr.FromInt32(int32(port)), Scheme: scheme, HTTPHeaders: []corev1.HTTPHeader{{Name: "Host", Value: "virtual"}, {Name: "x-a", Value: "b"}}}}, target)
		if got != probe.Success {
			t.Errorf("headers: %v %s", got, text)
		}
		server.Close()
	}
	if got, _ := do(t, corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromString("nameless")}}, probe.Target{IP: "127.0.0.1"}); got != probe.Unknown {
		t.Errorf("a port nobody named: %v", got)
	}
}

func TestTCP(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(int32(l.Addr().(*net.TCPAddr).Port))}}
	if got, text := do(t, h, probe.Target{IP: "127.0.0.1"}); got != probe.Success {
		t.Errorf("open: %v %s", got, text)
	}
	l.Close()
	if got, _ := do(t, h, probe.Target{IP: "127.0.0.1"}); got != probe.Failure {
		t.Errorf("closed: %v", got)
	}
}

func TestGRPC(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server, health := grpc.NewServer(), grpchealth.NewServer()
	healthpb.RegisterHealthServer(server, health)
	go server.Serve(l)
	defer server.Stop()
	health.SetServingStatus("db", healthpb.HealthCheckResponse_NOT_SERVING)
	for service, want := range map[string]probe.Outcome{"": probe.Success, "db": probe.Failure, "none": probe.Failure} {
		got, text := do(t, corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: int32(l.Addr().(*net.TCPAddr).Port), Service: &service}}, probe.Target{IP: "127.0.0.1"})
		if got != want {
			t.Errorf("service %q: %v %s", service, got, text)
		}
	}
}

func TestExec(t *testing.T) {
	h := corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"x"}}}
	for _, tt := range []struct {
		code int32
		err  error
		want probe.Outcome
	}{
		{0, nil, probe.Success}, {1, nil, probe.Failure}, {0, errors.New("runtime is down"), probe.Unknown}, {0, status.Error(codes.DeadlineExceeded, "late"), probe.Failure},
	} {
		got, _ := do(t, h, probe.Target{Exec: func(context.Context, []string, time.Duration) (int32, []byte, error) {
			return tt.code, []byte("out"), tt.err
		}})
		if got != tt.want {
			t.Errorf("%+v: %v", tt, got)
		}
	}
}

// TestCounter checks the verdict against its definition: the last outcome that came often enough in a row.
func TestCounter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := &corev1.Probe{SuccessThreshold: int32(rapid.IntRange(1, 3).Draw(t, "success")), FailureThreshold: int32(rapid.IntRange(1, 3).Draw(t, "failure"))}
		c := probe.NewCounter(p, "")
		var want plan.Result
		var run int32
		last := probe.Unknown
		for _, o := range rapid.SliceOf(rapid.SampledFrom([]probe.Outcome{probe.Success, probe.Failure, probe.Unknown})).Draw(t, "outcomes") {
			before := want
			if o != probe.Unknown {
				if o != last {
					run = 0
				}
				run, last = run+1, o
				if o == probe.Success && run >= p.SuccessThreshold {
					want = plan.Success
				}
				if o == probe.Failure && run >= p.FailureThreshold {
					want = plan.Failure
				}
			}
			got, changed := c.Add(o)
			if got != want || changed != (want != before) {
				t.Fatalf("verdict %q (changed %v), want %q", got, changed, want)
			}
		}
	})
}

func TestRunnerWaitsForStartup(t *testing.T) {
	var ready atomic.Bool
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !ready.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	_, port, err := net.SplitHostPort(server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.Atoi(port)
	if err != nil {
		t.Fatal(err)
	}
	begin := make(chan struct{})
	verdicts, failed := make(chan plan.Result, 10), make(chan string, 10)
	r := probe.Runner{
		Kind: probe.Readiness, Target: probe.Target{IP: "127.0.0.1"}, StartedAt: time.Now(), Begin: begin,
		Probe:   &corev1.Probe{ProbeHandler: corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Port: intstr.FromInt32(int32(number))}}, PeriodSeconds: 1},
		Verdict: func(v plan.Result) { verdicts <- v },
		Failed:  func(s string) { failed <- s },
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); r.Run(ctx) }()
	close(begin)
	if v := <-verdicts; v != plan.Failure {
		t.Errorf("first verdict %q", v)
	}
	if s := <-failed; s != "HTTP probe failed with statuscode: 503" {
		t.Errorf("text %q", s)
	}
	ready.Store(true)
	if v := <-verdicts; v != plan.Success {
		t.Errorf("second verdict %q", v)
	}
	cancel()
	<-done
}
