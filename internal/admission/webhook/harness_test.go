package webhook_test

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync"
	"testing"

	"go.uber.org/goleak"
	admissionv1 "k8s.io/api/admission/v1"
	registration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/utils/ptr"

	"barque.dev/internal/admission"
	"barque.dev/internal/admission/webhook"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/registry/registrytest"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// klog's flusher starts with the process.
		goleak.IgnoreAnyFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

// cluster is a registry behind webhooks. It is the image that they look at.
type cluster struct {
	*registrytest.Server
	t        testing.TB
	member   *etcd.Member
	services map[string]string // address by namespace/name
}

// Table and Find are looked up when a request comes in: the registry is made after the plugins.
type late struct{ c *cluster }

func (l late) Table(gr schema.GroupResource) *store.Table {
	if l.c.Server == nil {
		return nil
	}
	return l.c.Server.Table(gr)
}

func (l late) Find(ctx context.Context, gr schema.GroupResource, namespace, name string) (runtime.Object, error) {
	return l.c.Server.Find(ctx, gr, namespace, name)
}

func (c *cluster) ResolveEndpoint(namespace, name string, _ int32) (*url.URL, error) {
	return &url.URL{Scheme: "https", Host: c.services[namespace+"/"+name]}, nil
}

// onlyAlice lets one user do everything.
type onlyAlice struct{}

func (onlyAlice) Authorize(_ context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	if a.GetUser().GetName() == "alice" {
		return authorizer.DecisionAllow, "", nil
	}
	return authorizer.DecisionNoOpinion, "", nil
}

func start(t testing.TB) *cluster {
	t.Helper()
	return on(t, etcdtest.New(t, 1, nil).Member(0))
}

// on starts a server on a member that others may use too.
func on(t testing.TB, member *etcd.Member) *cluster {
	t.Helper()
	c := &cluster{t: t, member: member, services: map[string]string{}}
	mutating, validating, err := webhook.New(webhook.Config{Image: late{c}, Services: c, Authorizer: onlyAlice{}})
	if err != nil {
		t.Fatal(err)
	}
	c.Server = registrytest.New(t, member, func(cfg *registry.Config) {
		cfg.Admission = admission.Reinvoking{Chain: admission.Chain{
			{Name: webhook.MutatingName, Interface: mutating}, {Name: webhook.ValidatingName, Interface: validating}}}
	})
	return c
}

func (c *cluster) req(resource, namespace, name string) registry.Request {
	c.t.Helper()
	return c.Request(resource, namespace, name)
}

// hook is a webhook's server, which answers by a function and remembers what it was asked.
type hook struct {
	*httptest.Server
	mu   sync.Mutex
	seen []admissionv1.AdmissionRequest
}

// serve starts a webhook's server.
func serve(t *testing.T, answer func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse) *hook {
	t.Helper()
	h := &hook{}
	h.Server = raw(t, func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(req.Body)
		review := admissionv1.AdmissionReview{}
		if err == nil {
			err = json.Unmarshal(body, &review)
		}
		if err != nil || review.Request == nil {
			t.Errorf("a webhook was asked %q, %v", body, err)
			return
		}
		h.mu.Lock()
		h.seen = append(h.seen, *review.Request)
		h.mu.Unlock()
		review.Response = answer(review.Request)
		review.Response.UID = review.Request.UID
		review.Request = nil
		w.Header().Set("Content-Type", "application/json")
		if err := json.NewEncoder(w).Encode(review); err != nil {
			t.Error(err)
		}
	})
	return h
}

// raw starts a server whose certificate is for a service, too.
func raw(t *testing.T, handler http.HandlerFunc) *httptest.Server {
	t.Helper()
	server := httptest.NewTLSServer(handler)
	t.Cleanup(server.Close)
	return server
}

func (h *hook) asked() []admissionv1.AdmissionRequest {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]admissionv1.AdmissionRequest(nil), h.seen...)
}

// caOf is the authority that vouches for a server.
func caOf(server *httptest.Server) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: certificate(server).Raw})
}

func certificate(server *httptest.Server) *x509.Certificate { return server.Certificate() }

func allow(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return &admissionv1.AdmissionResponse{Allowed: true}
}

func deny(message string) func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Result: &metav1.Status{Message: message}}
	}
}

func patch(operations string) func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
	return func(*admissionv1.AdmissionRequest) *admissionv1.AdmissionResponse {
		return &admissionv1.AdmissionResponse{Allowed: true, Patch: []byte(operations), PatchType: ptr.To(admissionv1.PatchTypeJSONPatch)}
	}
}

// rule selects config maps, for whatever is done to them.
func rule(operations ...registration.OperationType) []registration.RuleWithOperations {
	return []registration.RuleWithOperations{{Operations: operations, Rule: registration.Rule{
		APIGroups: []string{""}, APIVersions: []string{"v1"}, Resources: []string{"configmaps"}}}}
}

// validate configures a validating webhook at a server.
func (c *cluster) validate(name string, server *httptest.Server, tune func(*registration.ValidatingWebhook)) {
	c.t.Helper()
	h := registration.ValidatingWebhook{
		Name: name + ".example.com", ClientConfig: registration.WebhookClientConfig{URL: ptr.To(server.URL + "/hook"), CABundle: caOf(server)},
		Rules: rule(registration.Create, registration.Update), SideEffects: ptr.To(registration.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
	}
	if tune != nil {
		tune(&h)
	}
	c.keep("validatingwebhookconfigurations.admissionregistration.k8s.io", &registration.ValidatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []registration.ValidatingWebhook{h}})
}

// mutate configures a mutating webhook at a server.
func (c *cluster) mutate(name string, server *httptest.Server, tune func(*registration.MutatingWebhook)) {
	c.t.Helper()
	h := registration.MutatingWebhook{
		Name: name + ".example.com", ClientConfig: registration.WebhookClientConfig{URL: ptr.To(server.URL + "/hook"), CABundle: caOf(server)},
		Rules: rule(registration.Create, registration.Update), SideEffects: ptr.To(registration.SideEffectClassNone), AdmissionReviewVersions: []string{"v1"},
	}
	if tune != nil {
		tune(&h)
	}
	c.keep("mutatingwebhookconfigurations.admissionregistration.k8s.io", &registration.MutatingWebhookConfiguration{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Webhooks: []registration.MutatingWebhook{h}})
}

// keep creates a configuration, with the defaults that a decoder would have given it.
func (c *cluster) keep(resource string, obj runtime.Object) {
	c.t.Helper()
	req := c.req(resource, "", "")
	req.Resource.Codec().Default(obj)
	if _, err := c.Create(c.t.Context(), req, obj, &metav1.CreateOptions{}); err != nil {
		c.t.Fatal(err)
	}
}

// create tries to create a config map.
func (c *cluster) create(ctx context.Context, name string, tune func(*corev1.ConfigMap), opts *metav1.CreateOptions) (*corev1.ConfigMap, error) {
	c.t.Helper()
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"}, Data: map[string]string{"a": "1"}}
	if tune != nil {
		tune(cm)
	}
	if opts == nil {
		opts = &metav1.CreateOptions{}
	}
	result, err := c.Create(ctx, c.req("configmaps", cm.Namespace, ""), cm, opts)
	if err != nil {
		return nil, err
	}
	return c.Must(result, nil).(*corev1.ConfigMap), nil
}
