package csr

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"slices"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/controllers/noderole"
)

// request makes a signed request.
func request(t *testing.T, edit func(*x509.CertificateRequest)) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:n1", Organization: []string{"system:nodes"}}}
	if edit != nil {
		edit(template)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

// TestOwnNames: a node serves under what is its own, whatever it says of itself.
func TestOwnNames(t *testing.T) {
	node := func(name string, ready corev1.ConditionStatus, labels map[string]string, addresses ...string) corev1.Node {
		n := corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
		n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: ready}}
		for _, a := range addresses {
			n.Status.Addresses = append(n.Status.Addresses, corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: a})
		}
		return n
	}
	server := map[string]string{noderole.Label: ""}
	nodes := []corev1.Node{
		node("up", corev1.ConditionTrue, nil, "10.0.0.2"),
		node("gone", corev1.ConditionUnknown, nil, "10.0.0.3"),
		node("server", corev1.ConditionUnknown, server, "10.0.0.4"),
	}
	endpoints := []discoveryv1.EndpointSlice{{Endpoints: []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.5"}}}}}
	reserved := func(name string) bool { return name == "kubernetes" || name == "10.0.0.100" }
	for _, tt := range []struct {
		why, name string
		says      []string
		want      []string
	}{
		{"its own", "n1", []string{"10.0.0.1", "n1"}, []string{"10.0.0.1", "n1", "n1"}},
		{"another node's", "n1", []string{"10.0.0.2", "10.0.0.1"}, []string{"10.0.0.1", "n1"}},
		{"that of a machine that is gone", "n1", []string{"10.0.0.3"}, []string{"10.0.0.3", "n1"}},
		{"that of a server that is gone", "n1", []string{"10.0.0.4"}, []string{"n1"}},
		{"an endpoint of the API", "n1", []string{"10.0.0.5"}, []string{"n1"}},
		{"the virtual IP", "n1", []string{"10.0.0.100"}, []string{"n1"}},
		{"the API's name", "kubernetes", []string{"10.0.0.1"}, []string{"10.0.0.1"}},
	} {
		all := append(slices.Clone(nodes), node(tt.name, corev1.ConditionTrue, nil, tt.says...))
		if got := ownNames(tt.name, all, endpoints, reserved); !slices.Equal(got, tt.want) {
			t.Errorf("%s: %v, want %v", tt.why, got, tt.want)
		}
	}
}

func TestDecide(t *testing.T) {
	type edit func(*certificatesv1.CertificateSigningRequest)
	client := func(c *certificatesv1.CertificateSigningRequest) {
		c.Spec.SignerName = certificatesv1.KubeAPIServerClientKubeletSignerName
		c.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	}
	serving := func(x func(*x509.CertificateRequest)) edit {
		return func(c *certificatesv1.CertificateSigningRequest) {
			c.Spec.SignerName = certificatesv1.KubeletServingSignerName
			c.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
			c.Spec.Request = request(t, x)
		}
	}
	by := func(user string, groups ...string) edit {
		return func(c *certificatesv1.CertificateSigningRequest) { c.Spec.Username, c.Spec.Groups = user, groups }
	}
	asks := func(x func(*x509.CertificateRequest)) edit {
		return func(c *certificatesv1.CertificateSigningRequest) { c.Spec.Request = request(t, x) }
	}
	condition := func(kind certificatesv1.RequestConditionType) edit {
		return func(c *certificatesv1.CertificateSigningRequest) {
			c.Status.Conditions = append(c.Status.Conditions, certificatesv1.CertificateSigningRequestCondition{Type: kind})
		}
	}
	node := by("system:node:n1", "system:nodes")
	joiner := by("system:bootstrap:abc", "system:bootstrappers")
	own := func(r *x509.CertificateRequest) {
		r.DNSNames, r.IPAddresses = []string{"n1"}, []net.IP{net.ParseIP("10.0.0.1")}
	}
	tests := []struct {
		name  string
		edits []edit
		want  decision
	}{
		{"a joining machine asks for its identity", []edit{client, joiner, asks(nil)}, approve},
		{"a node renews its own", []edit{client, node, asks(nil)}, approve},
		{"a node asks for another's", []edit{client, by("system:node:n2", "system:nodes"), asks(nil)}, leave},
		{"a user asks for a node's", []edit{client, by("eve", "system:authenticated"), asks(nil)}, leave},
		{"a joining machine asks to be an administrator", []edit{client, joiner, asks(func(r *x509.CertificateRequest) {
			r.Subject.Organization = []string{"system:masters"}
		})}, leave},
		{"… or a node and an administrator", []edit{client, joiner, asks(func(r *x509.CertificateRequest) {
			r.Subject.Organization = []string{"system:nodes", "system:masters"}
		})}, leave},
		{"an identity with names", []edit{client, joiner, asks(own)}, leave},
		{"an identity that may serve", []edit{client, joiner, asks(nil), func(c *certificatesv1.CertificateSigningRequest) {
			c.Spec.Usages = append(c.Spec.Usages, certificatesv1.UsageServerAuth)
		}}, leave},
		{"no request at all", []edit{client, joiner, func(c *certificatesv1.CertificateSigningRequest) { c.Spec.Request = []byte("x") }}, leave},
		{"a node serves under its own names", []edit{serving(own), node}, approve},
		{"a node serves under another's address", []edit{serving(func(r *x509.CertificateRequest) {
			r.IPAddresses = []net.IP{net.ParseIP("10.0.0.2")}
		}), node}, leave},
		{"a node serves under a name that it says is its address", []edit{serving(func(r *x509.CertificateRequest) { r.DNSNames = []string{"said"} }), node}, leave},
		{"a node serves under another's name", []edit{serving(func(r *x509.CertificateRequest) { r.DNSNames = []string{"kubernetes"} }), node}, leave},
		{"a joining machine wants to serve", []edit{serving(own), joiner}, leave},
		{"approved", []edit{client, joiner, asks(nil), condition(certificatesv1.CertificateApproved)}, sign},
		{"approved, but for a signer of somebody else", []edit{client, joiner, asks(nil), condition(certificatesv1.CertificateApproved),
			func(c *certificatesv1.CertificateSigningRequest) { c.Spec.SignerName = "example.com/other" }}, leave},
		{"approved and denied", []edit{client, joiner, asks(nil), condition(certificatesv1.CertificateApproved), condition(certificatesv1.CertificateDenied)}, leave},
		{"signed", []edit{client, joiner, asks(nil), condition(certificatesv1.CertificateApproved),
			func(c *certificatesv1.CertificateSigningRequest) { c.Status.Certificate = []byte("cert") }}, leave},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			csr := &certificatesv1.CertificateSigningRequest{}
			for _, e := range tt.edits {
				e(csr)
			}
			if got := decide(csr, []string{"10.0.0.1", "said", "n1"}); got != tt.want {
				t.Errorf("got %d, want %d", got, tt.want)
			}
		})
	}
}
