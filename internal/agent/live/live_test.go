package live_test

import (
	"context"
	"net/http"
	"net/http/httptest"
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
	mu      sync.Mutex
	off     chan struct{} // closed when off
	request string
}

func newServer(t *testing.T) *server {
	s := &server{off: make(chan struct{})}
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.mu.Lock()
		off := s.off
		s.request = r.Method + " " + r.URL.Path + " " + r.Proto
		s.mu.Unlock()
		control := http.NewResponseController(w)
		done := make(chan struct{})
		defer close(done)
		go func() {
			select {
			case <-off:
				_ = control.SetReadDeadline(time.Now())
			case <-done:
			}
		}()
		w.WriteHeader(http.StatusOK)
		buf := make([]byte, 64)
		for {
			_ = control.Flush()
			n, err := r.Body.Read(buf)
			if err != nil {
				panic(http.ErrAbortHandler)
			}
			select {
			case <-off:
				panic(http.ErrAbortHandler)
			default:
			}
			if _, err := w.Write(buf[:n]); err != nil {
				return
			}
		}
	}))
	s.EnableHTTP2 = true
	s.StartTLS()
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
	a, b, c := newServer(t), newServer(t), newServer(t)
	lost, found := make(chan time.Time, 10), make(chan time.Time, 10)
	const bound = 500 * time.Millisecond
	m, err := live.New(live.Config{
		NodeName: "n 1", Bound: bound, Margin: 100 * time.Millisecond,
		Servers: func() []live.Server {
			return []live.Server{{URL: a.URL, Client: a.Client()}, {URL: b.URL, Client: b.Client()}, {URL: c.URL, Client: c.Client()}}
		},
		Lost: func() { lost <- time.Now() }, Found: func() { found <- time.Now() },
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()

	// Two of three servers are enough, for longer than the bound.
	a.turnOff()
	select {
	case <-lost:
		t.Fatal("cut off while most servers answer")
	case <-time.After(2 * bound):
	}
	if !m.Connected() {
		t.Error("not connected")
	}
	// One is not: the other two may call the node lost.
	cut := time.Now()
	b.turnOff()
	if took := (<-lost).Sub(cut); took > bound || took < bound-250*time.Millisecond {
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
	if a.mu.Lock(); a.request != "POST /barque/v1/nodes/n 1/live HTTP/2.0" {
		t.Errorf("request %q", a.request)
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
