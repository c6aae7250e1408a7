package integration

import (
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admission/v1"
	admissionregv1 "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/testkit"
	"barque.dev/internal/tracing/otlp/otlptest"
	"barque.dev/test/plane"
)

// tracedHook lets everything in, and keeps the headers of traces that it was asked with.
type tracedHook struct {
	mu      sync.Mutex
	parents []string
}

func (h *tracedHook) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	var review admissionv1.AdmissionReview
	if err := json.NewDecoder(req.Body).Decode(&review); err != nil || review.Request == nil {
		http.Error(w, "not an AdmissionReview", http.StatusBadRequest)
		return
	}
	h.mu.Lock()
	h.parents = append(h.parents, req.Header.Get("Traceparent"))
	h.mu.Unlock()
	review.Response = &admissionv1.AdmissionResponse{UID: review.Request.UID, Allowed: true}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(review)
}

// TestTraceOfACreate sends a create as a part of a client's trace to a master, and finds in a collector, that gets them over
// gRPC, the spans of all that was done for it, below the client's: among them the one that a webhook was told to be part of.
func TestTraceOfACreate(t *testing.T) {
	t.Parallel()
	collector := otlptest.Start(t)
	dir := t.TempDir()
	config := filepath.Join(dir, "tracing.yaml")
	overwrite(t, config, "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: "+collector.Endpoint+"\n")
	var master plane.Programs
	t.Cleanup(func() {
		if err := master.Stop(); err != nil {
			t.Error(err)
		}
	})
	data := filepath.Join(dir, "data")
	if err := master.Launch(plane.Program{Name: "traced", Path: program, Dir: dir, Args: []string{
		"server", "--disable=agent", "--data-dir", data, "--node-name", "traced", "--bind-address", "127.0.79.1", "--advertise-address", "127.0.79.1",
		"--tracing-config-file", config,
	}}); err != nil {
		t.Fatal(err)
	}
	admin, err := master.Adopt(t.Context(), filepath.Join(data, "kubeconfig"))
	if err != nil {
		t.Fatal(err)
	}
	tlsConfig, err := plane.ClientTLS(admin.CAData, admin.CertData, admin.KeyData)
	if err != nil {
		t.Fatal(err)
	}
	if err := master.AwaitReady(t.Context(), admin.Host, tlsConfig); err != nil {
		t.Fatal(err)
	}
	hook := &tracedHook{}
	register(t, clientFor(t, admin), hook)

	transport := master.Transport(tlsConfig, nil)
	defer transport.CloseIdleConnections()
	client := &http.Client{Transport: transport}
	const trace, caller = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	create := func(name, traceparent string) {
		t.Helper()
		body := fmt.Sprintf(`{"kind":"ConfigMap","apiVersion":"v1","metadata":{"name":%q}}`, name)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, admin.Host+"/api/v1/namespaces/default/configmaps", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("Traceparent", traceparent)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = resp.Body.Close() }()
		if text, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusCreated {
			t.Fatalf("%s %s %v", resp.Status, text, err)
		}
	}
	// Until every plugin knows of the webhook, creates go past it.
	n := 0
	testkit.Eventually(t, bound, "the webhook is asked", func() error {
		n++
		create(fmt.Sprint("before-", n), "")
		hook.mu.Lock()
		defer hook.mu.Unlock()
		if len(hook.parents) == 0 {
			return fmt.Errorf("it is not")
		}
		return nil
	})
	create("traced", "00-"+trace+"-"+caller+"-01")
	if err := master.Stop(); err != nil { // which sends what is left
		t.Fatal(err)
	}
	checkTrace(t, collector, hook, trace, caller)
}

// register has a hook asked about ConfigMaps.
func register(t *testing.T, client kubernetes.Interface, hook http.Handler) {
	t.Helper()
	server := httptest.NewTLSServer(hook)
	t.Cleanup(server.Close)
	none, path, fail := admissionregv1.SideEffectClassNone, server.URL, admissionregv1.Fail
	_, err := client.AdmissionregistrationV1().ValidatingWebhookConfigurations().Create(t.Context(), &admissionregv1.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: "traced"},
		Webhooks: []admissionregv1.ValidatingWebhook{{
			Name: "traced.example.org", SideEffects: &none, FailurePolicy: &fail, AdmissionReviewVersions: []string{"v1"},
			ClientConfig: admissionregv1.WebhookClientConfig{
				URL: &path, CABundle: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw}),
			},
			Rules: []admissionregv1.RuleWithOperations{{
				Operations: []admissionregv1.OperationType{admissionregv1.Create},
				Rule:       admissionregv1.Rule{APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}},
			}},
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"kubernetes.io/metadata.name": "default"}},
		}},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
}

func checkTrace(t *testing.T, collector *otlptest.Collector, hook *tracedHook, trace, caller string) {
	t.Helper()
	spans := collector.Trace(trace)
	byID := map[string]otlptest.Span{}
	for _, s := range spans {
		byID[s.ID()] = s
	}
	var way func(otlptest.Span) string
	way = func(s otlptest.Span) string {
		if parent, ok := byID[s.ParentID()]; ok {
			return way(parent) + " / " + s.Name
		}
		if s.ParentID() != caller {
			t.Errorf("%s is below %q, which nobody sent", s.Name, s.ParentID())
		}
		return s.Name
	}
	var ways []string
	call := ""
	for _, s := range spans {
		ways = append(ways, way(s))
		if s.Service != "apiserver" || s.Instance != "barque-apiserver-traced" || s.EndTimeUnixNano < s.StartTimeUnixNano ||
			time.Duration(s.EndTimeUnixNano-s.StartTimeUnixNano) > time.Minute {
			t.Errorf("%+v", s)
		}
		if s.Name == "HTTP POST" {
			call = s.ID()
		}
	}
	const request = "POST /api/v1/namespaces/{:namespace}/configmaps"
	for _, want := range []string{
		"", " / authorization", " / priorityandfairness", " / Create", " / Create / Mutating admission", " / Create / Validating admission",
		" / Create / Validating admission / Call validating webhook", " / Create / Validating admission / Call validating webhook / HTTP POST",
		" / Create / Create etcd", " / Create / Create etcd / Txn", " / Create / Create etcd / Await image", " / Create / SerializeObject",
	} {
		if n := len(ways) - len(slices.DeleteFunc(slices.Clone(ways), func(w string) bool { return w == request+want })); n != 1 {
			t.Errorf("%d spans %q, of %q", n, want, ways)
		}
	}
	hook.mu.Lock()
	defer hook.mu.Unlock()
	if want := "00-" + trace + "-" + call + "-01"; hook.parents[len(hook.parents)-1] != want {
		t.Errorf("the webhook is part of %q, want %q", hook.parents[len(hook.parents)-1], want)
	}
	for _, s := range collector.All() {
		if s.TraceID() != trace {
			t.Errorf("%s is traced, though nobody asked for it", s.Name)
		}
	}
}
