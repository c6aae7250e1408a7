package probe

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// store is an API server that knows one ConfigMap.
type store struct {
	mu       sync.Mutex
	held     *corev1.ConfigMap
	revision int
	// before is called ahead of each write, and may answer instead.
	before func(w http.ResponseWriter, n string) (answered bool)
}

func (s *store) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var sent corev1.ConfigMap
	if r.Method != http.MethodGet {
		if err := json.NewDecoder(r.Body).Decode(&sent); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case r.Method == http.MethodGet:
	case s.held != nil && sent.ResourceVersion != s.held.ResourceVersion:
		http.Error(w, "conflict", http.StatusConflict)
		return
	case s.before != nil && s.before(w, sent.Data["n"]):
		return
	default:
		s.write(&sent)
	}
	_ = json.NewEncoder(w).Encode(s.held)
}

func (s *store) write(sent *corev1.ConfigMap) {
	s.revision++
	sent.ResourceVersion = strconv.Itoa(s.revision)
	s.held = sent
}

// serve serves a store; the configuration trusts it.
func serve(t *testing.T, h http.Handler) (string, *tls.Config) {
	t.Helper()
	s := httptest.NewUnstartedServer(h)
	s.EnableHTTP2 = true
	s.StartTLS()
	t.Cleanup(s.Close)
	return s.URL, s.Client().Transport.(*http.Transport).TLSClientConfig
}

func TestALostServerCostsAnotherAttempt(t *testing.T) {
	lost := httptest.NewServer(nil)
	lost.Close()
	url, config := serve(t, &store{})
	p := New(config, strings.Replace(lost.URL, "http:", "https:", 1), url)
	chain, err := NewChain(t.Context(), p, "default", "c")
	if err != nil {
		t.Fatal(err)
	}
	if err := chain.write(t.Context()); err != nil || chain.Written() != 1 {
		t.Errorf("%d writes, %v", chain.Written(), err)
	}
}

func TestAChainKnowsAWriteWhoseAnswerWasLost(t *testing.T) {
	s := &store{}
	lose := true
	s.before = func(w http.ResponseWriter, n string) bool {
		if n != "1" || !lose {
			return false
		}
		lose = false
		s.write(&corev1.ConfigMap{Data: map[string]string{"n": "1"}})
		http.Error(w, "went away", http.StatusInternalServerError)
		return true
	}
	url, config := serve(t, s)
	chain, err := NewChain(t.Context(), New(config, url), "default", "c")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := chain.write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if chain.Written() != 2 || s.held.Data["n"] != "2" {
		t.Errorf("%d writes were acknowledged, the server has %q", chain.Written(), s.held.Data["n"])
	}
}

func TestAChainBreaksWhenAnAcknowledgedWriteIsLost(t *testing.T) {
	s := &store{}
	url, config := serve(t, s)
	chain, err := NewChain(t.Context(), New(config, url), "default", "c")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for range 3 {
		if err := chain.write(ctx); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	s.write(&corev1.ConfigMap{Data: map[string]string{"n": "1"}}) // as from an older backup
	s.mu.Unlock()
	if err := chain.write(ctx); err == nil || !strings.Contains(err.Error(), "is lost") {
		t.Errorf("the write after a lost one: %v", err)
	}
}

// A reader counts answers, and does not take a stale one for good.
func TestAReaderOfAChain(t *testing.T) {
	s := &store{}
	url, config := serve(t, s)
	chain, err := NewChain(t.Context(), New(config, url), "default", "c")
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := chain.write(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	reads := make(chan time.Time)
	failed := make(chan error, 1)
	go func() { failed <- chain.KeepReading(t.Context(), New(config, url), reads) }()
	for range 3 {
		<-reads
	}
	s.mu.Lock()
	s.write(&corev1.ConfigMap{Data: map[string]string{"n": "1"}}) // as from a server that is behind
	s.mu.Unlock()
	for range reads { // those that were under way
	}
	if err := <-failed; !errors.Is(err, ErrLost) || !strings.Contains(err.Error(), "a read that shows 1") {
		t.Errorf("a stale read: %v", err)
	}
}

func TestLongestGap(t *testing.T) {
	zero := time.Unix(100, 0)
	for name, c := range map[string]struct {
		writes []int // milliseconds
		want   time.Duration
	}{
		"none":                       {},
		"only before the fault":      {writes: []int{-900, -400}},
		"one that spans the fault":   {writes: []int{-10, 300, 310}, want: 310 * time.Millisecond},
		"a longer one later":         {writes: []int{-10, 300, 900}, want: 600 * time.Millisecond},
		"longer ones before it end":  {writes: []int{-900, -5, 10}, want: 15 * time.Millisecond},
		"the first after it is late": {writes: []int{50, 60}, want: 10 * time.Millisecond},
	} {
		ch := make(chan time.Time, len(c.writes))
		slices.Sort(c.writes)
		for _, ms := range c.writes {
			ch <- zero.Add(time.Duration(ms) * time.Millisecond)
		}
		close(ch)
		if got := LongestGap(ch, zero); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
