package apiserver_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/utils/ptr"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver"
	"barque.dev/internal/pki"
	"barque.dev/internal/store/etcd/etcdtest"
)

// sample is an aggregated API server of flunders, behind the service default/sample.
type sample struct {
	keys    *pki.Authorities
	server  *httptest.Server
	answers atomic.Int64 // requests but those for documents
}

func newSample(t *testing.T) *sample {
	t.Helper()
	keys, err := pki.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	s := &sample{keys: keys}
	s.server = httptest.NewUnstartedServer(http.HandlerFunc(s.serve))
	s.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{issue(t, keys.Cluster, pki.Request{
			CommonName: "sample", DNSNames: []string{"sample.default.svc"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})},
		ClientCAs: keys.FrontProxy.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}
	s.server.EnableHTTP2 = true
	s.server.StartTLS()
	t.Cleanup(s.server.Close)
	return s
}

// use makes a server show the sample's front proxy certificate, and reach it where its endpoint says that it is.
func (s *sample) use(t *testing.T) func(*apiserver.Config) {
	front := issue(t, s.keys.FrontProxy, pki.Client(pki.UserFrontProxy))
	return func(cfg *apiserver.Config) {
		cfg.FrontProxy = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &front, nil }
		cfg.Kubelet.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if address != "10.42.0.9:8443" {
				return nil, fmt.Errorf("nobody is at %s", address)
			}
			return (&net.Dialer{}).DialContext(ctx, network, s.server.Listener.Addr().String())
		}
	}
}

func (s *sample) serve(w http.ResponseWriter, req *http.Request) {
	switch req.URL.Path {
	case "/apis", "/openapi/v3":
		http.NotFound(w, req) // it is of an older release
	case "/openapi/v2":
		fmt.Fprint(w, `{"swagger":"2.0","info":{"title":"wardle","version":"v1"},
			"paths":{"/apis/wardle.example.com/v1alpha1/flunders":{"get":{"responses":{"200":{"description":"OK","schema":{"$ref":"#/definitions/com.example.wardle.v1alpha1.Flunder"}}}}}},
			"definitions":{"com.example.wardle.v1alpha1.Flunder":{"type":"object","description":"What it is, nobody knows."}}}`)
	case "/apis/wardle.example.com/v1alpha1":
		fmt.Fprint(w, `{"kind":"APIResourceList","groupVersion":"wardle.example.com/v1alpha1","resources":[
			{"name":"flunders","singularName":"flunder","namespaced":true,"kind":"Flunder","verbs":["list","watch"]}]}`)
	default:
		s.answers.Add(1)
		if req.URL.Query().Has("watch") {
			fmt.Fprintln(w, "watching")
			_ = http.NewResponseController(w).Flush()
			<-req.Context().Done()
			return
		}
		fmt.Fprintf(w, "%s %s for %s of %s", req.Method, req.URL, req.Header["X-Remote-User"], req.Header["X-Remote-Group"])
	}
}

// objects are the service and its endpoint, and what registers a version with it.
func (s *sample) objects(version, group string) (service, endpoints, api ctrlclient.Object) {
	service = &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sample"}, Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{Port: 443}}}}
	endpoints = &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: "sample", Labels: map[string]string{discoveryv1.LabelServiceName: "sample"}},
		AddressType: discoveryv1.AddressTypeIPv4, Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.42.0.9"}}},
		Ports: []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To[int32](8443)}},
	}
	api = &apiregistrationv1.APIService{ObjectMeta: metav1.ObjectMeta{Name: version + "." + group}, Spec: apiregistrationv1.APIServiceSpec{
		Group: group, Version: version, GroupPriorityMinimum: 2000, VersionPriority: 200, CABundle: s.keys.Cluster.PEM(),
		Service: &apiregistrationv1.ServiceReference{Namespace: "default", Name: "sample"},
	}}
	return service, endpoints, api
}

func controllerClient(t *testing.T, c *cluster) ctrlclient.Client {
	t.Helper()
	client, err := ctrlclient.New(asAdmin(t, c), ctrlclient.Options{Scheme: api.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return client
}

const flundersPath = "/apis/wardle.example.com/v1alpha1/namespaces/default/flunders"

// withSample starts two servers, and registers a sample server with the first.
func withSample(t *testing.T) (s *sample, one, two *cluster, registered ctrlclient.Object) {
	t.Helper()
	s = newSample(t)
	etcds := etcdtest.New(t, 2, nil)
	one, two = startOn(t, etcds.Member(0), s.use(t)), startOn(t, etcds.Member(1), s.use(t))
	if code, _ := body(t, two, flundersPath, "*/*"); code != http.StatusNotFound {
		t.Fatalf("before it is registered: %d", code)
	}
	client := controllerClient(t, one)
	service, endpoints, registered := s.objects("v1alpha1", "wardle.example.com")
	for _, obj := range []ctrlclient.Object{service, endpoints, registered} {
		if err := client.Create(t.Context(), obj); err != nil {
			t.Fatal(err)
		}
	}
	return s, one, two, registered
}

// TestAggregatedAPI: what is registered through one server is served by the other at once, and no longer when it is gone.
func TestAggregatedAPI(t *testing.T) {
	s, one, two, registered := withSample(t)
	want := "GET " + flundersPath + "?limit=5 for [kubernetes-admin] of [system:masters system:authenticated]"
	if code, text := body(t, two, flundersPath+"?limit=5", "*/*"); code != http.StatusOK || text != want {
		t.Fatalf("%d %s, want %s", code, text, want)
	}
	as := do(t, two.admin(t), http.MethodDelete, two.url+flundersPath, nil, "Impersonate-User", "ann", "Impersonate-Group", "system:masters")
	if want := "DELETE " + flundersPath + " for [ann] of [system:masters system:authenticated]"; as.body != want {
		t.Errorf("as somebody else: %d %s, want %s", as.code, as.body, want)
	}
	before := s.answers.Load()
	if a := do(t, two.http(t, "mallory"), http.MethodGet, two.url+flundersPath, nil); a.code != http.StatusForbidden || s.answers.Load() != before {
		t.Errorf("who may not: %d %s", a.code, a.body)
	}
	if code, text := body(t, two, "/apis/wardle.example.com", "application/json"); code != http.StatusOK || !strings.Contains(text, `"groupVersion":"wardle.example.com/v1alpha1"`) {
		t.Errorf("group: %d %s", code, text)
	}
	if code, text := body(t, two, "/apis/wardle.example.com/v1alpha1", "application/json"); code != http.StatusOK || !strings.Contains(text, `"singularName":"flunder"`) {
		t.Errorf("version: %d %s", code, text)
	}
	describesFlunders(t, two)

	client := controllerClient(t, one)
	if err := client.Delete(t.Context(), &discoveryv1.EndpointSlice{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sample"}}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "no endpoint", func() error {
		if code, text := body(t, two, flundersPath, "*/*"); code != http.StatusServiceUnavailable || !strings.Contains(text, "no endpoints available for service") {
			return fmt.Errorf("%d %s", code, text)
		}
		return nil
	})
	if err := client.Delete(t.Context(), registered); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{flundersPath, "/apis/wardle.example.com", "/apis/wardle.example.com/v1alpha1", "/openapi/v3/apis/wardle.example.com/v1alpha1"} {
		if code, text := body(t, one, path, "*/*"); code != http.StatusNotFound {
			t.Errorf("%s afterwards: %d %s", path, code, text)
		}
	}
}

// describesFlunders waits until all documents describe flunders: the server is asked for that behind users' backs.
func describesFlunders(t *testing.T, c *cluster) {
	t.Helper()
	const aggregated = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
	for path, has := range map[string]string{
		"/apis":       `"resources":[{"resource":"flunders","responseKind":{"group":"","version":"","kind":"Flunder"},"scope":"Namespaced"`,
		"/openapi/v3": `"apis/wardle.example.com/v1alpha1":{`,
		"/openapi/v3/apis/wardle.example.com/v1alpha1": "What it is, nobody knows.",
		"/openapi/v2": "What it is, nobody knows.",
	} {
		eventually(t, path, func() error {
			accept := "application/json"
			if path == "/apis" {
				accept = aggregated
			}
			if code, text := body(t, c, path, accept); code != http.StatusOK || !strings.Contains(text, has) {
				return fmt.Errorf("%d %.300s", code, text)
			}
			return nil
		})
	}
	var doc struct {
		Definitions map[string]any `json:"definitions"`
	}
	if _, text := body(t, c, "/openapi/v2", "application/json"); json.Unmarshal([]byte(text), &doc) != nil || doc.Definitions["io.k8s.api.core.v1.Pod"] == nil {
		t.Error("version 2 has lost what is built in")
	}
	if code, _ := body(t, c, "/openapi/v2", "application/com.github.proto-openapi.spec.v2.v1.0+protobuf"); code != http.StatusOK {
		t.Errorf("version 2 as protobuf: %d", code)
	}
}

// TestBuiltinVersionsGivenAway: an administrator may have another server serve a built-in version, as in stock clusters, but
// never that of APIServices, through which alone it can be taken back.
func TestBuiltinVersionsGivenAway(t *testing.T) {
	s, one, two, _ := withSample(t)
	client := controllerClient(t, one)
	for _, gv := range [][2]string{{"v1", "apps"}, {"v1", "apiregistration.k8s.io"}} {
		_, _, away := s.objects(gv[0], gv[1])
		if err := client.Create(t.Context(), away); err != nil {
			t.Fatal(err)
		}
	}
	// This server waits for nothing before it serves what is built in; it has seen what came through it.
	if code, text := body(t, one, "/apis/apps/v1/deployments", "*/*"); code != http.StatusOK || !strings.HasPrefix(text, "GET /apis/apps/v1/deployments for") {
		t.Errorf("what was given away: %d %.100s", code, text)
	}
	_, _, back := s.objects("v1", "apps")
	if err := client.Delete(t.Context(), back); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*cluster{one, two} {
		eventually(t, "it is back", func() error {
			if code, text := body(t, c, "/apis/apps/v1/deployments", "application/json"); code != http.StatusOK || !strings.Contains(text, `"kind":"DeploymentList"`) {
				return fmt.Errorf("%d %.100s", code, text)
			}
			return nil
		})
	}
}

// TestAggregatedWatchEndsAtShutdown: it does not hold a server up.
func TestAggregatedWatchEndsAtShutdown(t *testing.T) {
	_, _, two, _ := withSample(t)
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, two.url+flundersPath+"?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := two.admin(t).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	r := bufio.NewReader(resp.Body)
	if line, err := r.ReadString('\n'); line != "watching\n" {
		t.Fatalf("%q, %v", line, err)
	}
	start := time.Now()
	two.stop()
	if took := time.Since(start); took > 5*time.Second {
		t.Errorf("shutdown took %v", took)
	}
	if _, err := r.ReadString('\n'); err == nil {
		t.Error("the watch goes on")
	}
}

// TestAuthorizationOfAggregatedAPIs: rules name groups and resources of other servers as they do those of ours.
func TestAuthorizationOfAggregatedAPIs(t *testing.T) {
	_, one, _, _ := withSample(t)
	client := controllerClient(t, one)
	rule := rbacv1.PolicyRule{Verbs: []string{"list"}, APIGroups: []string{"wardle.example.com"}, Resources: []string{"flunders"}}
	role := &rbacv1.Role{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "flunders"}, Rules: []rbacv1.PolicyRule{rule}}
	binding := &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "flunders"},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role", Name: "flunders"},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: rbacv1.UserKind, Name: "ann"}},
	}
	if err := errors.Join(client.Create(t.Context(), role), client.Create(t.Context(), binding)); err != nil {
		t.Fatal(err)
	}
	ann := one.http(t, "ann", "sailors")
	if a := do(t, ann, http.MethodGet, one.url+flundersPath, nil); a.code != http.StatusOK || !strings.Contains(a.body, "for [ann] of [sailors system:authenticated]") {
		t.Errorf("listing: %d %s", a.code, a.body)
	}
	if a := do(t, ann, http.MethodPost, one.url+flundersPath, strings.NewReader("{}")); a.code != http.StatusForbidden {
		t.Errorf("creating: %d %s", a.code, a.body)
	}
}
