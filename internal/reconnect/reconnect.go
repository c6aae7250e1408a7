// Package reconnect lets a client that lives long show the certificate that it has now.
//
// Who a client is, is decided when a connection is made, and holds for as long as it does. One HTTP/2 connection carries all
// requests, and with a watch on it is never idle: it would outlive the certificate that it was made with, and then all requests on
// it are refused. A [Transport] makes new connections as soon as there is a new certificate; what is under way on the old ones
// goes on there, and they are closed once they have been idle.
package reconnect

import (
	"crypto/tls"
	"net/http"
	"sync"
	"sync/atomic"
)

// A Transport is an http.RoundTripper. It is safe for concurrent use.
type Transport struct {
	// certificate is asked before each request; nil for a client that shows none.
	certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	current     atomic.Pointer[generation]
	replacing   sync.Mutex
}

// A generation is the connections that were made while the client had one certificate.
type generation struct {
	shows     *tls.Certificate
	transport *http.Transport
}

// New makes a transport of t, which nobody else uses any more. Its GetClientCertificate, if it has one, must return the same pointer
// as long as the certificate is the same, must be cheap, and is called without knowing what a server asks for. Its IdleConnTimeout should
// be set, since it is what ends the old connections.
func New(t *http.Transport) *Transport {
	r := &Transport{}
	first := &generation{transport: t}
	if t.TLSClientConfig != nil {
		r.certificate = t.TLSClientConfig.GetClientCertificate
		first.shows = r.shows(nil)
	}
	r.current.Store(first)
	return r
}

// shows is the certificate that a connection would show now; last if that can't be told.
func (r *Transport) shows(last *tls.Certificate) *tls.Certificate {
	if r.certificate == nil {
		return last
	}
	now, err := r.certificate(&tls.CertificateRequestInfo{})
	if err != nil {
		return last // the handshake fails with it
	}
	return now
}

// Current is the transport whose connections show the certificate that the client has now.
func (r *Transport) Current() *http.Transport {
	g := r.current.Load()
	shows := r.shows(g.shows)
	if shows == g.shows {
		return g.transport
	}
	r.replacing.Lock()
	defer r.replacing.Unlock()
	if now := r.current.Load(); now != g {
		return now.transport // somebody was faster
	}
	next := &generation{shows: shows, transport: g.transport.Clone()}
	r.current.Store(next)
	g.transport.CloseIdleConnections()
	return next.transport
}

// RoundTrip implements http.RoundTripper.
func (r *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.Current().RoundTrip(req)
}

// WrappedRoundTripper lets those who upgrade connections find out how to dial.
func (r *Transport) WrappedRoundTripper() http.RoundTripper { return r.Current() }

// CloseIdleConnections closes those that carry no request.
func (r *Transport) CloseIdleConnections() { r.current.Load().transport.CloseIdleConnections() }
