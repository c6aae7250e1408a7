package node

import (
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"

	"barque.dev/internal/pki"
	"barque.dev/internal/pki/expiry"
)

// newKeys are a cluster's.
func newKeys(t *testing.T) *pki.Authorities {
	t.Helper()
	keys, err := pki.New(time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// issued is a certificate of the cluster.
func issued(t *testing.T, keys *pki.Authorities, r pki.Request) *tls.Certificate {
	t.Helper()
	pair, err := keys.Cluster.Issue(r, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	cert, err := pair.TLS()
	if err != nil {
		t.Fatal(err)
	}
	return &cert
}

// What nodes showed last is known, and nodes that are gone are forgotten.
func TestSightings(t *testing.T) {
	keys := newKeys(t)
	who := ""
	s := &sightings{Request: authenticator.RequestFunc(func(*http.Request) (*authenticator.Response, bool, error) {
		return &authenticator.Response{User: &user.DefaultInfo{Name: who}}, who != "", nil
	})}
	call := func(name string, cert *x509.Certificate) {
		t.Helper()
		who = name
		r := httptest.NewRequest(http.MethodGet, "/", nil)
		if cert != nil {
			r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}}
		}
		if _, ok, err := s.AuthenticateRequest(r); ok != (name != "") || err != nil {
			t.Fatalf("%s: %v, %v", name, ok, err)
		}
	}
	first, second := issued(t, keys, pki.Node("n1")).Leaf, issued(t, keys, pki.Node("n1")).Leaf
	call("system:node:n1", first)
	call("system:node:n1", second)
	call("system:node:n2", issued(t, keys, pki.Node("n2")).Leaf)
	call("system:node:n3", issued(t, keys, pki.Client("somebody")).Leaf) // by a token: the certificate says nothing of the node
	call("system:node:n4", nil)
	call("", second)
	call("somebody", issued(t, keys, pki.Client("somebody")).Leaf)

	node := func(name string) corev1.Node { return corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}} }
	r := s.report([]corev1.Node{node("n1"), node("n3"), node("n4")})
	if len(r.Certificates) != 1 || r.Certificates[0].Machine != "n1" || r.Certificates[0].Name != "node" {
		t.Fatalf("%+v", r.Certificates)
	}
	if want := expiry.Of("n1", "node", expiry.Leaf, second); r.Certificates[0] != want {
		t.Errorf("got %+v, want %+v", r.Certificates[0], want)
	}
	if r := s.report([]corev1.Node{node("n1"), node("n2")}); len(r.Certificates) != 1 {
		t.Errorf("n2 was not forgotten: %+v", r.Certificates)
	}
}

// What a node serves with is looked at, whoever signed it.
func TestServedBy(t *testing.T) {
	keys, others := newKeys(t), newKeys(t)
	s := &Server{pki: keys, cfg: ServerConfig{Common: Common{Log: slog.New(slog.DiscardHandler)}}}
	for name, tt := range map[string]struct {
		signer  *pki.Authorities
		problem string
	}{
		"the cluster's": {keys, ""},
		"another's":     {others, "the cluster has not signed it"},
	} {
		t.Run(name, func(t *testing.T) {
			cert := issued(t, tt.signer, pki.KubeletServing("n1", nil, nil))
			listener := httptest.NewUnstartedServer(http.NotFoundHandler())
			listener.TLS = &tls.Config{Certificates: []tls.Certificate{*cert}}
			listener.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelError)
			listener.StartTLS()
			defer listener.Close()
			host, portText, err := net.SplitHostPort(listener.Listener.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			port, _ := strconv.Atoi(portText)
			node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}}
			if _, err := s.servedBy(t.Context(), node); err == nil {
				t.Error("a node without an address was looked at")
			}
			node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "x"}, {Type: corev1.NodeInternalIP, Address: host}}
			node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(port)
			c, err := s.servedBy(t.Context(), node)
			if err != nil || c.Name != "node-serving" || !strings.Contains(c.Problem, tt.problem) || (tt.problem == "") != (c.Problem == "") {
				t.Errorf("%+v, %v", c, err)
			}
		})
	}
}

// A server's certificates live as long as it is told, are renewed in their files, and are listed with the rest of its data directory.
func TestRenewal(t *testing.T) {
	h := held(t, t.TempDir())
	keys, err := pki.Create(h.path("pki"))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(h.path("certs"), 0o700); err != nil {
		t.Fatal(err)
	}
	s := &Server{home: h, pki: keys, cfg: ServerConfig{
		Common: Common{NodeName: "s1", Log: slog.New(slog.DiscardHandler)}, AdvertiseAddress: netip.MustParseAddr("192.0.2.1"), HTTPSPort: 6443,
	}}
	if _, err := s.keeper("etcd-peer", keys.Etcd, pki.EtcdPeer("s1", nil)); err != nil {
		t.Fatal(err)
	}
	if err := pki.WriteFile(h.path("certs", peerCA+".crt"), keys.Etcd.PEM(), 0o600); err != nil {
		t.Fatal(err)
	}
	if !s.renewDue() {
		t.Error("nothing was due, and something went wrong")
	}
	lives := func() map[string]time.Duration {
		found := map[string]time.Duration{}
		for _, c := range h.certificates("s1").Certificates {
			if c.Problem != "" || c.Renewed != (c.Kind != expiry.Authority) {
				t.Errorf("%+v", c)
			}
			found[c.Name] = c.NotAfter.Sub(c.NotBefore).Round(time.Hour)
		}
		return found
	}
	got := lives()
	names := []string{"ca", "etcd-ca", "etcd-peer", "front-proxy-ca", "kubeconfig"}
	for _, name := range names {
		if got[name] == 0 {
			t.Errorf("%s is not listed: %v", name, got)
		}
	}
	if len(got) != len(names) || got["etcd-peer"] != pki.OwnValidity || got["kubeconfig"] != pki.Validity {
		t.Errorf("%v", got)
	}
	// A shorter life holds from the next start on.
	s.cfg.CertificateLifetime = time.Hour
	before := s.keepers["etcd-peer"]
	if _, err := s.keeper("etcd-peer", keys.Etcd, pki.EtcdPeer("s1", nil)); err != nil {
		t.Fatal(err)
	}
	if !s.renewDue() || !s.keepers["etcd-peer"].Due().Before(before.Due()) {
		t.Error("the old certificate is used")
	}
	if got := lives(); got["etcd-peer"] != time.Hour || got["kubeconfig"] != time.Hour {
		t.Errorf("%v", got)
	}
	// What can't be written is not well, until it can.
	if err := os.Remove(h.path("kubeconfig")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.path("kubeconfig", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if s.renewDue() {
		t.Error("a kubeconfig that can't be written is well")
	}
	if err := os.RemoveAll(h.path("kubeconfig")); err != nil {
		t.Fatal(err)
	}
	if !s.renewDue() {
		t.Error("it does not recover")
	}
}

func TestSignCSRLives(t *testing.T) {
	key := newRequest(t)
	for _, tt := range []struct {
		lifetime time.Duration
		signer   string
		want     time.Duration
	}{
		{0, certificatesv1.KubeletServingSignerName, pki.Validity},
		{time.Hour, certificatesv1.KubeletServingSignerName, time.Hour},
		{time.Minute, certificatesv1.KubeAPIServerClientKubeletSignerName, time.Minute},
		{time.Hour, certificatesv1.KubeAPIServerClientSignerName, csrLife},
		{3 * pki.Validity, certificatesv1.KubeletServingSignerName, csrLife},
	} {
		s := &Server{pki: newKeys(t), cfg: ServerConfig{CertificateLifetime: tt.lifetime}}
		text, err := s.signCSR(&certificatesv1.CertificateSigningRequestSpec{
			Request: key, SignerName: tt.signer, Usages: []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth}})
		if err != nil {
			t.Fatal(err)
		}
		cert, err := pki.ParseCertificate(text)
		if err != nil {
			t.Fatal(err)
		}
		if got := time.Until(cert.NotAfter); got > tt.want || got < tt.want-30*time.Second {
			t.Errorf("%s for %v: valid for %v", tt.signer, tt.lifetime, got)
		}
	}
}

func TestCheckLifetime(t *testing.T) {
	for d, good := range map[time.Duration]bool{
		0: true, pki.MinValidity: true, time.Hour: true, pki.AuthorityValidity: true,
		-time.Hour: false, time.Second: false, pki.AuthorityValidity + 1: false,
	} {
		if err := checkLifetime(d); (err == nil) != good {
			t.Errorf("%v: %v", d, err)
		}
	}
}

// An agent's directory holds its two certificates.
func TestAgentsCertificates(t *testing.T) {
	h := held(t, t.TempDir())
	if err := os.Mkdir(h.path("pki"), 0o700); err != nil {
		t.Fatal(err)
	}
	c := &requestedCertificates{dir: h.path("pki"), node: "a1", ip: netip.MustParseAddr("192.0.2.7")}
	if err := c.selfSign(); err != nil {
		t.Fatal(err)
	}
	list := h.certificates("a1").Certificates
	if len(list) != 1 || list[0].Kind != expiry.Leaf || list[0].Name != servingName || !list[0].Renewed {
		t.Errorf("%+v", list)
	}
	if _, running, err := Certificates(t.Context(), h.dir); err != nil || running {
		t.Errorf("the files: %v, %v", running, err)
	}
	if _, _, err := Certificates(t.Context(), t.TempDir()); err == nil || !strings.Contains(err.Error(), "holds no certificates") {
		t.Errorf("an empty directory: %v", err)
	}
	if !slices.ContainsFunc(h.certificates("a1").Certificates, func(c expiry.Certificate) bool { return c.Machine == "a1" }) {
		t.Error("it has no name")
	}
}
