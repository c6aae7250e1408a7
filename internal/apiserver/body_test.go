package apiserver_test

import (
	"io"
	"net/http"
	"testing"
	"time"

	"barque.dev/internal/apiserver"
)

// TestSlowSender: who sends the body of a request more slowly than the request may take is told so, by both versions of HTTP.
func TestSlowSender(t *testing.T) {
	c := start(t, func(cfg *apiserver.Config) { cfg.Limits.Request = 300 * time.Millisecond })
	for _, version2 := range []bool{false, true} {
		transport := &http.Transport{TLSClientConfig: c.tlsConfig(t, "admin", "system:masters"), ForceAttemptHTTP2: version2}
		if !version2 {
			transport.TLSClientConfig.NextProtos = []string{"http/1.1"}
		}
		body, sender := io.Pipe()
		go func() { _, _ = sender.Write([]byte(`{"metadata":`)) }()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, c.url+"/api/v1/namespaces", body)
		if err != nil {
			t.Fatal(err)
		}
		req.ContentLength = 100
		req.Header.Set("Content-Type", "application/json")
		began := time.Now()
		resp, err := (&http.Client{Transport: transport}).Do(req)
		if err != nil {
			t.Errorf("HTTP/2 %v: %v", version2, err)
			continue
		}
		if resp.StatusCode != http.StatusGatewayTimeout || (resp.ProtoMajor == 2) != version2 {
			t.Errorf("HTTP/2 %v: %s by %s", version2, resp.Status, resp.Proto)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("HTTP/2 %v: answered after %v", version2, took)
		}
		_ = resp.Body.Close()
		_ = sender.Close()
		transport.CloseIdleConnections()
	}
}
