package runtime

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage bounds one CRI message, in bytes, as the kubelet bounds it.
const maxMessage = 16 << 20

// Limits bounds how long calls may take. A zero field takes its default. The context that a
// caller hands over bounds a call too, whichever ends first.
type Limits struct {
	// Call is for calls that only look or change little; default 2 minutes, as the kubelet's.
	Call time.Duration
	// Sandbox is for creating and stopping a pod sandbox, which calls the network; default 4
	// minutes.
	Sandbox time.Duration
	// Pull is for pulling an image; default none, because progress is watched by the runtime.
	Pull time.Duration
}

func (l Limits) withDefaults() Limits {
	if l.Call == 0 {
		l.Call = 2 * time.Minute
	}
	if l.Sandbox == 0 {
		l.Sandbox = 4 * time.Minute
	}
	return l
}

// Client calls a container runtime over CRI: its methods are those of CRI's two services, with
// a limit on every call's time, and with errors that name the operation and the object (see
// [Error]). It is safe for use by many goroutines. It connects when first used and again by
// itself after the runtime restarted; calls meanwhile fail with [ErrUnavailable].
type Client struct {
	cri.RuntimeServiceClient
	cri.ImageServiceClient

	endpoint string
	conn     *grpc.ClientConn
}

// Observer is told of every call that has ended: in words, such as "run pod sandbox", how long it
// took, and how it failed, if it did. It must be safe for concurrent use.
type Observer func(call string, took time.Duration, err error)

// Dial makes a client for the CRI socket at endpoint, given as unix:///path or as a bare
// absolute path. It does not wait for the runtime to answer; [Client.WaitReady] does.
func Dial(endpoint string, limits Limits, observers ...Observer) (*Client, error) {
	path, err := socketPath(endpoint)
	if err != nil {
		return nil, err
	}
	// A runtime that restarts should be noticed soon; it is on this machine, so trying often
	// costs next to nothing.
	reconnect := backoff.Config{BaseDelay: 20 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: time.Second}
	limits = limits.withDefaults()
	conn, err := grpc.NewClient("passthrough:///"+path,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, path string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", path)
		}),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: reconnect, MinConnectTimeout: 3 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithIdleTimeout(0),
		grpc.WithChainUnaryInterceptor(interceptObserved(observers), limits.interceptUnary),
		grpc.WithStreamInterceptor(interceptStream),
	)
	if err != nil {
		return nil, fmt.Errorf("dial container runtime %s: %w", endpoint, err)
	}
	return &Client{
		RuntimeServiceClient: cri.NewRuntimeServiceClient(conn),
		ImageServiceClient:   cri.NewImageServiceClient(conn),
		endpoint:             "unix://" + path,
		conn:                 conn,
	}, nil
}

// socketPath returns the path of a unix socket named by a CRI endpoint.
func socketPath(endpoint string) (string, error) {
	path, isURL := strings.CutPrefix(endpoint, "unix://")
	if !isURL && strings.Contains(endpoint, "://") {
		return "", fmt.Errorf("container runtime endpoint %q: only unix:// sockets are known", endpoint)
	}
	if !filepath.IsAbs(path) {
		return "", fmt.Errorf("container runtime endpoint %q: want an absolute path, such as unix:///run/containerd/containerd.sock", endpoint)
	}
	return filepath.Clean(path), nil
}

// Endpoint returns the address of the runtime's socket as a unix:// URL.
func (c *Client) Endpoint() string { return c.endpoint }

// Close ends the connection and all calls under way.
func (c *Client) Close() error {
	if err := c.conn.Close(); err != nil {
		return fmt.Errorf("close container runtime %s: %w", c.endpoint, err)
	}
	return nil
}

// WaitReady returns when the runtime answers, and says of itself that it is ready to run
// containers, or when ctx ends. Whether its network is ready is not waited for: the network
// needs the node's address range, which comes later.
func (c *Client) WaitReady(ctx context.Context) error {
	var last error
	for {
		if err := c.waitConnected(ctx); err != nil {
			if last == nil {
				last = errors.New("nothing listens on the socket")
			}
			return fmt.Errorf("wait for container runtime %s: %w (%w)", c.endpoint, err, last)
		}
		status, err := c.Status(ctx, &cri.StatusRequest{})
		switch {
		case err != nil:
			last = err
		case condition(status.GetStatus(), cri.RuntimeReady):
			return nil
		default:
			last = errors.New("the runtime answers, but is not ready")
		}
		select {
		case <-ctx.Done():
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// waitConnected returns when the connection stands.
func (c *Client) waitConnected(ctx context.Context) error {
	for {
		state := c.conn.GetState()
		switch state {
		case connectivity.Ready:
			return context.Cause(ctx)
		case connectivity.Idle:
			c.conn.Connect()
		case connectivity.Shutdown:
			return errors.New("the client is closed")
		}
		if !c.conn.WaitForStateChange(ctx, state) {
			return context.Cause(ctx)
		}
	}
}

// condition reports whether the runtime's condition of that type is true.
func condition(s *cri.RuntimeStatus, kind string) bool {
	for _, c := range s.GetConditions() {
		if c.GetType() == kind {
			return c.GetStatus()
		}
	}
	return false
}
