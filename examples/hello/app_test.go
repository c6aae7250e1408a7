package main

import (
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"barque.dev/internal/testkit"
)

func testOptions(t *testing.T) options {
	t.Helper()
	o := options{config: t.TempDir(), secret: t.TempDir()}
	if err := os.WriteFile(filepath.Join(o.config, "message"), []byte("Ahoy & <welcome>\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return o
}

func environment(name string) string {
	return map[string]string{"POD_NAME": "hello-1", "POD_NAMESPACE": "default", "NODE_NAME": "server-2", "POD_IP": "10.42.1.7"}[name]
}

func get(t *testing.T, h http.Handler, path, accept string) *httptest.ResponseRecorder {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil)
	r.Header.Set("Accept", accept)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func TestAnswers(t *testing.T) {
	o := testOptions(t)
	a := newApp(o, environment, slog.New(slog.DiscardHandler))
	if got, want := get(t, a, "/", "*/*").Body.String(), "hello dev from hello-1 on server-2: Ahoy & <welcome>\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	html := get(t, a, "/", "text/html").Body.String()
	for _, want := range []string{"hello-1", "server-2", "10.42.1.7", "Ahoy &amp; &lt;welcome&gt;", "missing"} {
		if !strings.Contains(html, want) {
			t.Errorf("the page does not show %q", want)
		}
	}
	if err := os.WriteFile(filepath.Join(o.secret, "token"), []byte("very secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	body := get(t, a, "/info", "*/*").Body.String()
	var i info
	if err := json.Unmarshal([]byte(body), &i); err != nil {
		t.Fatal(err)
	}
	if !i.Secret || i.Requests != 3 || i.Pod != "hello-1" {
		t.Errorf("info is %+v", i)
	}
	if strings.Contains(body, "very secret") {
		t.Error("the secret is told")
	}
	if got := get(t, a, "/nowhere", "*/*").Code; got != http.StatusNotFound {
		t.Errorf("an unknown path gives %d", got)
	}
}

// TestStops checks the order of a graceful stop: unready first, serving meanwhile, then gone.
func TestStops(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	o := testOptions(t)
	o.address, o.drain = listener.Addr().String(), time.Second
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, o, slog.New(slog.DiscardHandler)) }()
	status := func(path string) int {
		r, err := http.Get("http://" + o.address + path)
		if err != nil {
			return 0
		}
		defer func() { _ = r.Body.Close() }()
		_, _ = io.Copy(io.Discard, r.Body)
		return r.StatusCode
	}
	wait(t, func() bool { return status("/readyz") == http.StatusOK })
	stop()
	wait(t, func() bool { return status("/readyz") == http.StatusServiceUnavailable })
	if got := status("/"); got != http.StatusOK {
		t.Errorf("while draining, / gives %d", got)
	}
	if got := status("/healthz"); got != http.StatusOK {
		t.Errorf("while draining, /healthz gives %d", got)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	if got := status("/"); got != 0 {
		t.Errorf("after the end, / gives %d", got)
	}
}

func wait(t *testing.T, check func() bool) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, "what it waits for", testkit.Holds(check))
}
