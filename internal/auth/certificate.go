package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
)

// verifiedCertificates bounds how many certificates' signatures are remembered.
const verifiedCertificates = 4096

// certificates recognises users by client certificates of one authority: the common name is
// the user, the organizations are the groups. A certificate is verified once and remembered;
// its validity in time is checked at each request.
type certificates struct {
	roots    *x509.CertPool
	now      func() time.Time
	verified *lru.Cache[[sha256.Size]byte, *verifiedCertificate]
}

type verifiedCertificate struct {
	notBefore, notAfter time.Time
	user                *user.DefaultInfo
}

func newCertificates(roots *x509.CertPool, now func() time.Time) (*certificates, error) {
	verified, err := lru.New[[sha256.Size]byte, *verifiedCertificate](verifiedCertificates)
	if err != nil {
		return nil, fmt.Errorf("make certificate cache: %w", err)
	}
	return &certificates{roots: roots, now: now, verified: verified}, nil
}

// AuthenticateRequest implements authenticator.Request.
func (c *certificates) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if req.TLS == nil || len(req.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	chain := req.TLS.PeerCertificates
	id := fingerprint(chain)
	v, ok := c.verified.Get(id)
	if !ok {
		var err error
		if v, err = c.verify(chain); err != nil {
			return nil, false, err
		}
		c.verified.Add(id, v)
	}
	if now := c.now(); now.Before(v.notBefore) || now.After(v.notAfter) {
		return nil, false, errors.New("x509: certificate has expired or is not yet valid")
	}
	response := &authenticator.Response{User: v.user}
	if audiences, ok := authenticator.AudiencesFrom(req.Context()); ok {
		response.Audiences = audiences
	}
	return response, true, nil
}

func (c *certificates) verify(chain []*x509.Certificate) (*verifiedCertificate, error) {
	leaf := chain[0]
	options := x509.VerifyOptions{
		Roots: c.roots, CurrentTime: c.now(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if len(chain) > 1 {
		options.Intermediates = x509.NewCertPool()
		for _, cert := range chain[1:] {
			options.Intermediates.AddCert(cert)
		}
	}
	chains, err := leaf.Verify(options)
	if err != nil {
		return nil, fmt.Errorf("verifying certificate of %q failed: %w", leaf.Subject.CommonName, err)
	}
	if leaf.Subject.CommonName == "" {
		return nil, errors.New("the client certificate has no common name")
	}
	sum := sha256.Sum256(leaf.Raw)
	v := &verifiedCertificate{notBefore: leaf.NotBefore, notAfter: leaf.NotAfter, user: &user.DefaultInfo{
		Name:   leaf.Subject.CommonName,
		Groups: leaf.Subject.Organization,
		Extra:  map[string][]string{user.CredentialIDKey: {"X509SHA256=" + hex.EncodeToString(sum[:])}},
	}}
	for _, cert := range chains[0] {
		if cert.NotAfter.Before(v.notAfter) {
			v.notAfter = cert.NotAfter
		}
		if cert.NotBefore.After(v.notBefore) {
			v.notBefore = cert.NotBefore
		}
	}
	return v, nil
}

func fingerprint(chain []*x509.Certificate) [sha256.Size]byte {
	if len(chain) == 1 {
		return sha256.Sum256(chain[0].Raw)
	}
	h := sha256.New()
	for _, cert := range chain {
		_, _ = h.Write(cert.Raw)
	}
	return [sha256.Size]byte(h.Sum(nil))
}

var _ authenticator.Request = (*certificates)(nil)
