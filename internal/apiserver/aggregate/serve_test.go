package aggregate

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"barque.dev/internal/pki"
)

// extension is an aggregated API server that trusts the front proxy alone.
type extension struct {
	keys   *pki.Authorities
	server *httptest.Server
	// answer is what it does with requests.
	answer atomic.Pointer[http.HandlerFunc]
	// gone tells that it has no endpoint.
	gone atomic.Bool
}

func newExtension(t *testing.T, answer http.HandlerFunc) *extension {
	t.Helper()
	keys, err := pki.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	x := &extension{keys: keys}
	x.answer.Store(&answer)
	x.server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { (*x.answer.Load())(w, req) }))
	x.server.TLS = &tls.Config{
		Certificates: []tls.Certificate{issue(t, keys.Cluster, pki.Request{
			CommonName: "sample", DNSNames: []string{"sample.wardle.svc"}, Usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})},
		ClientCAs: keys.FrontProxy.Pool(), ClientAuth: tls.RequireAndVerifyClientCert,
	}
	x.server.EnableHTTP2 = true
	x.server.StartTLS()
	t.Cleanup(x.server.Close)
	return x
}

func issue(t *testing.T, authority *pki.Authority, req pki.Request) tls.Certificate {
	t.Helper()
	pair, err := authority.Issue(req, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// ResolveEndpoint implements Resolver.
func (x *extension) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	if x.gone.Load() || namespace+"/"+name != "wardle/sample" || port != 443 {
		return nil, fmt.Errorf("no endpoints available for service %s/%s", namespace, name)
	}
	return &url.URL{Scheme: "https", Host: x.server.Listener.Addr().String()}, nil
}

func (x *extension) apiService() *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{Name: "v1alpha1.wardle.example.com"},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: wardle.Group, Version: wardle.Version, CABundle: x.keys.Cluster.PEM(), GroupPriorityMinimum: 2000, VersionPriority: 200,
			Service: &apiregistrationv1.ServiceReference{Namespace: "wardle", Name: "sample"},
		},
	}
}

// backend is that of an APIService, which change may have changed.
func (x *extension) backend(t *testing.T, change func(*apiregistrationv1.APIService)) *Backend {
	t.Helper()
	svc := x.apiService()
	if change != nil {
		change(svc)
	}
	front := issue(t, x.keys.FrontProxy, pki.Client(pki.UserFrontProxy))
	b := newBackend(Config{
		Resolver: x, Log: slog.New(slog.DiscardHandler),
		Certificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &front, nil },
	}, svc)
	t.Cleanup(b.retire)
	return b
}

// portal is a server that passes everything on.
func portal(t *testing.T, b *Backend) *httptest.Server {
	t.Helper()
	ann := &user.DefaultInfo{Name: "ann", UID: "7", Groups: []string{"sailors", "system:authenticated"}, Extra: map[string][]string{"Example.com/rank": {"mate", "cook"}}}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Audit-Id", "ours")
		w.Header().Set("Cache-Control", "no-cache, private")
		b.Serve(w, req.WithContext(request.WithUser(req.Context(), ann)), func(w http.ResponseWriter, _ *http.Request, err error) {
			status, ok := err.(apierrors.APIStatus)
			if !ok {
				t.Errorf("failed with %T: %v", err, err)
				return
			}
			http.Error(w, err.Error(), int(status.Status().Code))
		})
	}))
	t.Cleanup(s.Close)
	return s
}

func get(t *testing.T, address string, headers ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, address, nil)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Add(headers[i], headers[i+1])
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(body)
}

// TestServerLearnsWhoAsks: from the front proxy's headers, which no client can write.
func TestServerLearnsWhoAsks(t *testing.T) {
	x := newExtension(t, func(w http.ResponseWriter, req *http.Request) {
		h := req.Header
		w.Header().Set("Audit-Id", "theirs")
		w.Header().Set("Cache-Control", "public")
		fmt.Fprintln(w, req.TLS.PeerCertificates[0].Subject.CommonName, req.Proto, req.URL.RequestURI())
		fmt.Fprintln(w, h["X-Remote-User"], h["X-Remote-Uid"], h["X-Remote-Group"], h["X-Remote-Extra-Example.com%2frank"], h["X-Remote-Extra-Forged"])
	})
	s := portal(t, x.backend(t, nil))
	resp, body := get(t, s.URL+"/apis/wardle.example.com/v1alpha1/flunders?limit=5&labelSelector=a%3Db",
		"X-Remote-User", "root", "X-Remote-Group", "system:masters", "X-Remote-Extra-Forged", "yes")
	want := "front-proxy-client HTTP/2.0 /apis/wardle.example.com/v1alpha1/flunders?limit=5&labelSelector=a%3Db\n[ann] [7] [sailors system:authenticated] [mate cook] []\n"
	if resp.StatusCode != http.StatusOK || body != want {
		t.Errorf("%d\n%swant\n%s", resp.StatusCode, body, want)
	}
	if got := resp.Header["Audit-Id"]; len(got) != 1 || got[0] != "ours" {
		t.Errorf("the request's name is %v", got)
	}
	if got := resp.Header["Cache-Control"]; len(got) != 1 || got[0] != "public" {
		t.Errorf("it may be kept as %v", got)
	}
}

// TestWhomABackendTrusts: the service, by the APIService's authorities, unless it says otherwise.
func TestWhomABackendTrusts(t *testing.T) {
	x := newExtension(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "fine") })
	other, err := pki.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*apiregistrationv1.APIService)
		code   int
		says   string
	}{
		"its authority":      {nil, http.StatusOK, "fine"},
		"another authority":  {func(s *apiregistrationv1.APIService) { s.Spec.CABundle = other.Cluster.PEM() }, http.StatusServiceUnavailable, "error trying to reach service: tls: failed to verify"},
		"the machine's":      {func(s *apiregistrationv1.APIService) { s.Spec.CABundle = nil }, http.StatusServiceUnavailable, "error trying to reach service: tls: failed to verify"},
		"whoever it is":      {func(s *apiregistrationv1.APIService) { s.Spec.CABundle, s.Spec.InsecureSkipTLSVerify = nil, true }, http.StatusOK, "fine"},
		"nothing that it is": {func(s *apiregistrationv1.APIService) { s.Spec.CABundle = []byte("x") }, http.StatusServiceUnavailable, "caBundle holds no certificate"},
	} {
		resp, body := get(t, portal(t, x.backend(t, c.change)).URL+"/apis/wardle.example.com/v1alpha1")
		if resp.StatusCode != c.code || !strings.Contains(body, c.says) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
}

// TestUnavailable: clients hear why.
func TestUnavailable(t *testing.T) {
	x := newExtension(t, func(w http.ResponseWriter, _ *http.Request) {
		http.Redirect(w, &http.Request{URL: &url.URL{}}, "https://elsewhere.example.com", http.StatusFound)
	})
	s := portal(t, x.backend(t, nil))
	if resp, body := get(t, s.URL+"/apis/wardle.example.com/v1alpha1/flunders"); resp.StatusCode != http.StatusBadGateway {
		t.Errorf("a server that sends clients elsewhere: %d %s", resp.StatusCode, body)
	}
	x.gone.Store(true)
	resp, body := get(t, s.URL+"/apis/wardle.example.com/v1alpha1/flunders")
	if resp.StatusCode != http.StatusServiceUnavailable || !strings.Contains(body, "v1alpha1.wardle.example.com is not available: no endpoints available") {
		t.Errorf("without an endpoint: %d %s", resp.StatusCode, body)
	}
}

// TestStreams: upgrades reach the server with the user's name, and watches deliver what there is at once.
func TestStreams(t *testing.T) {
	next := make(chan struct{})
	x := newExtension(t, func(w http.ResponseWriter, req *http.Request) {
		if req.Header.Get("Upgrade") == "" {
			for n := range 3 {
				fmt.Fprintf(w, "event %d\n", n)
				_ = http.NewResponseController(w).Flush()
				<-next
			}
			return
		}
		conn, buffered, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer conn.Close()
		fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nhello %s\n", req.Header.Get("X-Remote-User"))
		line, _ := buffered.ReadString('\n')
		_, _ = io.WriteString(conn, "echo "+line)
	})
	s := portal(t, x.backend(t, nil))

	conn, err := net.Dial("tcp", s.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /apis/wardle.example.com/v1alpha1/flunders/a/attach HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: echo\r\nX-Remote-User: root\r\n\r\n")
	r := bufio.NewReader(conn)
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("upgrade: %v %v", resp, err)
	}
	if line, err := r.ReadString('\n'); line != "hello ann\n" {
		t.Errorf("the server greets %q, %v", line, err)
	}
	fmt.Fprint(conn, "ahoy\n")
	if line, err := r.ReadString('\n'); line != "echo ahoy\n" {
		t.Errorf("the stream brings %q, %v", line, err)
	}

	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.URL+"/apis/wardle.example.com/v1alpha1/flunders?watch=1", nil)
	if err != nil {
		t.Fatal(err)
	}
	watch, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Body.Close()
	events := bufio.NewReader(watch.Body)
	for n := range 3 {
		if line, err := events.ReadString('\n'); line != fmt.Sprintf("event %d\n", n) {
			t.Errorf("watched %q, %v", line, err)
		}
		next <- struct{}{}
	}
}
