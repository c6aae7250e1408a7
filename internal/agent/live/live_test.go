package live_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"barque.dev/internal/agent/live"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server answers live connections while it is on.
type server struct {
	*httptest.Server
	mu   sync.Mutex
	off  chan struct{} // closed when off
	path string
}

func newServer(t *testing.T) *server {
	s := &server{off: make(chan struct{})}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		off := s.off
		s.path = r.URL.Path
		s.mu.Unlock()
		ticker := time.NewTicker(20 * time.Millisecond)
		defer ticker.Stop()
		for {
			select {
			case <-off:
				panic(http.ErrAbortHandler)
			case <-r.Context().Done():
				return
			case <-ticker.C:
				if _, err := w.Write([]byte("alive\n")); err != nil {
					return
				}
				w.(http.Flusher).Flush()
			}
		}
	}))
	t.Cleanup(func() { s.turnOff(); s.Close() })
	return s
}

func (s *server) turnOff() {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-s.off:
	default:
		close(s.off)
	}
}

func (s *server) turnOn() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.off = make(chan struct{})
}

func TestMonitor(t *testing.T) {
	a, b := newServer(t), newServer(t)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	lost, found := make(chan time.Time, 10), make(chan time.Time, 10)
	const bound = 500 * time.Millisecond
	m, err := live.New(live.Config{
		NodeName: "n 1", Bound: bound, Margin: 100 * time.Millisecond,
		Servers: func() []live.Server { return []live.Server{{URL: a.URL, Client: client}, {URL: b.URL, Client: client}} },
		Lost:    func() { lost <- time.Now() }, Found: func() { found <- time.Now() },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()

	// One server is enough, for longer than the bound.
	a.turnOff()
	select {
	case <-lost:
		t.Fatal("cut off while a server answers")
	case <-time.After(2 * bound):
	}
	if !m.Connected() {
		t.Error("not connected")
	}
	cut := time.Now()
	b.turnOff()
	if took := (<-lost).Sub(cut); took > bound || took < bound-200*time.Millisecond {
		t.Errorf("told after %s, with a bound of %s", took, bound)
	}
	if m.Connected() {
		t.Error("connected")
	}
	a.turnOn()
	<-found
	if !m.Connected() {
		t.Error("not connected again")
	}
	if a.mu.Lock(); !strings.HasSuffix(a.path, "/barque/v1/nodes/n 1/live") {
		t.Errorf("path %q", a.path)
	}
	a.mu.Unlock()
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	f := func() {}
	servers := func() []live.Server { return nil }
	for _, c := range []live.Config{{}, {NodeName: "n", Lost: f, Found: f}, {NodeName: "n", Servers: servers, Lost: f, Found: f, Bound: time.Second, Margin: time.Second}} {
		if _, err := live.New(c); err == nil {
			t.Errorf("%+v was taken", c)
		}
	}
}
