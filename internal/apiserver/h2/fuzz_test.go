package h2

import (
	"bytes"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"barque.dev/internal/testkit"
)

// blocks are header blocks that fuzzed frames may name, spelled with the static table (RFC 7541, A) and literals, so that they
// mean the same whatever came before.
var blocks = [][]byte{
	{0x82, 0x87, 0x84},                        // GET https /
	{0x83, 0x87, 0x84},                        // POST https /
	{0x83, 0x87, 0x85},                        // POST https /index.html
	{0x82, 0x87, 0x85},                        // GET https /index.html
	{0x83, 0x87, 0x84, 0x0f, 0x0d, 0x01, '5'}, // POST https /, content-length 5
	{0x83, 0x87, 0x84, 0x0f, 0x14, 0x0c, '1', '0', '0', '-', 'c', 'o', 'n', 't', 'i', 'n', 'u', 'e'}, // expect
	{0x00, 0x04, 'l', 'a', 's', 't', 0x01, 'x'},                                                      // trailers, or no request
	{0x3f, 0xe1, 0x1f, 0x82, 0x87, 0x84},                                                             // a table size, GET https /
}

// fuzzedFrames makes frames of fuzz input: four bytes each for kind, flags, stream, and length or block, then the payload.
// A kind above all that there are means that what is left goes out as it is.
func fuzzedFrames(in []byte) []byte {
	var out bytes.Buffer
	framer := http2.NewFramer(&out, nil)
	framer.AllowIllegalWrites = true
	for len(in) >= 4 {
		kind, flags, id, n := http2.FrameType(in[0]), http2.Flags(in[1]), uint32(in[2]), int(in[3])
		in = in[4:]
		if kind > 200 {
			break
		}
		kind %= 18
		var payload []byte
		switch {
		case kind == http2.FrameHeaders && n >= 0x80:
			payload = blocks[n%len(blocks)]
			flags |= http2.FlagHeadersEndHeaders
			flags &^= http2.FlagHeadersPadded | http2.FlagHeadersPriority
		case kind == http2.FrameData && n >= 0x80:
			payload = make([]byte, (n-0x7f)*200)
		default:
			payload, in = in[:min(n, len(in))], in[min(n, len(in)):]
		}
		_ = framer.WriteRawFrame(kind, flags, id, payload) // into memory
	}
	out.Write(in)
	return out.Bytes()
}

// faults keeps what is logged of panics, those of the server itself among them, which net/http catches.
type faults struct {
	mu  sync.Mutex
	log bytes.Buffer
}

func (f *faults) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if bytes.Contains(p, []byte("panic")) {
		f.log.Write(p)
	}
	return len(p), nil
}

func (f *faults) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.String()
}

// sound tells what of a connection is out of bounds; its lock is held.
func (c *conn) sound() error {
	cfg, unread := c.server.cfg, 0
	for id, st := range c.streams {
		unread += len(st.body.buf) - st.body.off
		if st.gone != nil || st.received < 0 || st.window > maxWindow || id > c.lastID {
			return fmt.Errorf("stream %d: %v, %d may come, %d may go", id, st.gone, st.received, st.window)
		}
	}
	switch {
	case len(c.streams) > cfg.MaxStreams, c.running > cfg.MaxStreams, len(c.queued) > 4*cfg.MaxStreams:
		return fmt.Errorf("%d streams, %d handlers, %d in the queue", len(c.streams), c.running, len(c.queued))
	case len(c.out.crowded)+len(c.out.thirsty) > len(c.streams):
		return fmt.Errorf("%d streams, %d crowded and %d thirsty", len(c.streams), len(c.out.crowded), len(c.out.thirsty))
	case c.err == nil && c.received+c.owed+unread != cfg.ConnWindow:
		return fmt.Errorf("of a window of %d, %d may come, %d are owed and %d unread", cfg.ConnWindow, c.received, c.owed, unread)
	case c.window < 0 || c.window > maxWindow:
		return fmt.Errorf("%d may go", c.window)
	case c.out.length() > maxAnswers+2*largeBuffer:
		return fmt.Errorf("%d bytes wait", c.out.length())
	}
	return nil
}

// only waits for the one connection that there is.
func (s *Server) only(t *testing.T) *conn {
	var only *conn
	testkit.Eventually(t, 10*time.Second, "the connection is served", testkit.Holds(func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for only = range s.conns {
			return true
		}
		return false
	}))
	return only
}

// watch looks at a connection until it has ended, with its handlers.
func (s *Server) watch(t *testing.T, c *conn) {
	testkit.Eventually(t, 10*time.Second, "the connection and its handlers end", testkit.Holds(func() bool {
		s.mu.Lock()
		_, served := s.conns[c]
		s.mu.Unlock()
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := c.sound(); err != nil {
			t.Error(err)
		}
		return !served && c.running == 0
	}))
}

func FuzzFrames(f *testing.F) {
	frame := func(kind http2.FrameType, flags http2.Flags, id, n byte, payload ...byte) []byte {
		return append([]byte{byte(kind), byte(flags), id, n}, payload...)
	}
	join := func(frames ...[]byte) []byte { return bytes.Join(frames, nil) }
	number := func(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }
	get := func(id byte) []byte { return frame(http2.FrameHeaders, http2.FlagHeadersEndStream, id, 0x80) }
	f.Add(get(1))
	f.Add(join(get(1), frame(http2.FrameRSTStream, 0, 1, 4, number(8)...), get(3)))
	f.Add(join(frame(http2.FrameHeaders, 0, 1, 0x81), frame(http2.FrameData, 1, 1, 0xff)))
	f.Add(join(frame(http2.FrameHeaders, 0, 1, 0x82), frame(http2.FrameData, 8, 1, 5, 2, 'a', 'b', 0, 0), frame(http2.FrameHeaders, 1, 1, 0x86)))
	f.Add(join(frame(http2.FrameHeaders, 0, 1, 0x84), frame(http2.FrameData, 1, 1, 5, 'h', 'e', 'l', 'l', 'o')))
	f.Add(join(frame(http2.FrameHeaders, 0, 1, 0x85), frame(http2.FrameData, 1, 1, 1, 'x')))
	f.Add(join(get(0x83), frame(http2.FrameWindowUpdate, 0, 0, 4, number(1)...), frame(http2.FrameWindowUpdate, 0, 1, 4, number(maxWindow)...)))
	f.Add(join(frame(http2.FrameSettings, 0, 0, 6, 0, 4, 0, 0, 0, 1), frame(http2.FrameHeaders, 1, 1, 0x83), frame(http2.FrameSettings, 0, 0, 6, 0, 4, 0, 0, 0, 0)))
	f.Add(join(frame(http2.FramePing, 0, 0, 8, 1, 2, 3, 4, 5, 6, 7, 8), frame(http2.FrameGoAway, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0)))
	f.Add(join(frame(http2.FrameHeaders, 0, 1, 1, 0x82), frame(http2.FrameContinuation, 4, 1, 2, 0x87, 0x84), frame(http2.FramePriority, 0, 1, 5, 0, 0, 0, 1, 9)))
	f.Add(append([]byte{255, 0, 0, 0}, "not frames at all"...))

	panics, server := &faults{}, httptest.NewUnstartedServer(http.HandlerFunc(fuzzedHandler))
	s := attachFuzzed(server, panics)
	f.Cleanup(server.Close)
	dial := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
	f.Fuzz(func(t *testing.T, in []byte) {
		client, err := tls.Dial("tcp", server.Listener.Addr().String(), dial)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = client.Close() }()
		if err := client.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		c := s.only(t)
		read := make(chan error, 1)
		go func() {
			_, err := io.Copy(io.Discard, client)
			read <- err
		}()
		hello := append([]byte(http2.ClientPreface), 0, 0, 0, byte(http2.FrameSettings), 0, 0, 0, 0, 0)
		_, _ = client.Write(append(hello, fuzzedFrames(in)...)) // fails when the server has closed it already
		_ = client.CloseWrite()
		if err := <-read; os.IsTimeout(err) {
			t.Error("the server does not end the connection")
		}
		s.watch(t, c)
		if text := panics.text(); text != "" {
			t.Error(text)
		}
	})
}

// attachFuzzed starts server with bounds that a few frames reach.
func attachFuzzed(server *httptest.Server, to io.Writer) *Server {
	server.Config.ErrorLog = log.New(to, "", 0)
	s := Attach(server.Config, Config{MaxStreams: 3, StreamWindow: 1 << 16, ConnWindow: 1 << 17, MaxHeader: 4 << 10, ErrorLog: server.Config.ErrorLog})
	server.EnableHTTP2 = true
	server.StartTLS()
	return s
}

// fuzzedHandler sends back what comes, or more than the first windows let through.
func fuzzedHandler(w http.ResponseWriter, req *http.Request) {
	if req.URL.Path == "/index.html" {
		_, _ = w.Write(make([]byte, 100_000))
		w.Header().Set(http.TrailerPrefix+"Last", "x")
	}
	_, _ = io.Copy(w, req.Body)
}
