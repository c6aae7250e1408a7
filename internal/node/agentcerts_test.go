package node

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"

	"barque.dev/internal/pki"
)

func newRequest(t *testing.T) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "n1"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// signer is an API that signs every request at once, and notes how each caller showed who he is.
type signer struct {
	keys *pki.Authorities
	life time.Duration

	mu      sync.Mutex
	callers []string
	signed  map[string][]byte // by the request's name
	refuses bool
}

func (s *signer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	if s.refuses {
		w.WriteHeader(http.StatusUnauthorized)
		_ = json.NewEncoder(w).Encode(metav1.Status{Status: metav1.StatusFailure, Reason: metav1.StatusReasonUnauthorized, Code: http.StatusUnauthorized, Message: "Unauthorized"})
		return
	}
	csr := &certificatesv1.CertificateSigningRequest{}
	if r.Method == http.MethodPost {
		s.callers = append(s.callers, r.Header.Get("Authorization"))
		body, err := io.ReadAll(r.Body)
		if err == nil {
			_, _, err = scheme.Codecs.UniversalDeserializer().Decode(body, nil, csr)
		}
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		cert, err := s.keys.Cluster.SignCSR(&csr.Spec, s.life, time.Now())
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		csr.Name = fmt.Sprintf("csr-%d", len(s.callers))
		s.signed[csr.Name] = cert
		w.WriteHeader(http.StatusCreated)
	} else {
		csr.Name = r.URL.Path[strings.LastIndex(r.URL.Path, "/")+1:]
		csr.Status.Certificate = s.signed[csr.Name]
	}
	csr.TypeMeta = metav1.TypeMeta{APIVersion: "certificates.k8s.io/v1", Kind: "CertificateSigningRequest"}
	_ = json.NewEncoder(w).Encode(csr)
}

// An agent requests its first certificate by the token, the next ones as the node, and by the token again when it is too late for
// that. A server that does not answer is passed over, and a token that is not good is told of.
func TestAgentRequests(t *testing.T) {
	keys := newKeys(t)
	api := &signer{keys: keys, life: pki.MinValidity, signed: map[string][]byte{}}
	server := httptest.NewUnstartedServer(api)
	server.TLS = serving(t, keys)
	server.StartTLS()
	defer server.Close()
	const token = "abcdef.0123456789abcdef"
	pool := keys.Cluster.Pool()
	c := &requestedCertificates{
		dir: t.TempDir(), node: "n1", ip: netip.MustParseAddr("192.0.2.7"), servers: []string{"https://127.0.0.1:1", server.URL},
		token: token, ca: keys.Cluster.PEM(), pool: pool, log: slog.New(slog.DiscardHandler),
	}
	if err := c.open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left := c.due(identityName, 1); left <= 0 || left > pki.MinValidity || c.due(identityName, renewAt) >= left {
		t.Errorf("the first is good for %v", left)
	}
	if c.due(servingName, renewAt) > 0 {
		t.Error("the certificate that it signed itself does")
	}
	var err error
	if c.client, err = kubernetes.NewForConfig(&rest.Config{Host: server.URL, BearerToken: "the-node", TLSClientConfig: rest.TLSClientConfig{CAData: c.ca}}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{identityName, servingName} {
		if err := c.replace(t.Context(), name); err != nil {
			t.Fatal(err)
		}
		if c.due(name, 1) <= 0 {
			t.Errorf("%s is not good", name)
		}
	}
	// It stood still for longer than its certificate lives.
	expired, err := keys.Cluster.Issue(pki.Node("n1"), time.Now().Add(-2*pki.Validity))
	if err != nil {
		t.Fatal(err)
	}
	if err := pki.WritePair(c.file("node.crt"), c.file("node.key"), expired); err != nil {
		t.Fatal(err)
	}
	if err := c.replace(t.Context(), identityName); err != nil || c.due(identityName, 1) <= 0 {
		t.Errorf("not replaced: %v", err)
	}
	want := []string{"Bearer " + token, "Bearer the-node", "Bearer the-node", "Bearer " + token}
	if !slices.Equal(api.callers, want) {
		t.Errorf("requested as %q, want %q", api.callers, want)
	}

	if err := pki.WritePair(c.file("node.crt"), c.file("node.key"), expired); err != nil {
		t.Fatal(err)
	}
	api.mu.Lock()
	api.refuses = true
	api.mu.Unlock()
	if err := c.open(t.Context()); err == nil || !strings.Contains(err.Error(), "barque token create") || !strings.Contains(err.Error(), "not any more") {
		t.Errorf("a token that is not good: %v", err)
	}
	c.token = ""
	if err := c.open(t.Context()); err == nil || !strings.Contains(err.Error(), "give a --token") {
		t.Errorf("no token: %v", err)
	}
}

// serving is an API server's.
func serving(t *testing.T, keys *pki.Authorities) *tls.Config {
	t.Helper()
	return &tls.Config{Certificates: []tls.Certificate{*issued(t, keys, pki.APIServer(pki.ServerNames{}))}}
}
