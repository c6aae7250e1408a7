// Package probe asks containers how they are: by a command inside, by HTTP, by opening a TCP
// connection, or by gRPC's health protocol. [Do] asks once; a [Runner] asks for as long as a
// container runs, counts answers against the thresholds, and tells when the verdict changes.
package probe

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Outcome is the answer to one question.
type Outcome int

// Unknown is no answer at all, for a reason that is not the container's: it counts as nothing.
const (
	Unknown Outcome = iota
	Success
	Failure
)

// String is how metrics name the outcome.
func (o Outcome) String() string {
	switch o {
	case Success:
		return "successful"
	case Failure:
		return "failed"
	default:
		return "unknown"
	}
}

// Exec runs a command in a container, for at most the timeout.
type Exec func(ctx context.Context, command []string, timeout time.Duration) (exitCode int32, output []byte, err error)

// Target is what is probed.
type Target struct {
	// IP is the pod's address, the default host of network probes.
	IP    string
	Ports []corev1.ContainerPort
	Exec  Exec
}

// maxBody is how much of an answer is read, for the event about a failure.
const maxBody = 10 << 10

// Do asks once. The text describes a failure.
func Do(ctx context.Context, p *corev1.Probe, t Target) (Outcome, string) {
	timeout := time.Duration(max(p.TimeoutSeconds, 1)) * time.Second
	if p.Exec != nil {
		return command(ctx, p.Exec.Command, t, timeout)
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	switch {
	case p.HTTPGet != nil:
		return httpGet(ctx, p.HTTPGet, t)
	case p.TCPSocket != nil:
		port, err := Port(p.TCPSocket.Port, t.Ports)
		if err != nil {
			return Unknown, err.Error()
		}
		host := p.TCPSocket.Host
		if host == "" {
			host = t.IP
		}
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return Failure, err.Error()
		}
		conn.Close()
		return Success, ""
	case p.GRPC != nil:
		service := ""
		if p.GRPC.Service != nil {
			service = *p.GRPC.Service
		}
		return health(ctx, net.JoinHostPort(t.IP, strconv.Itoa(int(p.GRPC.Port))), service)
	default:
		return Unknown, "the probe has no handler this node knows"
	}
}

func command(ctx context.Context, argv []string, t Target, timeout time.Duration) (Outcome, string) {
	code, output, err := t.Exec(ctx, argv, timeout)
	switch {
	case err != nil && (errors.Is(err, context.DeadlineExceeded) || status.Code(err) == codes.DeadlineExceeded):
		return Failure, fmt.Sprintf("command timed out: %s timed out after %s", strings.Join(argv, " "), timeout)
	case err != nil:
		return Unknown, err.Error()
	case code != 0:
		return Failure, string(clip(output))
	}
	return Success, ""
}

func clip(b []byte) []byte {
	if len(b) > maxBody {
		return b[:maxBody]
	}
	return b
}

// Port resolves a port by number or by the name a container gives it.
func Port(p intstr.IntOrString, ports []corev1.ContainerPort) (int, error) {
	number := p.IntValue()
	if p.Type == intstr.String {
		for _, c := range ports {
			if c.Name == p.StrVal {
				number = int(c.ContainerPort)
			}
		}
	}
	if number < 1 || number > 65535 {
		return 0, fmt.Errorf("invalid port %q", p.String())
	}
	return number, nil
}

// Request builds the request of an HTTP probe or hook.
func Request(ctx context.Context, h *corev1.HTTPGetAction, t Target, agent string) (*http.Request, error) {
	port, err := Port(h.Port, t.Ports)
	if err != nil {
		return nil, err
	}
	host := h.Host
	if host == "" {
		host = t.IP
	}
	path := h.Path
	if !strings.HasPrefix(path, "/") {
		path = "/" + path
	}
	u, err := url.Parse(path)
	if err != nil {
		u = &url.URL{Path: path}
	}
	u.Scheme, u.Host = strings.ToLower(string(h.Scheme)), net.JoinHostPort(host, strconv.Itoa(port))
	if u.Scheme == "" {
		u.Scheme = "http"
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	r.Header.Set("User-Agent", agent)
	r.Header.Set("Accept", "*/*")
	for _, header := range h.HTTPHeaders {
		if strings.EqualFold(header.Name, "Host") {
			r.Host = header.Value
			continue
		}
		r.Header.Add(header.Name, header.Value)
	}
	return r, nil
}

// Client returns an HTTP client for one probe or hook: it trusts any certificate, keeps no
// connection, and follows redirects only on the same host.
func Client() *http.Client {
	return &http.Client{
		Transport: &http.Transport{
			// Probes ask whether the container answers, not who it is.
			TLSClientConfig:    &tls.Config{InsecureSkipVerify: true},
			DisableKeepAlives:  true,
			DisableCompression: true,
		},
		CheckRedirect: func(r *http.Request, via []*http.Request) error {
			if r.URL.Hostname() != via[0].URL.Hostname() || len(via) >= 10 {
				return http.ErrUseLastResponse
			}
			return nil
		},
	}
}

func httpGet(ctx context.Context, h *corev1.HTTPGetAction, t Target) (Outcome, string) {
	r, err := Request(ctx, h, t, "kube-probe/1.37")
	if err != nil {
		return Unknown, err.Error()
	}
	reply, err := Client().Do(r)
	if err != nil {
		return Failure, err.Error()
	}
	defer reply.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(reply.Body, maxBody))
	if reply.StatusCode >= http.StatusOK && reply.StatusCode < http.StatusBadRequest {
		return Success, ""
	}
	_ = body // the body may hold secrets and goes nowhere
	return Failure, fmt.Sprintf("HTTP probe failed with statuscode: %d", reply.StatusCode)
}

func health(ctx context.Context, address, service string) (Outcome, string) {
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent("kube-probe/1.37"))
	if err != nil {
		return Failure, err.Error()
	}
	defer conn.Close()
	reply, err := healthpb.NewHealthClient(conn).Check(metadata.NewOutgoingContext(ctx, metadata.MD{}), &healthpb.HealthCheckRequest{Service: service})
	if err != nil {
		switch status.Code(err) {
		case codes.Unimplemented:
			return Failure, fmt.Sprintf("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message())
		case codes.DeadlineExceeded:
			return Failure, fmt.Sprintf("timeout: failed to connect service %q within the probe's time: %s", address, status.Convert(err).Message())
		}
		return Failure, fmt.Sprintf("error: health rpc probe failed: %s", status.Convert(err).Message())
	}
	if reply.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return Failure, fmt.Sprintf("service unhealthy (responded with %q)", reply.GetStatus())
	}
	return Success, ""
}
