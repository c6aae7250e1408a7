package auth

import (
	"crypto/sha256"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	x509request "k8s.io/apiserver/pkg/authentication/request/x509"
	"k8s.io/apiserver/pkg/authentication/user"
)

// verifiedCertificates bounds how many certificates' signatures are remembered.
const verifiedCertificates = 4096

// seenCertificates bounds how many certificates are kept in memory, to be known without a look at their content.
const seenCertificates = 256

// certificates recognises users by client certificates of one authority: the common name is
// the user, the organizations are the groups; a UID may be there too, as in stock. A certificate is verified once and remembered;
// its validity in time is checked at each request.
type certificates struct {
	roots    *x509.CertPool
	now      func() time.Time
	verified *lru.Cache[[sha256.Size]byte, *verifiedCertificate]
	// seen are those of verified that came alone, by where they are in memory: all requests of a client share one.
	seen *lru.Cache[*x509.Certificate, *verifiedCertificate]
}

type verifiedCertificate struct {
	notBefore, notAfter time.Time
	user                user.Info // nil when the certificate names nobody
}

func newCertificates(roots *x509.CertPool, now func() time.Time) (*certificates, error) {
	verified, err := lru.New[[sha256.Size]byte, *verifiedCertificate](verifiedCertificates)
	if err != nil {
		return nil, fmt.Errorf("make certificate cache: %w", err)
	}
	seen, err := lru.New[*x509.Certificate, *verifiedCertificate](seenCertificates)
	if err != nil {
		return nil, fmt.Errorf("make certificate cache: %w", err)
	}
	return &certificates{roots: roots, now: now, verified: verified, seen: seen}, nil
}

// AuthenticateRequest implements authenticator.Request.
func (c *certificates) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	if req.TLS == nil || len(req.TLS.PeerCertificates) == 0 {
		return nil, false, nil
	}
	v, err := c.known(req.TLS.PeerCertificates)
	if err != nil {
		return nil, false, err
	}
	if now := c.now(); now.Before(v.notBefore) || now.After(v.notAfter) {
		return nil, false, errors.New("x509: certificate has expired or is not yet valid")
	}
	if v.user == nil {
		return nil, false, nil
	}
	response := &authenticator.Response{User: v.user}
	if audiences, ok := authenticator.AudiencesFrom(req.Context()); ok {
		response.Audiences = audiences
	}
	return response, true, nil
}

// known is what is remembered of a chain, which is verified the first time.
func (c *certificates) known(chain []*x509.Certificate) (*verifiedCertificate, error) {
	if len(chain) == 1 {
		if v, ok := c.seen.Get(chain[0]); ok {
			return v, nil
		}
	}
	id := fingerprint(chain)
	v, ok := c.verified.Get(id)
	if !ok {
		var err error
		if v, err = c.verify(chain); err != nil {
			return nil, err
		}
		c.verified.Add(id, v)
	}
	if len(chain) == 1 {
		c.seen.Add(chain[0], v)
	}
	return v, nil
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
	response, ok, err := x509request.CommonNameUserConversion.User(chains[0])
	if err != nil {
		return nil, fmt.Errorf("the user of certificate %q: %w", leaf.Subject.CommonName, err)
	}
	v := &verifiedCertificate{notBefore: leaf.NotBefore, notAfter: leaf.NotAfter}
	if ok {
		v.user = response.User
	}
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
