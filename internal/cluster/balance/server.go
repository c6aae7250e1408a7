package balance

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"barque.dev/internal/reconnect"
)

// A server is one API server with its own connections.
type server struct {
	address   string
	scheme    string
	dial      func(ctx context.Context, network, address string) (net.Conn, error)
	transport *reconnect.Transport

	healthy atomic.Bool
	// doubt asks for a probe of a server that is thought to be healthy.
	doubt atomic.Bool
}

func newServer(address string, config Config) *server {
	dialer := &net.Dialer{Timeout: config.DialTimeout, KeepAlive: 15 * time.Second}
	s := &server{address: address, scheme: "http", dial: dialer.DialContext}
	transport := &http.Transport{
		DialContext:         dialer.DialContext,
		TLSHandshakeTimeout: 5 * time.Second,
		MaxIdleConnsPerHost: 4,
		IdleConnTimeout:     idleTimeout,
		ForceAttemptHTTP2:   true,
		HTTP2:               &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	if config.TLS != nil {
		s.scheme, transport.TLSClientConfig = "https", config.TLS.Clone()
	}
	s.transport = reconnect.New(transport)
	s.healthy.Store(true)
	return s
}

// ready asks the server whether it is.
func (s *server) ready(ctx context.Context) error {
	u := url.URL{Scheme: s.scheme, Host: s.address, Path: "/readyz"}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return fmt.Errorf("probe server %s: %w", s.address, err)
	}
	resp, err := s.transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("probe server %s: %w", s.address, err)
	}
	defer func() { _ = resp.Body.Close() }()
	// Read to the end, so that the connection can be used again.
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("probe server %s: it answers %s", s.address, resp.Status)
	}
	return nil
}
