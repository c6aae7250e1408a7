package h2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"pgregory.net/rapid"
)

// step is one thing that a handler does.
type step struct {
	do   string
	n    int
	text string
}

func drawStep(t *rapid.T) step {
	return step{
		do: rapid.SampledFrom([]string{"write", "write", "write", "flush", "header", "status", "inform", "read", "length", "type", "trailer", "late trailer",
			"abort", "connection"}).Draw(t, "do"),
		n:    rapid.SampledFrom([]int{0, 1, 10, 511, 512, 513, 4095, 4096, 4097, 16375, 16384, 20_000, 65_500, 70_000, 200_000}).Draw(t, "n"),
		text: rapid.SampledFrom([]string{"", "a", "text/plain", "b\x00", "héllo"}).Draw(t, "text"),
	}
}

// play is a handler that does what it is told. What it sees goes into note, once it is done.
func play(steps []step, note *bytes.Buffer) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		fmt.Fprintf(note, "%s %s %s %v %d %v\n", req.Method, req.RequestURI, req.Host, req.Proto, req.ContentLength, req.Trailer)
		for _, key := range slices.Sorted(maps.Keys(req.Header)) {
			fmt.Fprintf(note, "%s: %q\n", key, req.Header[key])
		}
		for _, s := range steps {
			switch s.do {
			case "write":
				n, err := w.Write(bytes.Repeat([]byte{byte('a' + s.n%26)}, s.n))
				fmt.Fprintf(note, "wrote %d, %v\n", n, err != nil)
			case "flush":
				w.(http.Flusher).Flush()
			case "header":
				w.Header().Add("Some-Name", s.text)
			case "status":
				code := []int{200, 204, 304, 404, 500}[s.n%5]
				if code > 299 {
					// After such an answer net/http's client sends no more of the body, nor that this was all.
					_, _ = io.Copy(io.Discard, req.Body)
				}
				w.WriteHeader(code)
			case "inform":
				w.WriteHeader(103)
			case "read":
				n, err := io.ReadFull(req.Body, make([]byte, s.n))
				fmt.Fprintf(note, "read %d, %v, %v\n", n, err, req.Trailer)
			case "length":
				length := 0
				for _, other := range steps {
					if other.do == "write" {
						length += other.n
					}
				}
				w.Header().Set("Content-Length", fmt.Sprint(length))
			case "type":
				w.Header()["Content-Type"] = []string{s.text}
			case "trailer":
				w.Header().Add("Trailer", "At-End")
				w.Header().Set("At-End", s.text)
			case "late trailer":
				w.Header().Set(http.TrailerPrefix+"Last", s.text)
			case "connection":
				w.Header().Set("Connection", "keep-alive")
			case "abort":
				panic(http.ErrAbortHandler)
			}
		}
		// With net/http, a client that is answered before it was read may see its answer end in an error.
		_, _ = io.Copy(io.Discard, req.Body)
	}
}

// seen is what a client sees of an exchange, which may take as long as limit.
func seen(t *rapid.T, s *server, method string, body int, chunked bool, limit time.Duration) string {
	content := func() (io.ReadCloser, error) {
		return io.NopCloser(strings.NewReader(strings.Repeat("q", body))), nil
	}
	req, err := http.NewRequest(method, s.URL+"/path?query=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	if body > 0 {
		req.Body, _ = content()
		req.GetBody = content // net/http's server closes connections now and then: the client makes its request again
		if req.ContentLength = int64(body); chunked {
			req.ContentLength = -1
		}
	}
	req.Host = "example.org"
	if chunked && body > 0 {
		req.Trailer = http.Header{"After": {"all"}}
	}
	req.Header.Add("Twice", "1")
	req.Header.Add("Twice", "2")
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	resp, err := s.Client().Do(req.WithContext(ctx))
	if ctx.Err() != nil {
		return "stuck"
	}
	if err != nil {
		return "failed"
	}
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if ctx.Err() != nil {
		return "stuck"
	}
	resp.Header.Del("Date")
	return fmt.Sprintf("%s %d %v %d %v %v %v %x", resp.Status, resp.ContentLength, resp.Header, len(got), err != nil, resp.Trailer, resp.Uncompressed, got)
}

// TestHandlersAndClientsSeeWhatNetHTTPShows: by net/http's server and by this one, a handler and its client see the same.
func TestHandlersAndClientsSeeWhatNetHTTPShows(t *testing.T) {
	var steps []step
	var note bytes.Buffer
	var lock sync.Mutex
	handler := func(w http.ResponseWriter, req *http.Request) {
		lock.Lock()
		defer lock.Unlock()
		play(steps, &note)(w, req)
	}
	ours, theirs := start(t, Config{}, false, handler), start(t, Config{}, true, handler)
	rapid.Check(t, func(t *rapid.T) {
		drawn := rapid.SliceOfN(rapid.Custom(drawStep), 0, 8).Draw(t, "steps")
		method := rapid.SampledFrom([]string{"GET", "POST", "HEAD", "PUT", "DELETE"}).Draw(t, "method")
		body, chunked := 0, rapid.Bool().Draw(t, "chunked")
		if method != "GET" && method != "HEAD" {
			body = rapid.SampledFrom([]int{0, 1, 100, 5000, 70_000, 300_000}).Draw(t, "body")
		}
		var answers, notes [2]string
		limits := []time.Duration{20 * time.Second, time.Second} // theirs is left out when it lets its client wait
		for i, s := range []*server{ours, theirs} {
			lock.Lock()
			steps = drawn
			note.Reset()
			lock.Unlock()
			answers[i] = seen(t, s, method, body, chunked, limits[i])
			lock.Lock()
			notes[i] = strings.ReplaceAll(note.String(), s.URL, "")
			lock.Unlock()
		}
		if answers[0] == "stuck" {
			t.Fatal("the client waits for ever")
		}
		if answers[1] == "stuck" {
			return // net/http lets its client wait for ever, which is no model
		}
		// Who writes after the client has what it wants may learn of it or not; an aborted answer arrives in part.
		aborted := slices.ContainsFunc(drawn, func(s step) bool { return s.do == "abort" })
		if !aborted && answers[0] != answers[1] {
			t.Errorf("the client sees\n%.600s\nby net/http\n%.600s", answers[0], answers[1])
		}
		if aborted && (answers[0] == "failed" || strings.Contains(answers[0], " true map")) != (answers[1] == "failed" || strings.Contains(answers[1], " true map")) {
			t.Errorf("aborted, the client sees\n%.600s\nby net/http\n%.600s", answers[0], answers[1])
		}
		if method != "HEAD" && notes[0] != notes[1] {
			t.Errorf("the handler sees\n%s\nby net/http\n%s", notes[0], notes[1])
		}
	})
}

// TestLongAnswersFillRecords: they leave in few large writes.
func TestLongAnswersFillRecords(t *testing.T) {
	const size = 8 << 20
	chunk := make([]byte, 4*payload)
	s := start(t, Config{}, false, func(w http.ResponseWriter, _ *http.Request) {
		for left := size; left > 0; left -= len(chunk) {
			_, _ = w.Write(chunk[:min(left, len(chunk))])
		}
	})
	resp, err := s.Client().Get(s.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	n, err := io.Copy(io.Discard, resp.Body)
	if err != nil || n != size {
		t.Fatal(n, err)
	}
	writes, bytes := s.writes.Load(), s.bytes.Load()
	// A write is short where the client's window ends, which is as often as the client is slow to open it. Frames
	// that are written singly, as net/http does, make four times as many at least.
	if most := int64(2 * size / batch); writes > most {
		t.Errorf("%d writes, want %d at most", writes, most)
	}
	if overhead := bytes - size; overhead > size/256 {
		t.Errorf("%d bytes around %d", overhead, size)
	}
}

func TestDeadlines(t *testing.T) {
	errs := make(chan error, 1)
	s := start(t, Config{}, false, func(w http.ResponseWriter, req *http.Request) {
		control := http.NewResponseController(w)
		now := time.Now().Add(time.Millisecond)
		if req.URL.Path == "/read" {
			_ = control.SetReadDeadline(now)
			_, err := io.ReadAll(req.Body)
			errs <- err
			return
		}
		_ = control.SetWriteDeadline(now)
		for {
			if _, err := w.Write(make([]byte, 100_000)); err != nil {
				errs <- err
				return
			}
		}
	})
	r := s.dial(t)
	r.open(1, "POST", "/read", false)
	if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("reading: %v", err)
	}
	r.open(3, "GET", "/write", true)
	if err := <-errs; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("writing: %v", err)
	}
	r.until(func(f http2.Frame) bool {
		reset, ok := f.(*http2.RSTStreamFrame)
		return ok && reset.StreamID == 3 && reset.ErrCode == http2.ErrCodeInternal
	})
}

// TestCanceled: the context ends with the request, and with the connection.
func TestCanceled(t *testing.T) {
	began, ended := make(chan struct{}), make(chan error)
	s := start(t, Config{}, false, func(_ http.ResponseWriter, req *http.Request) {
		began <- struct{}{}
		<-req.Context().Done()
		_, err := req.Body.Read(make([]byte, 1))
		ended <- err
	})
	r := s.dial(t)
	r.open(1, "POST", "/", false)
	<-began
	r.must(r.WriteRSTStream(1, http2.ErrCodeCancel))
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the body of a request that was canceled ends with %v", err)
	}
	r.open(3, "POST", "/", false)
	<-began
	_ = r.conn.Close()
	if err := <-ended; err == nil || errors.Is(err, io.EOF) {
		t.Errorf("the body of a lost request ends with %v", err)
	}
}

// TestShutdown: requests that run are answered, and new ones are not taken.
func TestShutdown(t *testing.T) {
	began, hold := make(chan struct{}), make(chan struct{})
	s := start(t, Config{}, false, func(w http.ResponseWriter, _ *http.Request) {
		close(began)
		<-hold
		_, _ = io.WriteString(w, "done")
	})
	r := s.dial(t)
	r.open(1, "GET", "/", true)
	<-began
	stopped := make(chan error, 1)
	go func() { stopped <- s.Config.Shutdown(context.Background()) }()
	if code, connection := r.told(); !connection || code != http2.ErrCodeNo {
		t.Fatalf("the server says %v, %v", code, connection)
	}
	r.open(3, "GET", "/", true) // is not looked at
	r.must(r.WriteData(3, true, nil))
	r.must(r.WriteWindowUpdate(3, 5))
	close(hold)
	r.until(func(f http2.Frame) bool {
		d, ok := f.(*http2.DataFrame)
		return ok && string(d.Data()) == "done" && d.StreamEnded()
	})
	if err := <-stopped; err != nil {
		t.Error(err)
	}
}

func TestIdleConnectionsGo(t *testing.T) {
	s := start(t, Config{Idle: 20 * time.Millisecond}, false, func(http.ResponseWriter, *http.Request) {})
	r := s.dial(t)
	r.open(1, "GET", "/", true)
	if code, connection := r.told(); !connection || code != http2.ErrCodeNo {
		t.Errorf("the server says %v, %v", code, connection)
	}
}

func TestConnectionClose(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, _ *http.Request) { w.Header().Set("Connection", "close") })
	r := s.dial(t)
	r.open(1, "GET", "/", true)
	if code, connection := r.told(); !connection || code != http2.ErrCodeNo {
		t.Errorf("the server says %v, %v", code, connection)
	}
	r.until(func(f http2.Frame) bool {
		h, ok := f.(*http2.MetaHeadersFrame)
		if !ok {
			return false
		}
		if slices.ContainsFunc(h.Fields, func(f hpack.HeaderField) bool { return f.Name == "connection" }) {
			t.Error("the header is sent")
		}
		return h.PseudoValue("status") == "200"
	})
}

// TestExpect: a client that waits for it is asked for its body when the handler reads it.
func TestExpect(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, req *http.Request) { _, _ = io.Copy(w, req.Body) })
	r := s.dial(t)
	r.open(1, "POST", "/", false, "expect", "100-continue")
	r.until(func(f http2.Frame) bool {
		h, ok := f.(*http2.MetaHeadersFrame)
		return ok && h.PseudoValue("status") == "100"
	})
	r.must(r.WriteData(1, true, []byte("body")))
	r.until(func(f http2.Frame) bool { d, ok := f.(*http2.DataFrame); return ok && string(d.Data()) == "body" })
}

// TestTogether: many requests at once on a few connections, both ways, each gets its own back.
func TestTogether(t *testing.T) {
	s := start(t, Config{}, false, func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/trickle" {
			for i := range 50 {
				fmt.Fprintf(w, "%d %s\n", i, req.URL.RawQuery)
				w.(http.Flusher).Flush()
			}
			return
		}
		_, _ = io.Copy(w, req.Body)
	})
	var group sync.WaitGroup
	for worker := range 40 {
		client := s.Client()
		if worker%10 == 0 {
			transport := client.Transport.(*http.Transport).Clone()
			defer transport.CloseIdleConnections()
			client = &http.Client{Transport: transport}
		}
		group.Go(func() {
			for i := range 20 {
				body := bytes.Repeat([]byte{byte(worker), byte(i)}, 1+(worker*7919+i*104729)%80_000)
				path := "/"
				if i%4 == 0 {
					path = fmt.Sprintf("/trickle?%d-%d", worker, i)
				}
				resp, err := client.Post(s.URL+path, "", bytes.NewReader(body))
				if err != nil {
					t.Error(err)
					return
				}
				got, err := io.ReadAll(resp.Body)
				_ = resp.Body.Close()
				if err != nil {
					t.Error(err)
					return
				}
				if i%4 == 0 {
					if lines := strings.Count(string(got), fmt.Sprintf(" %d-%d\n", worker, i)); lines != 50 {
						t.Errorf("%d lines", lines)
					}
				} else if !bytes.Equal(got, body) {
					t.Errorf("%d bytes came back of %d", len(got), len(body))
				}
			}
		})
	}
	group.Wait()
	s.idles(t)
}

func BenchmarkServe(b *testing.B) {
	for _, size := range []int{0, 1000, 8 << 20} {
		chunk := make([]byte, min(size, 4*payload))
		for _, stock := range []bool{true, false} {
			b.Run(fmt.Sprintf("bytes=%d/stock=%v", size, stock), func(b *testing.B) {
				s := start(b, Config{}, stock, func(w http.ResponseWriter, _ *http.Request) {
					for left := size; left > 0; left -= len(chunk) {
						_, _ = w.Write(chunk[:min(left, len(chunk))])
					}
				})
				client := s.Client()
				b.ReportAllocs()
				b.SetBytes(int64(size))
				for b.Loop() {
					resp, err := client.Get(s.URL)
					if err != nil {
						b.Fatal(err)
					}
					_, _ = io.Copy(io.Discard, resp.Body)
					_ = resp.Body.Close()
				}
			})
		}
	}
}
