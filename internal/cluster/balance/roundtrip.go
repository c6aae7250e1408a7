package balance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptrace"
	"sync/atomic"
)

// RoundTrip implements http.RoundTripper. The request's host is replaced by a server's.
func (b *Balancer) RoundTrip(req *http.Request) (*http.Response, error) {
	servers := b.candidates()
	var failures []error
	for i, s := range servers {
		last := i == len(servers)-1
		resp, sent, err := s.try(req, i > 0)
		if err == nil {
			if resp.StatusCode == http.StatusServiceUnavailable {
				b.doubted(s)
				if !last && reads(req) && rewindable(req) {
					drop(resp)
					failures = append(failures, fmt.Errorf("server %s: it answers %s", s.address, resp.Status))
					continue
				}
			}
			return b.watched(s, req, resp), nil
		}
		if req.Context().Err() != nil {
			return nil, err
		}
		failures = append(failures, fmt.Errorf("server %s: %w", s.address, err))
		b.failed(s, err)
		if last || !rewindable(req) || sent && !reads(req) {
			break
		}
	}
	if len(failures) == 1 {
		return nil, failures[0]
	}
	return nil, fmt.Errorf("all servers failed: %w", errors.Join(failures...))
}

// try sends the request to the server. sent tells whether the server may have seen it. again
// says that the body was read by an attempt before.
func (s *server) try(req *http.Request, again bool) (resp *http.Response, sent bool, err error) {
	var got atomic.Bool
	ctx := httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	})
	out := req.Clone(ctx)
	out.URL.Scheme, out.URL.Host, out.Host = s.scheme, s.address, ""
	if again && req.GetBody != nil {
		if out.Body, err = req.GetBody(); err != nil {
			return nil, false, fmt.Errorf("send the body again: %w", err)
		}
	}
	resp, err = s.transport.RoundTrip(out)
	return resp, got.Load(), err
}

// reads tells whether a request changes nothing, so that it may be sent twice.
func reads(req *http.Request) bool {
	return req.Method == http.MethodGet || req.Method == http.MethodHead || req.Method == http.MethodOptions || req.Method == ""
}

// rewindable tells whether the body can be sent again.
func rewindable(req *http.Request) bool {
	return req.Body == nil || req.Body == http.NoBody || req.GetBody != nil
}

func drop(resp *http.Response) {
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10))
	_ = resp.Body.Close()
}

// watched has a server looked after when a response of it breaks off.
func (b *Balancer) watched(s *server, req *http.Request, resp *http.Response) *http.Response {
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp
	}
	resp.Body = &body{ReadCloser: resp.Body, ctx: req.Context(), broken: func() { b.doubted(s) }}
	return resp
}

type body struct {
	io.ReadCloser
	ctx    context.Context
	broken func()
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) && b.ctx.Err() == nil && !errors.Is(err, http.ErrBodyReadAfterClose) {
		b.broken()
	}
	return n, err
}
