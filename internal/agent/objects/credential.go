package objects

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"barque.dev/internal/agent/volume"
)

const (
	// requestLost is how long after it was made a request that is not there counts as deleted, and not as not
	// seen yet.
	requestLost = 10 * time.Minute
	// refreshOverdue is how long after its time a certificate may still be the old one before the pod's user is told.
	refreshOverdue = 10 * time.Minute
	// refreshSpread is within which time after a signer's wish a certificate is renewed, so that not all are at once.
	refreshSpread = 5 * time.Minute
	// refreshCheck is how often a certificate whose successor is on its way is looked after.
	refreshCheck = time.Minute
)

// credential is what is known about one source.
type credential struct {
	mu sync.Mutex // held while a request is made, so that there are not two
	credentialState
}

// credentialState is where a source stands; its methods know neither the API nor the clock.
type credentialState struct {
	key, chain         []byte // PEM; none before the first answer
	refreshAt, expires time.Time
	asked              *question // nil when none is under way
	refused            error     // for good, since the signer denied a request or failed
	// toldOverdue and toldExpired: the user knows.
	toldOverdue, toldExpired bool
}

// question is a request under way, and the key that the answer belongs to.
type question struct {
	name  string
	key   []byte // PKCS #8, PEM
	since time.Time
}

// event is something that the pod's user is told.
type event struct{ reason, message string }

// due tells whether a request has to be made.
func (x *credentialState) due(now time.Time) bool {
	return x.asked == nil && x.refused == nil && (len(x.key) == 0 || !now.Before(x.refreshAt))
}

// certificate is the present one, and when to look again.
func (x *credentialState) certificate(now time.Time) volume.Certificate {
	out := volume.Certificate{Key: x.key, Chain: x.chain, Renew: x.refreshAt}
	if !now.Before(x.refreshAt) {
		out.Renew = now.Add(refreshCheck)
	}
	return out
}

// take takes in what has become of the request under way; nil says that it is not known.
func (x *credentialState) take(request *certificatesv1.PodCertificateRequest, now time.Time) []event {
	if request == nil {
		if now.After(x.asked.since.Add(requestLost)) {
			x.asked = nil
		}
		return nil
	}
	for _, condition := range request.Status.Conditions {
		switch condition.Type {
		case certificatesv1.PodCertificateRequestConditionTypeDenied, certificatesv1.PodCertificateRequestConditionTypeFailed:
			x.asked = nil
			x.refused = fmt.Errorf("PodCertificateRequest %s/%s: %s, %s: %s", request.Namespace, request.Name, condition.Type, condition.Reason, condition.Message)
			return []event{{condition.Type, x.refused.Error()}}
		case certificatesv1.PodCertificateRequestConditionTypeIssued:
			if request.Status.BeginRefreshAt == nil || request.Status.NotAfter == nil {
				return nil // validation lets no such answer pass
			}
			*x = credentialState{
				key: x.asked.key, chain: onlyBlocks([]byte(request.Status.CertificateChain)), expires: request.Status.NotAfter.Time,
				refreshAt: request.Status.BeginRefreshAt.Add(rand.N(refreshSpread)),
			}
			return nil
		}
	}
	return nil
}

// late tells, once each, that the certificate should have been renewed, and that it holds no more.
func (x *credentialState) late(now time.Time) []event {
	var out []event
	if len(x.key) == 0 {
		return nil
	}
	if !x.toldOverdue && now.After(x.refreshAt.Add(refreshOverdue)) {
		x.toldOverdue = true
		out = append(out, event{"CertificateOverdueForRefresh", "PodCertificate refresh overdue"})
	}
	if !x.toldExpired && now.After(x.expires) {
		x.toldExpired = true
		out = append(out, event{"CertificateExpired", "PodCertificate expired"})
	}
	return out
}

// onlyBlocks is a chain of certificates without what stands between them.
func onlyBlocks(chain []byte) []byte {
	var out []byte
	for block, rest := pem.Decode(chain); block != nil; block, rest = pem.Decode(rest) {
		out = append(out, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: block.Bytes})...)
	}
	return out
}

// newKey makes a key, and the empty PKCS #10 request that proves that it is ours.
func newKey(kind string) (keyPEM, proof []byte, err error) {
	key, err := generateKey(kind)
	if err != nil {
		return nil, nil, fmt.Errorf("key of type %s: %w", kind, err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("key of type %s: %w", kind, err)
	}
	if proof, err = x509.CreateCertificateRequest(cryptorand.Reader, &x509.CertificateRequest{}, key); err != nil {
		return nil, nil, fmt.Errorf("request for a certificate of a key of type %s: %w", kind, err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), proof, nil
}

func generateKey(kind string) (crypto.Signer, error) {
	switch kind {
	case "RSA3072":
		return rsa.GenerateKey(cryptorand.Reader, 3072)
	case "RSA4096":
		return rsa.GenerateKey(cryptorand.Reader, 4096)
	case "ECDSAP256":
		return ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	case "ECDSAP384":
		return ecdsa.GenerateKey(elliptic.P384(), cryptorand.Reader)
	case "ECDSAP521":
		return ecdsa.GenerateKey(elliptic.P521(), cryptorand.Reader)
	case "ED25519":
		_, key, err := ed25519.GenerateKey(cryptorand.Reader)
		return key, err
	}
	return nil, errors.New("this node does not know it")
}
