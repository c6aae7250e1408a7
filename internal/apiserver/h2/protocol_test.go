package h2

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"barque.dev/internal/testkit"
)

// TestViolations: what clients must not do ends their stream or their connection, with the code that RFC 9113 asks for.
func TestViolations(t *testing.T) {
	s := start(t, Config{}, false, func(_ http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/hold" {
			<-req.Context().Done()
		}
		_, _ = io.Copy(io.Discard, req.Body)
	})
	get := func(r *raw, id uint32) { r.open(id, "GET", "/", true) }
	for _, tt := range []struct {
		name       string
		do         func(*raw)
		code       http2.ErrCode
		connection bool
	}{
		{"data on stream 0", func(r *raw) { r.must(r.WriteData(0, true, []byte("x"))) }, http2.ErrCodeProtocol, true},
		{"data on an idle stream", func(r *raw) { r.must(r.WriteData(1, true, []byte("x"))) }, http2.ErrCodeProtocol, true},
		{"reset of an idle stream", func(r *raw) { r.must(r.WriteRSTStream(1, http2.ErrCodeCancel)) }, http2.ErrCodeProtocol, true},
		{"window of an idle stream", func(r *raw) { r.must(r.WriteWindowUpdate(1, 1)) }, http2.ErrCodeProtocol, true},
		{"window update of nothing", func(r *raw) { r.open(1, "POST", "/", false); r.must(r.WriteWindowUpdate(1, 0)) }, http2.ErrCodeProtocol, false},
		{"connection's window update of nothing", func(r *raw) { r.must(r.WriteWindowUpdate(0, 0)) }, http2.ErrCodeProtocol, true},
		{"a stream's window overflows", func(r *raw) { r.open(1, "POST", "/", false); r.must(r.WriteWindowUpdate(1, maxWindow)) }, http2.ErrCodeFlowControl, false},
		{"the connection's window overflows", func(r *raw) { r.must(r.WriteWindowUpdate(0, maxWindow)) }, http2.ErrCodeFlowControl, true},
		{"an even stream", func(r *raw) { get(r, 2) }, http2.ErrCodeProtocol, true},
		{"a stream that went by", func(r *raw) { r.open(5, "POST", "/", false); get(r, 3) }, http2.ErrCodeStreamClosed, true},
		{"a push promise", func(r *raw) {
			r.must(r.WritePushPromise(http2.PushPromiseParam{StreamID: 1, PromiseID: 2, BlockFragment: r.fields(":method", "GET"), EndHeaders: true}))
		}, http2.ErrCodeProtocol, true},
		{"an acknowledgement of nothing", func(r *raw) { r.must(r.WriteSettingsAck()); r.must(r.WriteSettingsAck()) }, http2.ErrCodeProtocol, true},
		{"settings twice", func(r *raw) {
			r.must(r.WriteSettings(http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 14}, http2.Setting{ID: http2.SettingMaxFrameSize, Val: 1 << 15}))
		}, http2.ErrCodeProtocol, true},
		{"a window that is too large", func(r *raw) {
			r.must(r.WriteRawFrame(http2.FrameSettings, 0, 0, []byte{0, byte(http2.SettingInitialWindowSize), 0x80, 0, 0, 0}))
		}, http2.ErrCodeFlowControl, true},
		{"a frame that is too long", func(r *raw) {
			r.open(1, "POST", "/", false)
			r.must(r.WriteRawFrame(http2.FrameData, 0, 1, make([]byte, readFrameSize+1)))
		}, http2.ErrCodeFrameSize, true},
		{"more than the window", func(r *raw) {
			r.open(1, "POST", "/hold", false)
			for range 6 {
				r.must(r.WriteData(1, false, make([]byte, 60<<10)))
			}
		}, http2.ErrCodeFlowControl, false},
		{"data after the end", func(r *raw) { get(r, 1); r.must(r.WriteData(1, true, []byte("x"))) }, http2.ErrCodeStreamClosed, false},
		{"more than declared", func(r *raw) {
			r.open(1, "POST", "/hold", false, "content-length", "2")
			r.must(r.WriteData(1, false, []byte("abc")))
		}, http2.ErrCodeProtocol, false},
		{"less than declared", func(r *raw) {
			r.open(1, "POST", "/hold", false, "content-length", "2")
			r.must(r.WriteData(1, true, []byte("a")))
		}, http2.ErrCodeProtocol, false},
		{"depends on itself", func(r *raw) {
			r.must(r.WritePriority(3, http2.PriorityParam{StreamDep: 3}))
		}, http2.ErrCodeProtocol, false},
		{"no method", func(r *raw) {
			r.must(r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.fields(":scheme", "https", ":path", "/"), EndHeaders: true, EndStream: true}))
		}, http2.ErrCodeProtocol, false},
		{"a relative path", func(r *raw) { r.open(1, "GET", "x", true) }, http2.ErrCodeProtocol, false},
		{"two hosts", func(r *raw) { r.open(1, "GET", "/", true, "host", "example.com") }, http2.ErrCodeProtocol, false},
		{"upper case", func(r *raw) { r.open(1, "GET", "/", true, "Name", "x") }, http2.ErrCodeProtocol, false},
		{"trailers that go on", func(r *raw) {
			r.open(1, "POST", "/hold", false)
			r.must(r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.fields("a", "b"), EndHeaders: true}))
		}, http2.ErrCodeProtocol, false},
		{"a method in trailers", func(r *raw) {
			r.open(1, "POST", "/hold", false)
			r.must(r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.fields(":method", "b"), EndHeaders: true, EndStream: true}))
		}, http2.ErrCodeProtocol, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := s.dial(t)
			tt.do(r)
			code, connection := r.told()
			if code != tt.code || connection != tt.connection {
				t.Errorf("the server says %v (of the connection: %v), want %v (%v)", code, connection, tt.code, tt.connection)
			}
			if connection {
				for { // it is closed then
					if _, err := r.ReadFrame(); err != nil {
						break
					}
				}
			} else {
				// A stream's error is no other's.
				r.open(101, "GET", "/", true)
				r.until(func(f http2.Frame) bool { h, ok := f.(*http2.MetaHeadersFrame); return ok && h.StreamID == 101 })
			}
		})
	}
}

func TestPreface(t *testing.T) {
	s := start(t, Config{}, false, func(http.ResponseWriter, *http.Request) {})
	r := s.dial(t)
	var first bool
	r.until(func(f http2.Frame) bool {
		if !first {
			if settings, ok := f.(*http2.SettingsFrame); !ok || settings.IsAck() {
				t.Errorf("the first frame is %v", f)
			}
			first = true
		}
		settings, ok := f.(*http2.SettingsFrame)
		return ok && settings.IsAck()
	})
	data := [8]byte{1, 2, 3}
	r.must(r.WritePing(false, data))
	r.until(func(f http2.Frame) bool { p, ok := f.(*http2.PingFrame); return ok && p.IsAck() && p.Data == data })
	r.must(r.WriteRawFrame(0x77, 0, 0, []byte("unknown")))
	r.open(1, "GET", "/", true)
	r.until(func(f http2.Frame) bool { _, ok := f.(*http2.MetaHeadersFrame); return ok })
}

// TestWindows: never more is sent than the windows of stream and connection let through, whatever they do.
func TestWindows(t *testing.T) {
	const size = 300_000
	s := start(t, Config{}, false, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, size)) })
	r := s.dial(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1000})
	r.open(1, "GET", "/", true)
	windows := map[uint32]int{0: initialWindow, 1: 1000}
	got, step := 0, 0
	grow := func(id uint32, n int) { windows[id] += n; r.must(r.WriteWindowUpdate(id, uint32(n))) }
	done := false
	for !done {
		for windows[0] > 0 && windows[1] > 0 && !done { // as much as it may
			r.until(func(f http2.Frame) bool {
				d, ok := f.(*http2.DataFrame)
				if !ok {
					return false
				}
				n := len(d.Data())
				got += n
				windows[0] -= n
				windows[1] -= n
				done = d.StreamEnded()
				return true
			})
		}
		if windows[0] < 0 || windows[1] < 0 {
			t.Fatalf("more was sent than was let: %v", windows)
		}
		switch step++; {
		case done:
		case step == 3: // a window may become negative
			windows[1] -= 900
			r.must(r.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100}))
		case windows[1] <= 0:
			grow(1, 40_000)
		default:
			grow(0, 50_000)
		}
	}
	if got != size {
		t.Errorf("%d bytes, want %d", got, size)
	}
}

// TestSlowStreamHoldsNoOther: a stream whose window is full does not keep others of its connection.
func TestSlowStreamHoldsNoOther(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/large" {
			_, _ = w.Write(make([]byte, 1<<20))
		}
	})
	r := s.dial(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10})
	r.must(r.WriteWindowUpdate(0, 1<<20))
	r.open(1, "GET", "/large", true)
	r.open(3, "GET", "/", true)
	r.until(func(f http2.Frame) bool { h, ok := f.(*http2.MetaHeadersFrame); return ok && h.StreamID == 3 })
	// A reset frees the handler that waits.
	r.must(r.WriteRSTStream(1, http2.ErrCodeCancel))
	s.idles(t)
}

// idles waits until no handler runs.
func (s *server) idles(t *testing.T) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, "no handler runs", testkit.Holds(func() bool {
		s.h2.mu.Lock()
		defer s.h2.mu.Unlock()
		running := 0
		for c := range s.h2.conns {
			c.mu.Lock()
			running += c.running
			c.mu.Unlock()
		}
		return running == 0
	}))
}

// TestManyStreams: there are never more streams than were offered, nor more handlers, however fast a client resets its requests.
func TestManyStreams(t *testing.T) {
	hold := make(chan struct{})
	s := start(t, Config{MaxStreams: 3}, false, func(http.ResponseWriter, *http.Request) { <-hold })
	r := s.dial(t)
	for i := range uint32(4) {
		r.open(1+2*i, "GET", "/", true)
	}
	if code, connection := r.told(); connection || code != http2.ErrCodeProtocol && code != http2.ErrCodeRefusedStream {
		t.Errorf("one stream too many: %v, %v", code, connection)
	}
	// Reset and made anew: the handlers still run, so these wait, up to a number.
	for i := range uint32(3) {
		r.must(r.WriteRSTStream(1+2*i, http2.ErrCodeCancel))
	}
	for i := range uint32(20) {
		id := 11 + 2*i
		r.open(id, "GET", "/", true)
		r.must(r.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	if code, connection := r.told(); !connection || code != http2.ErrCodeEnhanceYourCalm {
		t.Errorf("the server says %v, %v", code, connection)
	}
	close(hold)
}

// TestLongHeaders: header fields in continuations, and more than the server takes.
func TestLongHeaders(t *testing.T) {
	s := start(t, Config{MaxHeader: 64 << 10}, false, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Long", req.Header.Get("Long")) // longer than a frame
	})
	r := s.dial(t)
	long := strings.Repeat("x", 40<<10)
	block := r.fields(":method", "GET", ":scheme", "https", ":authority", "example.org", ":path", "/", "long", long)
	r.must(r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block[:10000], EndStream: true}))
	r.must(r.WriteContinuation(1, false, block[10000:20000]))
	r.must(r.WriteContinuation(1, true, block[20000:]))
	r.until(func(f http2.Frame) bool {
		h, ok := f.(*http2.MetaHeadersFrame)
		if ok {
			for _, field := range h.Fields {
				if field.Name == "long" && field.Value == long {
					return true
				}
			}
			t.Fatal("the header came back otherwise")
		}
		return false
	})
	more := []string{}
	for i := range 70 {
		more = append(more, fmt.Sprintf("n%d", i), strings.Repeat("y", 1000))
	}
	r.open(3, "GET", "/", true, more...)
	r.until(func(f http2.Frame) bool {
		h, ok := f.(*http2.MetaHeadersFrame)
		return ok && h.PseudoValue("status") == "431"
	})
}

// TestStalledConnectionIsClosed: a client that takes nothing keeps its handlers for a while only.
func TestStalledConnectionIsClosed(t *testing.T) {
	s := start(t, Config{Stall: 50 * time.Millisecond}, false, func(w http.ResponseWriter, _ *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 1<<20)); err != nil {
				return
			}
		}
	})
	r := s.dial(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: maxWindow})
	r.must(r.WriteWindowUpdate(0, maxWindow-initialWindow))
	r.open(1, "GET", "/", true)
	r.until(func(f http2.Frame) bool { _, ok := f.(*http2.DataFrame); return ok })
	s.idles(t)
}

// TestUnreadAnswers: a client that asks for answers that it does not read is left.
func TestUnreadAnswers(t *testing.T) {
	s := start(t, Config{}, false, func(http.ResponseWriter, *http.Request) {})
	r := s.dial(t)
	var pings bytes.Buffer
	framer := http2.NewFramer(&pings, nil)
	for range 1000 {
		r.must(framer.WritePing(false, [8]byte{}))
	}
	for range 1_000_000 {
		if _, err := r.conn.Write(pings.Bytes()); err != nil {
			if errors.Is(err, os.ErrDeadlineExceeded) {
				t.Error("the server takes no more, and does not say so")
			}
			return
		}
	}
	t.Error("the connection lives on")
}

// TestRefund: what is sent to handlers that do not read it does not use up the connection.
func TestRefund(t *testing.T) {
	s := start(t, Config{StreamWindow: 1 << 16, ConnWindow: 1 << 17}, false, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/close" {
			_ = req.Body.Close()
		}
	})
	client := s.Client()
	for i := range 100 {
		resp, err := client.Post(s.URL+[]string{"/", "/close"}[i%2], "", strings.NewReader(strings.Repeat("x", 50_000)))
		if err != nil {
			t.Fatal(err)
		}
		_ = resp.Body.Close()
	}
}

// TestRetire: a client that is asked to go is served what it asked for before it knew, and then told what that was.
func TestRetire(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/go" {
			w.Header().Set("Connection", "close")
		}
	})
	r := s.dial(t)
	r.open(1, "GET", "/go", true)
	last := func() (id uint32) {
		r.until(func(f http2.Frame) bool {
			g, ok := f.(*http2.GoAwayFrame)
			if ok {
				id = g.LastStreamID
			}
			return ok
		})
		return id
	}
	if id := last(); id != maxStreamID {
		t.Errorf("first, the last stream is said to be %d", id)
	}
	r.open(3, "GET", "/", true)
	r.until(func(f http2.Frame) bool {
		h, ok := f.(*http2.MetaHeadersFrame)
		return ok && h.StreamID == 3 && h.PseudoValue("status") == "200"
	})
	if id := last(); id != 3 {
		t.Errorf("then, the last stream is said to be %d", id)
	}
}
