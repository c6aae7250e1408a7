package csr

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"testing"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/controllers/controllertest"
)

// TestApprovalIsNotEnough: what a signer's rules forbid is not signed, whoever has approved it. Who may approve for one signer
// would else make any certificate that the authority can give.
func TestApprovalIsNotEnough(t *testing.T) {
	const (
		user    = certificatesv1.KubeAPIServerClientSignerName
		node    = certificatesv1.KubeAPIServerClientKubeletSignerName
		serving = certificatesv1.KubeletServingSignerName
	)
	asClient := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth}
	asServer := []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment, certificatesv1.UsageServerAuth}
	asBoth := []certificatesv1.KeyUsage{certificatesv1.UsageClientAuth, certificatesv1.UsageServerAuth}
	subject := func(name string, organizations ...string) func(*x509.CertificateRequest) {
		return func(r *x509.CertificateRequest) {
			r.Subject = pkix.Name{CommonName: name, Organization: organizations}
		}
	}
	named := func(r *x509.CertificateRequest) {
		r.DNSNames, r.IPAddresses = []string{"kubernetes.default.svc"}, []net.IP{net.IPv4(10, 0, 0, 1)}
	}
	mailed := func(r *x509.CertificateRequest) { named(r); r.EmailAddresses = []string{"n1@example.org"} }
	for _, tt := range []struct {
		why, signer string
		usages      []certificatesv1.KeyUsage
		edit        func(*x509.CertificateRequest)
		signed      bool
	}{
		{"a user", user, asClient, subject("jane", "developers"), true},
		{"one of Barque's servers", user, asClient, subject("barque:server:x", "barque:servers"), false},
		{"a user that could serve", user, asBoth, subject("jane"), false},
		{"a server that calls itself a user", user, asServer, named, false},
		{"a user that may do nothing", user, asClient[:1], subject("jane"), false},
		{"a node", node, asClient, nil, true},
		{"a node that is an administrator", node, asClient, subject("system:node:n1", "system:nodes", "system:masters"), false},
		{"an administrator in place of a node", node, asClient, subject("admin", "system:masters"), false},
		{"a user in place of a node", node, asClient, subject("jane", "system:nodes"), false},
		{"a node that could serve", node, asBoth, nil, false},
		{"a node with names", node, asClient, named, false},
		{"a node's server", serving, asServer, named, true},
		{"a node's server without names", serving, asServer, nil, false},
		{"a node's server with an address for letters", serving, asServer, mailed, false},
		{"a node's server that could be a client", serving, asBoth, named, false},
		{"a server of somebody else", serving, asServer, func(r *x509.CertificateRequest) { subject("api")(r); named(r) }, false},
	} {
		t.Run(tt.why, func(t *testing.T) {
			w := controllertest.New(t)
			csr := &certificatesv1.CertificateSigningRequest{
				ObjectMeta: metav1.ObjectMeta{Name: "r"},
				Spec:       certificatesv1.CertificateSigningRequestSpec{SignerName: tt.signer, Usages: tt.usages, Request: request(t, tt.edit)},
			}
			w.MustCreate(csr)
			controllertest.Change(w, csr, func(c *certificatesv1.CertificateSigningRequest) {
				c.Status.Conditions = []certificatesv1.CertificateSigningRequestCondition{{Type: certificatesv1.CertificateApproved, Status: corev1.ConditionTrue}}
			})
			asked := false
			c := New(w.Deps(), func(*certificatesv1.CertificateSigningRequestSpec) ([]byte, error) {
				asked = true
				return []byte("certificate"), nil
			}, func(string) bool { return false })
			w.Reconcile(c, csr)
			got := controllertest.Reload(w, csr)
			if asked != tt.signed || (len(got.Status.Certificate) > 0) != tt.signed {
				t.Errorf("signed: %v, want %v", asked, tt.signed)
			}
			if has(got, certificatesv1.CertificateFailed) == tt.signed {
				t.Errorf("conditions: %+v", got.Status.Conditions)
			}
		})
	}
}
