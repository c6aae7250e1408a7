package h2

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	initialWindow  = 65535 // of streams and connections, before anybody says otherwise (RFC 9113, 6.9.2)
	maxWindow      = 1<<31 - 1
	maxStreamID    = 1<<31 - 1
	readFrameSize  = 64 << 10 // the longest frame that we take, in bytes
	headerTable    = 4096     // of header compression, in bytes, either way
	prefaceTimeout = 10 * time.Second
	// goAwayTimeout is how long a client has to see that it must go, before the connection is closed.
	goAwayTimeout = time.Second
	// maxAnswers bounds the bytes of acknowledgements and resets that wait for a client that reads nothing.
	maxAnswers = 256 << 10
	// peerSettings bounds the settings of one frame.
	peerSettings = 100
)

var (
	errClientGone    = errors.New("h2: the connection is closed")
	errStreamClosed  = errors.New("h2: the stream is closed")
	errHandlerDone   = errors.New("h2: the handler has ended")
	errBodyClosed    = errors.New("h2: the body was closed")
	errTooManyFrames = errors.New("h2: the client reads no answers")
)

// conn is one connection. The goroutine in serve reads; everything else happens in the goroutines of handlers.
type conn struct {
	server  *Server
	tls     *tls.Conn
	below   holder // nil when records can't be held back
	state   tls.ConnectionState
	remote  string
	handler http.Handler
	base    context.Context

	in     *bufio.Reader
	framer *http2.Framer // reads only

	mu      sync.Mutex
	err     error // why nothing is sent any more; nil while the connection is of use
	streams map[uint32]*stream
	lastID  uint32 // the client's highest stream
	// running counts handlers, also those whose streams are closed; queued are streams that wait until there are fewer.
	running  int
	queued   []*stream
	retiring *time.Timer // leaves; nil while the client may make requests
	leaving  bool        // no streams after lastID are taken
	closing  *time.Timer // closes a connection that has left
	idle     *time.Timer
	since    time.Time // of when there is no stream

	out outlet
	// The client's settings, and what it lets us send.
	window        int64
	initialWindow int64
	maxFrame      int
	unacked       int // of our settings
	// received is what the client may still send, and owed what was read and not yet given back.
	received, owed int
}

func newConn(s *Server, tc *tls.Conn, handler http.Handler, base context.Context) *conn {
	c := &conn{
		server: s, tls: tc, state: tc.ConnectionState(), remote: tc.RemoteAddr().String(), handler: handler, base: base,
		in: bufio.NewReader(tc), streams: map[uint32]*stream{}, since: time.Now(),
		window: initialWindow, initialWindow: initialWindow, maxFrame: record, received: s.cfg.ConnWindow,
	}
	c.below, _ = tc.NetConn().(holder)
	c.out.init(c)
	// Whatever else is sent comes after this, even if the server shuts down now.
	c.out.settings(
		http2.Setting{ID: http2.SettingMaxFrameSize, Val: readFrameSize},
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: uint32(s.cfg.MaxStreams)},
		http2.Setting{ID: http2.SettingMaxHeaderListSize, Val: uint32(s.cfg.MaxHeader)},
		http2.Setting{ID: http2.SettingHeaderTableSize, Val: headerTable},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: uint32(s.cfg.StreamWindow)},
	)
	c.unacked++
	if more := s.cfg.ConnWindow - initialWindow; more > 0 {
		c.out.windowUpdate(0, more)
	}
	c.framer = http2.NewFramer(nil, c.in)
	c.framer.SetReuseFrames()
	c.framer.SetMaxReadFrameSize(readFrameSize)
	c.framer.ReadMetaHeaders = hpack.NewDecoder(headerTable, nil)
	c.framer.MaxHeaderListSize = uint32(s.cfg.MaxHeader)
	return c
}

// serve reads until the connection ends, by whoever's wish.
func (c *conn) serve() {
	defer c.close(errClientGone) // also if there is a panic, which net/http catches
	err := c.begin()
	for err == nil {
		err = c.next()
	}
	var broken http2.ConnectionError
	if errors.As(err, &broken) {
		c.refuse(http2.ErrCode(broken))
	}
}

// begin exchanges prefaces (RFC 9113, 3.4).
func (c *conn) begin() error {
	if !acceptable(c.state) {
		return http2.ConnectionError(http2.ErrCodeInadequateSecurity)
	}
	if err := c.tls.SetReadDeadline(time.Now().Add(prefaceTimeout)); err != nil {
		return err
	}
	c.mu.Lock()
	c.out.kick()
	c.mu.Unlock()

	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c.in, preface); err != nil {
		return err
	}
	if !bytes.Equal(preface, []byte(http2.ClientPreface)) {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	first, err := c.framer.ReadFrame()
	if err != nil {
		return err
	}
	settings, ok := first.(*http2.SettingsFrame)
	if !ok || settings.IsAck() {
		return http2.ConnectionError(http2.ErrCodeProtocol)
	}
	if err := c.tls.SetReadDeadline(time.Time{}); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if idle := c.server.cfg.Idle; idle > 0 && c.err == nil {
		c.idle = time.AfterFunc(idle, c.checkIdle)
	}
	return c.peerSettings(settings)
}

// acceptable tells whether a connection's cipher is one that HTTP/2 may use: with an ephemeral key and authenticated
// (RFC 9113, 9.2.2). All of TLS 1.3 are.
func acceptable(state tls.ConnectionState) bool {
	if state.Version >= tls.VersionTLS13 {
		return true
	}
	switch state.CipherSuite {
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return false
}

// retire has a client that does well go elsewhere with its next request. Those that it makes before it has seen that are taken, too: the
// last one that was is named in a second message, when the first had time to arrive (RFC 9113, 6.8).
func (c *conn) retire() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.retiring != nil || c.leaving || c.err != nil {
		return
	}
	c.out.goAway(maxStreamID, http2.ErrCodeNo)
	c.retiring = time.AfterFunc(goAwayTimeout, c.leave)
	c.out.kick()
}

// leave tells the client to make no more requests here. The connection is closed when those that it made are answered.
func (c *conn) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leaveLocked()
	c.out.kick()
}

func (c *conn) leaveLocked() {
	if c.leaving || c.err != nil {
		return
	}
	c.leaving = true
	c.out.goAway(c.lastID, http2.ErrCodeNo)
	c.mayClose()
}

// mayClose closes a connection that has left, once it has no streams and the client had time to see it.
func (c *conn) mayClose() {
	if c.leaving && len(c.streams) == 0 && c.closing == nil && c.err == nil {
		c.closing = time.AfterFunc(goAwayTimeout, c.closeWhenSent)
	}
}

// closeWhenSent closes a connection on which nothing waits to be sent any more.
func (c *conn) closeWhenSent() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.out.busy || c.out.pending() {
		c.closing.Reset(goAwayTimeout)
		return
	}
	c.closeLocked(errClientGone)
}

// refuse ends a connection whose client broke the protocol, a moment later: so that it learns why, and this is not lost by
// a reset of the connection, what the client still sends is read.
func (c *conn) refuse(code http2.ErrCode) {
	c.mu.Lock()
	c.leaving = true
	c.out.goAway(c.lastID, code)
	c.closeStreams(errClientGone)
	c.mayClose()
	c.out.drain()
	c.mu.Unlock()
	_ = c.tls.CloseWrite()
	_, _ = io.Copy(io.Discard, c.in)
}

// close ends the connection and all that goes on in it.
func (c *conn) close(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closeLocked(err)
}

func (c *conn) closeLocked(err error) {
	if c.err != nil {
		return
	}
	c.err = err
	for _, t := range []*time.Timer{c.idle, c.retiring, c.closing} {
		if t != nil {
			t.Stop()
		}
	}
	c.closeStreams(err)
	c.queued = nil
	// Closing may say good-bye to the client, which may take its time.
	go func() { _ = c.tls.Close() }()
}

func (c *conn) closeStreams(err error) {
	for _, st := range c.streams {
		c.closeStream(st, err)
	}
}

// checkIdle closes a connection that has had no request for long enough, or looks again later. It is cheaper than a timer that
// every request stops.
func (c *conn) checkIdle() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil || c.leaving {
		return
	}
	rest := c.server.cfg.Idle
	if len(c.streams) == 0 {
		if rest -= time.Since(c.since); rest <= 0 {
			c.leaveLocked()
			c.out.kick()
			return
		}
	}
	c.idle.Reset(rest)
}

// reset ends a stream for a reason that the client is told.
func (c *conn) reset(id uint32, code http2.ErrCode, err error) {
	c.out.reset(id, code)
	if st := c.streams[id]; st != nil {
		c.closeStream(st, err)
	}
}

// closeStream forgets a stream. Whoever waits in it learns why.
func (c *conn) closeStream(st *stream, err error) {
	if st.gone != nil {
		return
	}
	st.gone = err
	delete(c.streams, st.id)
	for _, t := range []*time.Timer{st.readLimit, st.writeLimit} {
		if t != nil {
			t.Stop()
		}
	}
	st.body.end(err)
	c.giveBack(nil, st.body.discard())
	st.cancel()
	c.out.forget(st)
	if !st.started {
		st.request = nil // it may stay in the queue for a while
	}
	if len(c.streams) == 0 {
		c.since = time.Now()
		c.mayClose()
	}
}

// start begins a stream's handler, or lets it wait for its turn: a client that resets its requests as fast as it makes them
// must not have more handlers than one that waits (CVE-2023-44487).
func (c *conn) start(st *stream) error {
	if c.running < c.server.cfg.MaxStreams {
		c.running++
		st.started = true
		go c.run(st)
		return nil
	}
	if len(c.queued) >= 4*c.server.cfg.MaxStreams {
		return http2.ConnectionError(http2.ErrCodeEnhanceYourCalm)
	}
	c.queued = append(c.queued, st)
	return nil
}

// run serves one request, and then what was queued meanwhile.
func (c *conn) run(st *stream) {
	returned := false
	defer func() {
		if !returned { // the handler ended its goroutine
			go c.run(c.following())
		}
	}()
	for st != nil {
		c.handle(st)
		st = c.following()
	}
	returned = true
}

// following is the next stream that waits for a handler, for whoever has served one; nil when there is none, and one runs less.
func (c *conn) following() *stream {
	c.mu.Lock()
	defer c.mu.Unlock()
	for len(c.queued) > 0 {
		st := c.queued[0]
		c.queued = slices.Delete(c.queued, 0, 1)
		if st.gone == nil {
			st.started = true
			return st
		}
	}
	c.running--
	return nil
}

func (c *conn) handle(st *stream) {
	done := false
	defer func() {
		if done {
			return
		}
		fault := recover()
		if fault != nil && fault != http.ErrAbortHandler {
			c.server.cfg.ErrorLog.Printf("h2: panic serving %v: %v\n%s", c.remote, fault, stack())
		}
		st.response.abort()
	}()
	st.handler.ServeHTTP(&st.response, st.request)
	st.response.finish()
	done = true
}

// giveBack lets the client send as much again as was read or thrown away: on the connection, and on a stream that goes
// on. It does so in large portions.
func (c *conn) giveBack(st *stream, n int) {
	if n == 0 || c.err != nil {
		return
	}
	c.owed += n
	if c.owed >= c.server.cfg.ConnWindow/2 {
		c.out.windowUpdate(0, c.owed)
		c.received += c.owed
		c.owed = 0
		c.out.kick()
	}
	if st == nil || st.gone != nil || st.remoteClosed {
		return
	}
	st.owed += n
	if st.owed >= c.server.cfg.StreamWindow/2 {
		c.out.windowUpdate(st.id, st.owed)
		st.received += st.owed
		st.owed = 0
		c.out.kick()
	}
}

func connError(code http2.ErrCode) error { return http2.ConnectionError(code) }

func streamError(id uint32, code http2.ErrCode, format string, args ...any) error {
	return http2.StreamError{StreamID: id, Code: code, Cause: fmt.Errorf(format, args...)}
}
