package liveness

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newTestTracker(t *testing.T, peers ...Peer) (*Tracker, *httptest.Server) {
	tracker := NewTracker(Config{
		Peers: func() []Peer { return peers }, Client: http.DefaultClient, Log: slog.New(slog.DiscardHandler),
		MayBeat: func(r *http.Request, node string) bool { return r.Header.Get("Node") == node },
		MayAsk:  func(*http.Request) bool { return true },
	})
	s := httptest.NewUnstartedServer(tracker.Handler())
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return tracker, s
}

// A beat is answered with itself, and an agent that falls silent without a word is given up.
func TestBeats(t *testing.T) {
	tracker, s := newTestTracker(t)
	changes := make(chan string, 10)
	tracker.Notify(func(node string) { changes <- node })

	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	body, beats := io.Pipe()
	defer beats.Close()
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+Path+"n1/live", body)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Node", "n1")
	reply, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	defer reply.Body.Close()
	if reply.ProtoMajor != 2 || reply.StatusCode != http.StatusOK {
		t.Fatalf("%s %s", reply.Proto, reply.Status)
	}
	<-changes
	if !tracker.LastHeard("n1").IsZero() {
		t.Error("heard before the first beat")
	}
	lines := bufio.NewScanner(reply.Body)
	var last time.Time
	for i := range 3 {
		last = time.Now()
		fmt.Fprintln(beats, i)
		if !lines.Scan() || lines.Text() != fmt.Sprint(i) {
			t.Fatalf("beat %d was answered by %q", i, lines.Text())
		}
		if tracker.LastHeard("n1").Before(last) {
			t.Error("a beat that was answered was not heard")
		}
	}
	<-changes
	if silent := time.Since(last); silent < Silent || silent > 2*Silent {
		t.Errorf("given up after %s", silent)
	}
	if lines.Scan() {
		t.Errorf("an answer without a beat: %q", lines.Text())
	}
}

func TestOthersMayNotBeat(t *testing.T) {
	tracker, s := newTestTracker(t)
	request, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+Path+"n1/live", http.NoBody)
	if err != nil {
		t.Fatal(err)
	}
	request.Header.Set("Node", "n2")
	reply, err := s.Client().Do(request)
	if err != nil {
		t.Fatal(err)
	}
	_ = reply.Body.Close()
	if reply.StatusCode != http.StatusForbidden || !tracker.LastHeard("n1").IsZero() {
		t.Errorf("%s, heard %s", reply.Status, tracker.LastHeard("n1"))
	}
}

// A server that tells is asked; one that is gone counts as a server, not as one that was asked.
func TestAsk(t *testing.T) {
	other, s := newTestTracker(t)
	other.heard("n1")
	tracker, _ := newTestTracker(t, Peer{Name: "other", URL: s.URL}, Peer{Name: "gone", URL: "https://127.0.0.1:1"})
	tracker.cfg.Client = s.Client()
	addr := netip.MustParseAddrPort(s.Listener.Addr().String())
	o := tracker.Ask(t.Context(), "n1", addr)
	if o.Servers != 3 || o.Asked != 2 || o.Answering != 2 || o.Silence < 0 || o.Silence > time.Minute {
		t.Errorf("%+v", o)
	}
	if o := tracker.Ask(t.Context(), "n2", addr); o.Silence >= 0 {
		t.Errorf("a node that nobody heard: %+v", o)
	}
}
