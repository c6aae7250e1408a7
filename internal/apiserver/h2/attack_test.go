package h2

import (
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"

	"barque.dev/internal/testkit"
)

// settled reads until the server has acknowledged the client's settings.
func (r *raw) settled() {
	r.tb.Helper()
	r.until(func(f http2.Frame) bool { s, ok := f.(*http2.SettingsFrame); return ok && s.IsAck() })
}

// alone is the server's side of its only connection.
func (s *server) alone(t *testing.T) *conn {
	t.Helper()
	s.h2.mu.Lock()
	defer s.h2.mu.Unlock()
	for c := range s.h2.conns {
		return c
	}
	t.Fatal("no connection")
	return nil
}

// comes waits until something is so, on which it looks under the connection's lock.
func (c *conn) comes(t *testing.T, what string, so func() bool) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, what, testkit.Holds(func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return so()
	}))
}

// TestUnreadAnswersWait: answers without a body wait with their streams too when the client reads nothing, so that what is kept
// for it is bounded.
func TestUnreadAnswersWait(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Long", req.URL.RawQuery+strings.Repeat("~", 2000))
		if req.Method == "POST" {
			w.Header().Set("Trailer", "Last")
			w.WriteHeader(http.StatusEarlyHints)
		}
	})
	r := s.dial(t)
	r.settled()
	c := s.alone(t)
	s.gate.Lock()
	requests, crowded := 0, false
	for ; requests < 1000 && !crowded; requests++ {
		id := uint32(2*requests + 1)
		r.open(id, []string{"HEAD", "POST"}[requests%2], fmt.Sprintf("/?%d", id), true)
		c.comes(t, "the answer is ready", func() bool {
			crowded = len(c.out.crowded) > 0
			return crowded || c.lastID == id && c.streams[id] == nil
		})
	}
	c.mu.Lock()
	length := c.out.length()
	c.mu.Unlock()
	s.gate.Unlock()
	if !crowded || length > batch+4<<10 {
		t.Errorf("%d bytes wait after %d requests", length, requests)
	}
	for answered := 0; answered < requests; { // none is lost
		r.until(func(f http2.Frame) bool {
			h, ok := f.(*http2.MetaHeadersFrame)
			if ok && h.PseudoValue("status") == "200" {
				answered++
			}
			return ok
		})
	}
}

// TestCrowdedOnce: a stream that waits for room is remembered once, whatever the client says meanwhile, and not beyond its end.
func TestCrowdedOnce(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) })
	r := s.dial(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	r.settled()
	c := s.alone(t)
	r.must(r.WriteWindowUpdate(0, 1<<22))
	s.gate.Lock()
	defer s.gate.Unlock()
	r.open(1, "GET", "/", true)
	r.open(3, "GET", "/", true)
	c.comes(t, "one writes and one waits", func() bool { return len(c.out.crowded) == 1 })
	c.mu.Lock()
	st, window := c.out.crowded[0], c.out.crowded[0].window
	c.mu.Unlock()
	for i := range int64(50) {
		r.must(r.WriteWindowUpdate(st.id, 1))
		c.comes(t, "it waits again", func() bool {
			return st.window == window+1+i && len(st.wake) == 0 && slices.Contains(c.out.crowded, st)
		})
	}
	c.mu.Lock()
	if n := len(c.out.crowded); n != 1 {
		t.Errorf("it waits %d times", n)
	}
	c.mu.Unlock()
	r.must(r.WriteRSTStream(st.id, http2.ErrCodeCancel))
	c.comes(t, "it waits no more", func() bool { return len(c.out.crowded) == 0 && c.streams[st.id] == nil })
}

// TestConnectionWindowIsSharedInTurn: what comes into the connection's window goes to who has waited longest, and is lost with
// nobody.
func TestConnectionWindowIsSharedInTurn(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 100_000)) })
	r := s.dial(t, http2.Setting{ID: http2.SettingInitialWindowSize, Val: 1 << 20})
	r.settled()
	c := s.alone(t)
	for id := uint32(1); id < 8; id += 2 {
		r.open(id, "GET", "/", true)
	}
	c.comes(t, "all wait", func() bool { return len(c.out.thirsty) == 4 })
	c.mu.Lock()
	order := slices.Clone(c.out.thirsty)
	c.mu.Unlock()
	r.must(r.WriteRSTStream(order[0].id, http2.ErrCodeCancel))
	r.must(r.WriteWindowUpdate(0, 10))
	// Who waits longest is not asked: a stream may be woken for nothing, and waits after the others then.
	c.comes(t, "one has had it, and all wait again", func() bool { return c.window == 0 && len(c.out.thirsty) == 3 })
	// Two at once, one of which is no more when it comes to it.
	r.must(r.WriteWindowUpdate(0, 20))
	r.must(r.WriteRSTStream(order[2].id, http2.ErrCodeCancel))
	r.must(r.WriteWindowUpdate(0, 1<<20))
	ended := map[uint32]bool{}
	r.until(func(f http2.Frame) bool {
		if d, ok := f.(*http2.DataFrame); ok && d.StreamEnded() {
			ended[d.StreamID] = true
		}
		return ended[order[1].id] && ended[order[3].id]
	})
	s.idles(t)
}

// TestTrailersMayCross: trailers that the client sent before it knew that their stream has ended are no error of the connection.
func TestTrailersMayCross(t *testing.T) {
	s := start(t, Config{}, false, func(http.ResponseWriter, *http.Request) {})
	r := s.dial(t)
	r.open(1, "POST", "/", false, "trailer", "last")
	if code, connection := r.told(); connection || code != http2.ErrCodeNo {
		t.Fatalf("the server says %v, %v", code, connection)
	}
	r.must(r.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: r.fields("last", "x"), EndHeaders: true, EndStream: true}))
	r.open(3, "GET", "/", true)
	r.until(func(f http2.Frame) bool {
		if g, ok := f.(*http2.GoAwayFrame); ok {
			t.Fatalf("the server says %v", g)
		}
		h, ok := f.(*http2.MetaHeadersFrame)
		return ok && h.StreamID == 3
	})
}

// TestDeclaredLengthTakesNoMemory: it takes what has arrived.
func TestDeclaredLengthTakesNoMemory(t *testing.T) {
	s := start(t, Config{}, false, func(_ http.ResponseWriter, req *http.Request) { <-req.Context().Done() })
	r := s.dial(t)
	r.open(1, "POST", "/", false, "content-length", "1000000000")
	r.must(r.WriteData(1, false, []byte("x")))
	r.settled()
	c := s.alone(t)
	c.comes(t, "it arrives", func() bool { return c.streams[1] != nil && c.streams[1].arrived == 1 })
	c.mu.Lock()
	defer c.mu.Unlock()
	if n := cap(c.streams[1].body.buf); n > firstPart {
		t.Errorf("%d bytes for one", n)
	}
}

// TestQueuedResetsAreForgotten: a request that was reset while it waited for a handler keeps no memory.
func TestQueuedResetsAreForgotten(t *testing.T) {
	hold := make(chan struct{})
	s := start(t, Config{MaxStreams: 1}, false, func(http.ResponseWriter, *http.Request) { <-hold })
	defer close(hold)
	r := s.dial(t)
	r.settled()
	c := s.alone(t)
	for id := uint32(1); id < 4; id += 2 {
		r.open(id, "GET", "/", true)
		r.must(r.WriteRSTStream(id, http2.ErrCodeCancel))
	}
	c.comes(t, "the second is in the queue, without its request", func() bool {
		return len(c.queued) == 1 && c.queued[0].id == 3 && c.queued[0].gone != nil && c.queued[0].request == nil
	})
}

// TestHandlerThatEndsItsGoroutine: it counts as one that has ended.
func TestHandlerThatEndsItsGoroutine(t *testing.T) {
	s := start(t, Config{MaxStreams: 1}, false, func(_ http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/exit" {
			runtime.Goexit()
		}
	})
	r := s.dial(t)
	r.open(1, "GET", "/exit", true)
	if code, connection := r.told(); connection || code != http2.ErrCodeInternal {
		t.Fatalf("the server says %v, %v", code, connection)
	}
	r.open(3, "GET", "/", true)
	r.until(func(f http2.Frame) bool { h, ok := f.(*http2.MetaHeadersFrame); return ok && h.StreamID == 3 })
	s.idles(t)
}

// TestTrailersAnnouncedTwice are sent once.
func TestTrailersAnnouncedTwice(t *testing.T) {
	for _, stock := range []bool{true, false} {
		s := start(t, Config{}, stock, func(w http.ResponseWriter, _ *http.Request) {
			w.Header()["Trailer"] = []string{"Last, Last", "Last"}
			_, _ = w.Write([]byte("x"))
			w.Header().Set("Last", "1")
		})
		r := s.dial(t)
		r.open(1, "GET", "/", true)
		r.until(func(f http2.Frame) bool {
			h, ok := f.(*http2.MetaHeadersFrame)
			if !ok || !h.StreamEnded() {
				return false
			}
			if len(h.Fields) != 1 {
				t.Errorf("by net/http (%v): %v", stock, h.Fields)
			}
			return true
		})
	}
}
