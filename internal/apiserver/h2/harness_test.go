package h2

import (
	"bytes"
	"crypto/tls"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// counted counts the writes of connections below what batches them, and lets them through while nobody holds the gate.
type counted struct {
	net.Listener
	writes, bytes *atomic.Int64
	gate          *sync.RWMutex
}

type countedConn struct {
	net.Conn
	l counted
}

func (c countedConn) Write(p []byte) (int, error) {
	c.l.gate.RLock()
	defer c.l.gate.RUnlock()
	c.l.writes.Add(1)
	c.l.bytes.Add(int64(len(p)))
	return c.Conn.Write(p)
}

func (l counted) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return NewBatched(countedConn{conn, l}), nil
}

type server struct {
	*httptest.Server
	h2            *Server
	writes, bytes atomic.Int64
	gate          sync.RWMutex // held, it is as if clients read nothing
}

// start serves a handler, by this package unless stock is true: then by net/http alone.
func start(tb testing.TB, cfg Config, stock bool, handler http.HandlerFunc) *server {
	tb.Helper()
	s := &server{Server: httptest.NewUnstartedServer(handler)}
	quiet := log.New(io.Discard, "", 0)
	s.Config.ErrorLog = quiet
	s.EnableHTTP2 = true
	if !stock {
		cfg.ErrorLog = quiet
		s.h2 = Attach(s.Config, cfg)
		s.Listener = counted{s.Listener, &s.writes, &s.bytes, &s.gate}
	}
	s.TLS = &tls.Config{DynamicRecordSizingDisabled: true}
	s.StartTLS()
	tb.Cleanup(s.Close)
	return s
}

// raw is a client that sends the frames that it is told to.
type raw struct {
	tb   testing.TB
	conn *tls.Conn
	*http2.Framer
	block   bytes.Buffer
	encoder *hpack.Encoder
}

// dial connects, and says hello with settings; nothing that the server sends has been read yet.
func (s *server) dial(tb testing.TB, settings ...http2.Setting) *raw {
	tb.Helper()
	conn, err := tls.Dial("tcp", s.Listener.Addr().String(), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		tb.Fatal(err)
	}
	r := &raw{tb: tb, conn: conn, Framer: http2.NewFramer(conn, conn)}
	r.encoder = hpack.NewEncoder(&r.block)
	r.ReadMetaHeaders = hpack.NewDecoder(headerTable, nil)
	r.AllowIllegalWrites = true
	if _, err := io.WriteString(conn, http2.ClientPreface); err != nil {
		tb.Fatal(err)
	}
	r.must(r.WriteSettings(settings...))
	return r
}

func (r *raw) must(err error) {
	r.tb.Helper()
	if err != nil {
		r.tb.Fatal(err)
	}
}

// fields encodes header fields given as name, value, name, value.
func (r *raw) fields(fields ...string) []byte {
	r.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		r.must(r.encoder.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}))
	}
	return bytes.Clone(r.block.Bytes())
}

// open opens a stream.
func (r *raw) open(id uint32, method, path string, end bool, more ...string) {
	fields := append([]string{":method", method, ":scheme", "https", ":authority", "example.org", ":path", path}, more...)
	r.must(r.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: r.fields(fields...), EndHeaders: true, EndStream: end}))
}

// until reads frames until one is the last that is wanted.
func (r *raw) until(last func(http2.Frame) bool) {
	r.tb.Helper()
	for {
		f, err := r.ReadFrame()
		if err != nil {
			r.tb.Fatal(err)
		}
		if last(f) {
			return
		}
	}
}

// told reads until the server says that a stream, or the connection, has failed, and returns why.
func (r *raw) told() (code http2.ErrCode, connection bool) {
	r.tb.Helper()
	r.until(func(f http2.Frame) bool {
		switch f := f.(type) {
		case *http2.GoAwayFrame:
			code, connection = f.ErrCode, true
			return true
		case *http2.RSTStreamFrame:
			code = f.ErrCode
			return true
		}
		return false
	})
	return code, connection
}
