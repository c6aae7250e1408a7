package apiserver_test

import (
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"
	"time"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/apiserver/auditlog"
)

// TestAuditWebhookThatIsGone: a server stops although its webhook takes nothing and is to be asked again an hour later, be
// it that events wait, or that requests do.
func TestAuditWebhookThatIsGone(t *testing.T) {
	for _, mode := range []string{auditlog.Batch, auditlog.Blocking} {
		t.Run(mode, func(t *testing.T) {
			asked := make(chan struct{}, 100)
			hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				asked <- struct{}{}
				http.Error(w, "not now", http.StatusServiceUnavailable)
			}))
			t.Cleanup(hook.Close)
			c := start(t, func(cfg *apiserver.Config) {
				cfg.Limits.Drain = 100 * time.Millisecond
				cfg.Audit = sentTo(t, hook.URL, mode)
			})
			c.wait(t)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, c.url+"/api/v1/namespaces/default/configmaps", nil)
			if err != nil {
				t.Fatal(err)
			}
			client, answered := c.admin(t), make(chan struct{})
			go func() {
				defer close(answered)
				if resp, err := client.Do(req); err == nil { // it may be cut off
					resp.Body.Close()
				}
			}()
			<-asked
			stopped := make(chan struct{})
			go func() {
				defer close(stopped)
				c.stop()
			}()
			select {
			case <-stopped:
			case <-time.After(20 * time.Second):
				t.Fatal("the server does not stop")
			}
			<-answered
		})
	}
}

// sentTo is an audit log of what becomes of config maps, which a webhook gets.
func sentTo(t *testing.T, url, mode string) *auditlog.Log {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	o := auditlog.Defaults()
	o.PolicyFile = write("policy", "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules:\n"+
		"- {level: Metadata, verbs: [list], resources: [{group: \"\", resources: [configmaps]}]}\n- {level: None}\n")
	o.Webhook.ConfigFile = write("webhook", fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\n"+
		"contexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u}]\n", url))
	o.Webhook.Mode, o.Webhook.InitialBackoff, o.Webhook.Batch.MaxBatchSize = mode, time.Hour, 1
	log, err := auditlog.Open(o, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return log
}
