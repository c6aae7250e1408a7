// Package h2 serves HTTP/2 (RFC 9113) for the API, in place of the server inside net/http.
//
// Nearly every request to a control plane comes over HTTP/2, and net/http's server hands each of its frames
// from the handler to a goroutine that schedules and on to one that writes, and each frame of the client's through two
// more; a frame of 16 KB leaves as two TLS records by two system calls. A list of 5,000 pods is 500 frames and some two
// thousand window updates.
//
// Here there is one lock and one buffer a connection. Whoever has something to send, as a rule the
// handler itself, puts frames into the buffer and writes it, unless somebody is writing already, who then takes along what came
// in meanwhile: many small frames of many watches become one record, and the frames of a long list fill records exactly,
// which leave several at a time ([Batched]). What the client sends is dealt with by the goroutine that reads it, which never
// waits for a write.
//
// Frames are parsed and header blocks decoded by golang.org/x/net/http2's Framer, with its limits; what is
// here is the state of streams, flow control, and the way to an [http.Handler] and back. Handlers see what net/http
// shows them: http.ResponseController's deadlines and Flush, trailers, informational
// responses, and a context that ends with the stream. There is no server push, no extended CONNECT and no priority
// among streams: whoever waits gets a share.
package h2

import (
	"cmp"
	"context"
	"crypto/tls"
	"log"
	"net/http"
	"sync"
	"time"
)

// Config bounds what a connection may ask for. Zero fields mean the defaults.
type Config struct {
	// MaxStreams is how many requests a connection may have at once; 250.
	MaxStreams int
	// StreamWindow and ConnWindow are how many bytes of bodies may arrive before handlers read them, of a request and of
	// all requests of a connection; 256 KiB, and that for every stream.
	StreamWindow, ConnWindow int
	// MaxHeader is how long a request's header fields may be together, in bytes, as RFC 9113, 6.5.2 counts; 1 MiB.
	MaxHeader int
	// Idle is how long a connection may be without a request; 0 is for ever.
	Idle time.Duration
	// Stall is how long a client may take nothing of what is sent before its connection is closed; a minute. It
	// is closed between one and two such times later.
	Stall time.Duration
	// ErrorLog is told of panics of handlers; nil for the log package's logger.
	ErrorLog *log.Logger
}

func (c Config) withDefaults() Config {
	c.MaxStreams = cmp.Or(c.MaxStreams, 250)
	c.StreamWindow = cmp.Or(c.StreamWindow, 256<<10)
	c.ConnWindow = max(cmp.Or(c.ConnWindow, c.StreamWindow*c.MaxStreams), initialWindow)
	c.MaxHeader = cmp.Or(c.MaxHeader, 1<<20)
	c.Stall = cmp.Or(c.Stall, time.Minute)
	if c.ErrorLog == nil {
		c.ErrorLog = log.Default()
	}
	return c
}

// Server serves the connections of an http.Server that negotiated HTTP/2.
type Server struct {
	cfg Config

	mu       sync.Mutex
	conns    map[*conn]struct{}
	draining bool
}

// Attach makes hs serve HTTP/2 by this package. It is called before hs serves. Connections are told to go
// when hs shuts down, and hs waits for their requests.
func Attach(hs *http.Server, cfg Config) *Server {
	s := &Server{cfg: cfg.withDefaults(), conns: map[*conn]struct{}{}}
	hs.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){"h2": s.serve}
	hs.RegisterOnShutdown(s.drain)
	return s
}

// serve is called by net/http when the handshake is done, and returns when the connection is of no use any more. net/http
// closes it then.
func (s *Server) serve(hs *http.Server, tc *tls.Conn, handler http.Handler) {
	ctx := context.Background()
	if b, ok := handler.(interface{ BaseContext() context.Context }); ok {
		ctx = b.BaseContext() // net/http's way to pass it on
	}
	ctx, cancel := context.WithCancel(context.WithValue(ctx, http.ServerContextKey, hs))
	defer cancel()
	c := newConn(s, tc, handler, ctx)
	s.mu.Lock()
	s.conns[c] = struct{}{}
	draining := s.draining
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	if draining {
		c.leave()
	}
	c.serve()
}

// drain lets every connection end with the requests that it has.
func (s *Server) drain() {
	s.mu.Lock()
	s.draining = true
	conns := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		conns = append(conns, c)
	}
	s.mu.Unlock()
	for _, c := range conns {
		c.leave()
	}
}
