package auditlog_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"
	auditinternal "k8s.io/apiserver/pkg/apis/audit"
	"k8s.io/component-base/metrics/legacyregistry"

	"barque.dev/internal/apiserver/auditlog"
)

const everything = "apiVersion: audit.k8s.io/v1\nkind: Policy\nrules: [{level: Metadata}]\n"

// options are the defaults with a policy for everything; tune changes them.
func options(t *testing.T, tune func(*auditlog.Options)) auditlog.Options {
	t.Helper()
	o := auditlog.Defaults()
	o.PolicyFile = filepath.Join(t.TempDir(), "policy.yaml")
	if err := os.WriteFile(o.PolicyFile, []byte(everything), 0o600); err != nil {
		t.Fatal(err)
	}
	tune(&o)
	return o
}

// open opens a log, which runs until the returned function is called.
func open(t *testing.T, o auditlog.Options, log io.Writer) (*auditlog.Log, func()) {
	t.Helper()
	if err := o.Check(); err != nil {
		t.Fatal(err)
	}
	l, err := auditlog.Open(o, slog.New(slog.NewTextHandler(log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	if err := l.Backend.Run(stop); err != nil {
		t.Fatal(err)
	}
	return l, func() { close(stop); l.Backend.Shutdown() }
}

func event(id string) *auditinternal.Event {
	return &auditinternal.Event{Level: auditinternal.LevelMetadata, AuditID: types.UID(id), Stage: auditinternal.StageResponseComplete, Verb: "get"}
}

func TestFile(t *testing.T) {
	for _, mode := range auditlog.Modes() {
		t.Run(mode, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "deep", "audit.log")
			o := options(t, func(o *auditlog.Options) { o.Log.Path, o.Log.Mode = path, mode })
			l, stop := open(t, o, io.Discard)
			for i := range 10 {
				if !l.Backend.ProcessEvents(event(fmt.Sprint("id-", i))) {
					t.Error("an event is lost")
				}
			}
			stop() // writes what is left
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			lines := strings.Split(strings.TrimSpace(string(text)), "\n")
			var first struct{ Kind, APIVersion, AuditID string }
			if err := json.Unmarshal([]byte(lines[0]), &first); err != nil || len(lines) != 10 || first.Kind != "Event" || first.APIVersion != "audit.k8s.io/v1" || first.AuditID != "id-0" {
				t.Errorf("%d lines, %+v, %v", len(lines), first, err)
			}
			info, err := os.Stat(path)
			if err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%v %v", info.Mode(), err)
			}
		})
	}
}

func TestLegacyFormat(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, stop := open(t, options(t, func(o *auditlog.Options) { o.Log.Path, o.Log.Format, o.Log.MaxSize = path, "legacy", 0 }), io.Discard)
	l.Backend.ProcessEvents(event("old"))
	stop()
	if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), `AUDIT: id="old" stage="ResponseComplete"`) {
		t.Errorf("%s %v", text, err)
	}
}

func TestFilesArePutAside(t *testing.T) {
	path := filepath.Join(t.TempDir(), "audit.log")
	l, stop := open(t, options(t, func(o *auditlog.Options) { o.Log.Path, o.Log.MaxSize, o.Log.MaxBackups = path, 1, 1 }), io.Discard)
	large := event("large")
	large.UserAgent = strings.Repeat("x", 200<<10)
	for range 12 {
		l.Backend.ProcessEvents(large)
	}
	stop()
	files, err := filepath.Glob(filepath.Join(filepath.Dir(path), "audit*.log"))
	if err != nil || len(files) < 2 {
		t.Errorf("%v %v", files, err)
	}
	if info, err := os.Stat(path); err != nil || info.Size() > 1<<20 {
		t.Errorf("%v %v", info, err)
	}
}

// TestFullDisk writes where nothing can be written: a strict log refuses, another goes on, and both tell.
func TestFullDisk(t *testing.T) {
	for mode, accepted := range map[string]bool{auditlog.Blocking: true, auditlog.BlockingStrict: false} {
		t.Run(mode, func(t *testing.T) {
			lost := failures(t)
			var log bytes.Buffer
			l, stop := open(t, options(t, func(o *auditlog.Options) { o.Log.Path, o.Log.Mode, o.Log.MaxSize = "/dev/full", mode, 0 }), &log)
			defer stop()
			for range 3 {
				if l.Backend.ProcessEvents(event("a")) != accepted {
					t.Errorf("accepted: %v", !accepted)
				}
			}
			if strings.Count(log.String(), "can't be written") != 1 || !strings.Contains(log.String(), "no space left") {
				t.Errorf("it is told once, and why: %s", &log)
			}
			if got := failures(t) - lost; got != 3 {
				t.Errorf("%v lost events are counted", got)
			}
		})
	}
}

// failures is how many events upstream says could not be written.
func failures(t *testing.T) float64 {
	t.Helper()
	families, err := legacyregistry.DefaultGatherer.Gather()
	if err != nil {
		t.Fatal(err)
	}
	n := 0.0
	for _, f := range families {
		if f.GetName() == "apiserver_audit_error_total" {
			for _, m := range f.Metric {
				n += m.GetCounter().GetValue()
			}
		}
	}
	return n
}

// receiver is a server that audit events are sent to. It refuses the first requests.
type receiver struct {
	mu      sync.Mutex
	refuse  int
	batches [][]string
}

func (r *receiver) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var list struct{ Items []struct{ AuditID string } }
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.refuse > 0 {
		r.refuse--
		http.Error(w, "not now", http.StatusServiceUnavailable)
		return
	}
	if err := json.NewDecoder(req.Body).Decode(&list); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var batch []string
	for _, item := range list.Items {
		batch = append(batch, item.AuditID)
	}
	r.batches = append(r.batches, batch)
}

// webhookConfig is a kubeconfig for the server at url.
func webhookConfig(t *testing.T, url string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "webhook.kubeconfig")
	text := fmt.Sprintf("apiVersion: v1\nkind: Config\nclusters: [{name: c, cluster: {server: %q}}]\ncontexts: [{name: c, context: {cluster: c, user: u}}]\ncurrent-context: c\nusers: [{name: u}]\n", url)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestWebhook(t *testing.T) {
	r := &receiver{refuse: 2}
	server := httptest.NewServer(r)
	defer server.Close()
	path := filepath.Join(t.TempDir(), "audit.log")
	l, stop := open(t, options(t, func(o *auditlog.Options) {
		o.Log.Path = path
		o.Webhook.ConfigFile, o.Webhook.InitialBackoff = webhookConfig(t, server.URL), time.Millisecond
		o.Webhook.Batch.MaxBatchSize = 3
		o.Webhook.Truncate, o.Webhook.Sizes.MaxEventSize = true, 10<<10
	}), io.Discard)
	for i := range 6 {
		e := event(fmt.Sprint("id-", i))
		if i == 5 {
			e.UserAgent = strings.Repeat("x", 20<<10) // too large, and nothing can be left out
		}
		if !l.Backend.ProcessEvents(e) {
			t.Error("an event is lost")
		}
	}
	stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	got := map[string]bool{}
	for _, batch := range r.batches {
		if len(batch) > 3 {
			t.Errorf("a batch of %d", len(batch))
		}
		for _, id := range batch {
			got[id] = true
		}
	}
	if len(got) != 5 || got["id-5"] {
		t.Errorf("got %v", r.batches)
	}
	if text, err := os.ReadFile(path); err != nil || strings.Count(string(text), "\n") != 6 {
		t.Errorf("the file has not all: %v", err)
	}
}

func TestCheck(t *testing.T) {
	for name, tc := range map[string]struct {
		tune func(*auditlog.Options)
		want string
	}{
		"nothing":           {func(o *auditlog.Options) { o.PolicyFile = "" }, ""},
		"policy alone":      {func(*auditlog.Options) {}, "say where events go"},
		"log without":       {func(o *auditlog.Options) { o.PolicyFile, o.Log.Path = "", "a" }, "--audit-policy-file"},
		"log":               {func(o *auditlog.Options) { o.Log.Path = "a" }, ""},
		"mode":              {func(o *auditlog.Options) { o.Log.Path, o.Log.Mode = "a", "loud" }, "--audit-log-mode"},
		"format":            {func(o *auditlog.Options) { o.Log.Path, o.Log.Format = "a", "xml" }, "--audit-log-format"},
		"version":           {func(o *auditlog.Options) { o.Log.Path, o.Log.Version = "a", "v9" }, "--audit-log-version"},
		"age":               {func(o *auditlog.Options) { o.Log.Path, o.Log.MaxAge = "a", -1 }, "--audit-log-maxage"},
		"webhook":           {func(o *auditlog.Options) { o.Webhook.ConfigFile = "a" }, ""},
		"webhook's buffer":  {func(o *auditlog.Options) { o.Webhook.ConfigFile, o.Webhook.Batch.BufferSize = "a", 0 }, "--audit-webhook-batch-buffer-size"},
		"webhook's batches": {func(o *auditlog.Options) { o.Webhook.ConfigFile, o.Webhook.Batch.MaxBatchSize = "a", 0 }, "--audit-webhook-batch-max-size"},
		"webhook's rate":    {func(o *auditlog.Options) { o.Webhook.ConfigFile, o.Webhook.Batch.ThrottleQPS = "a", 0 }, "--audit-webhook-batch-throttle-qps"},
		"webhook's burst":   {func(o *auditlog.Options) { o.Webhook.ConfigFile, o.Webhook.Batch.ThrottleBurst = "a", 0 }, "--audit-webhook-batch-throttle-burst"},
		"sizes":             {func(o *auditlog.Options) { o.Log.Path, o.Log.Sizes.MaxBatchSize = "a", 1 }, "--audit-log-truncate-max-batch-size"},
	} {
		t.Run(name, func(t *testing.T) {
			o := options(t, tc.tune)
			err := o.Check()
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
}

func TestOpenTells(t *testing.T) {
	if l, err := auditlog.Open(auditlog.Defaults(), slog.Default()); l != nil || err != nil {
		t.Errorf("%v, %v without a policy", l, err)
	}
	for flag, tune := range map[string]func(*auditlog.Options){
		"--audit-policy-file":         func(o *auditlog.Options) { o.PolicyFile = "/nonexistent" },
		"--audit-log-path":            func(o *auditlog.Options) { o.Log.Path = "/proc/self/nothing/audit.log" },
		"--audit-webhook-config-file": func(o *auditlog.Options) { o.Webhook.ConfigFile = "/nonexistent" },
	} {
		if _, err := auditlog.Open(options(t, tune), slog.Default()); err == nil || !strings.Contains(err.Error(), flag) {
			t.Errorf("%s: %v", flag, err)
		}
	}
}
