package apiserver

import (
	"bytes"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/server/healthz"
)

// A check that fails is told once, and again when it fails for another reason or passes.
func TestHealthIsToldWhenItChanges(t *testing.T) {
	var out bytes.Buffer
	told := &verdicts{log: slog.New(slog.NewTextHandler(&out, nil)), endpoint: "readyz", last: map[string]string{}}
	var state error
	checks := []healthz.HealthChecker{
		healthz.NamedCheck("ping", func(*http.Request) error { return nil }),
		healthz.NamedCheck("etcd", func(*http.Request) error { return state }),
	}
	for i, step := range []struct {
		state error
		code  int
		says  string
	}{
		{nil, 200, ""},
		{errors.New("no leader"), 500, "level=WARN msg=\"health check failed\" endpoint=readyz check=etcd error=\"no leader\""},
		{errors.New("no leader"), 500, ""},
		{errors.New("the watch is broken"), 500, "error=\"the watch is broken\""},
		{nil, 200, "level=INFO msg=\"health check passes again\" endpoint=readyz check=etcd"},
		{nil, 200, ""},
	} {
		out.Reset()
		state = step.state
		for range 3 { // whoever asks again learns the same, and the log nothing
			w := httptest.NewRecorder()
			serveHealth(w, httptest.NewRequest(http.MethodGet, "/readyz", nil), told, checks)
			if w.Code != step.code {
				t.Errorf("step %d: %d, want %d", i, w.Code, step.code)
			}
		}
		if lines := strings.Count(out.String(), "\n"); !strings.Contains(out.String(), step.says) || (step.says == "") != (lines == 0) || lines > 1 {
			t.Errorf("step %d: the log says %q, want %q", i, out.String(), step.says)
		}
	}
}
