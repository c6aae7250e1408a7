package apiserver_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/apiserver/auditlog"
	"barque.dev/internal/pki"
)

// BenchmarkAudit measures requests without an audit log, with one whose policy does not ask about them, and with one that
// writes them into a file at each level. There is no network in it, so that what the log costs is not lost in that.
func BenchmarkAudit(b *testing.B) {
	for _, level := range []string{"off", "None", "Metadata", "Request", "RequestResponse"} {
		b.Run(level, func(b *testing.B) {
			c := start(b, func(cfg *apiserver.Config) {
				if level != "off" {
					cfg.Audit = auditFile(b, level)
				}
			})
			c.wait(b)
			c.measure(b)
		})
	}
}

// auditFile is a log of everything at a level, in a file.
func auditFile(tb testing.TB, level string) *auditlog.Log {
	tb.Helper()
	o := auditlog.Defaults()
	o.PolicyFile, o.Log.Path = filepath.Join(tb.TempDir(), "policy.yaml"), filepath.Join(tb.TempDir(), "audit.log")
	o.Log.MaxSize = 0 // what puts files aside has a goroutine that lives as long as the process
	policy := "apiVersion: audit.k8s.io/v1\nkind: Policy\nomitStages: [RequestReceived]\nrules: [{level: " + level + "}]\n"
	if err := os.WriteFile(o.PolicyFile, []byte(policy), 0o600); err != nil {
		tb.Fatal(err)
	}
	log, err := auditlog.Open(o, slog.New(slog.DiscardHandler))
	if err != nil {
		tb.Fatal(err)
	}
	return log
}

// measure measures requests that read and that write.
func (c *cluster) measure(b *testing.B) {
	const path = "/api/v1/namespaces/default/configmaps"
	ask := c.directly(b)
	config := func(name string) string {
		return fmt.Sprintf(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":%q},"data":{"a":"1","b":"2"}}`, name)
	}
	ask(http.MethodPost, path, config("c"), http.StatusCreated)
	b.Run("get", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			ask(http.MethodGet, path+"/c", "", http.StatusOK)
		}
	})
	made := 0
	b.Run("create", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			made++
			ask(http.MethodPost, path, config(fmt.Sprint("c-", made)), http.StatusCreated)
		}
	})
}

// directly returns a function that has the server answer an administrator's requests without a connection.
func (c *cluster) directly(tb testing.TB) func(method, path, body string, code int) {
	tb.Helper()
	pair := issue(tb, c.pki.Cluster, pki.Client(pki.UserAdmin, pki.GroupMasters))
	leaf, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		tb.Fatal(err)
	}
	state := &tls.ConnectionState{PeerCertificates: []*x509.Certificate{leaf}}
	return func(method, path, body string, code int) {
		req := httptest.NewRequestWithContext(tb.Context(), method, path, bytes.NewReader([]byte(body)))
		req.TLS = state
		req.Header.Set("Accept", "application/json")
		if body != "" {
			req.Header.Set("Content-Type", "application/json")
		}
		w := httptest.NewRecorder()
		if c.server.ServeHTTP(w, req); w.Code != code {
			tb.Fatalf("%s %s: %d %s", method, path, w.Code, w.Body)
		}
	}
}
