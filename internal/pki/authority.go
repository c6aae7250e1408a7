package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

// An Authority is a certificate authority with its key. It is immutable and safe for
// concurrent use.
type Authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// A Pair is a certificate with its private key, both in PEM.
type Pair struct {
	Certificate []byte
	Key         []byte
}

// TLS parses the pair for use in a tls.Config; its Leaf is set.
func (p *Pair) TLS() (tls.Certificate, error) {
	c, err := tls.X509KeyPair(p.Certificate, p.Key)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("parse certificate and key: %w", err)
	}
	return c, nil
}

// A Request says whom a certificate is for and what it may be used for.
type Request struct {
	// CommonName is the user's name for a client certificate.
	CommonName string
	// Organizations are the user's groups for a client certificate.
	Organizations []string
	// DNSNames and IPs are what a server may be called.
	DNSNames []string
	IPs      []netip.Addr
	// Usages must not be empty.
	Usages []x509.ExtKeyUsage
	// Validity is how long from now; 0 means the package's Validity. It is cut at the end of
	// the authority's own.
	Validity time.Duration
}

// NewAuthority makes a self-signed authority with a new key.
func NewAuthority(commonName string, now time.Time) (*Authority, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of authority %s: %w", commonName, err)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: commonName},
		NotBefore:             now.Add(-maxBackdate).UTC(),
		NotAfter:              now.Add(AuthorityValidity).UTC(),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign authority %s: %w", commonName, err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("parse authority %s: %w", commonName, err)
	}
	return &Authority{cert: cert, key: key}, nil
}

// Certificate returns the authority's certificate; it must not be changed.
func (a *Authority) Certificate() *x509.Certificate { return a.cert }

// PEM returns the authority's certificate in PEM, such as for a trust bundle.
func (a *Authority) PEM() []byte { return encodeCertificate(a.cert.Raw) }

// Pool returns a new pool that trusts this authority alone.
func (a *Authority) Pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// Hash is the lower-case hex SHA-256 of the authority's certificate in DER: what a join token
// pins.
func (a *Authority) Hash() string { return Hash(a.cert) }

// Hash is the lower-case hex SHA-256 of a certificate in DER.
func Hash(cert *x509.Certificate) string {
	sum := sha256.Sum256(cert.Raw)
	return hex.EncodeToString(sum[:])
}

// Issue makes a key and a certificate for it.
func (a *Authority) Issue(req Request, now time.Time) (*Pair, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make key of certificate %s: %w", req.CommonName, err)
	}
	cert, err := a.sign(req, key.Public(), x509.KeyUsageDigitalSignature, now)
	if err != nil {
		return nil, err
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return nil, fmt.Errorf("encode key of certificate %s: %w", req.CommonName, err)
	}
	return &Pair{Certificate: cert, Key: keyPEM}, nil
}

// sign makes a certificate in PEM for a public key.
func (a *Authority) sign(req Request, public crypto.PublicKey, usage x509.KeyUsage, now time.Time) ([]byte, error) {
	if len(req.Usages) == 0 {
		return nil, fmt.Errorf("sign certificate %s: no usage given", req.CommonName)
	}
	if !now.Before(a.cert.NotAfter) {
		return nil, fmt.Errorf("sign certificate %s: the authority %s expired at %s",
			req.CommonName, a.cert.Subject.CommonName, a.cert.NotAfter.Format(time.RFC3339))
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	validity := req.Validity
	if validity == 0 {
		validity = Validity
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: req.CommonName, Organization: req.Organizations},
		NotBefore:             latest(now.Add(-backdate(validity)), a.cert.NotBefore).UTC(),
		NotAfter:              earliest(now.Add(validity), a.cert.NotAfter).UTC(),
		KeyUsage:              usage,
		ExtKeyUsage:           req.Usages,
		BasicConstraintsValid: true,
		DNSNames:              req.DNSNames,
	}
	for _, ip := range req.IPs {
		template.IPAddresses = append(template.IPAddresses, net.IP(ip.Unmap().AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate %s: %w", req.CommonName, err)
	}
	return encodeCertificate(der), nil
}

// newAuthority checks that certificate and key make an authority.
func newAuthority(cert *x509.Certificate, key crypto.Signer) (*Authority, error) {
	if !cert.IsCA {
		return nil, errors.New("the certificate is not that of an authority")
	}
	public, ok := key.Public().(interface{ Equal(crypto.PublicKey) bool })
	if !ok || !public.Equal(cert.PublicKey) {
		return nil, errors.New("the key does not belong to the certificate")
	}
	return &Authority{cert: cert, key: key}, nil
}

// newSerial makes a random serial number of 127 bits (RFC 5280 allows up to 20 octets).
func newSerial() (*big.Int, error) {
	limit := new(big.Int).Lsh(big.NewInt(1), 127)
	n, err := rand.Int(rand.Reader, limit)
	if err != nil {
		return nil, fmt.Errorf("make serial number: %w", err)
	}
	return n.Add(n, big.NewInt(1)), nil
}

func earliest(a, b time.Time) time.Time {
	if a.Before(b) {
		return a
	}
	return b
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Secret derives a secret of the authority's key, one for each purpose: whoever has the key can make it
// again, and it tells nothing of the key or of other secrets (HKDF, RFC 5869). id, which is public, tells
// the keys of authorities apart: it stays when the certificate is renewed.
func (a *Authority) Secret(purpose string) (secret [32]byte, id string, err error) {
	seed, err := seedOf(a.key)
	if err != nil {
		return secret, "", fmt.Errorf("derive a secret of %s: %w", a.cert.Subject.CommonName, err)
	}
	derived, err := hkdf.Key(sha256.New, seed, nil, "barque: "+purpose, len(secret))
	if err != nil {
		return secret, "", fmt.Errorf("derive a secret of %s: %w", a.cert.Subject.CommonName, err)
	}
	copy(secret[:], derived)
	sum := sha256.Sum256(a.cert.RawSubjectPublicKeyInfo)
	return secret, "sha256:" + hex.EncodeToString(sum[:]), nil
}

// seedOf is the private number of a key, however the key is encoded.
func seedOf(key crypto.Signer) ([]byte, error) {
	switch key := key.(type) {
	case *ecdsa.PrivateKey:
		return key.Bytes()
	case *rsa.PrivateKey:
		return key.D.Bytes(), nil
	case ed25519.PrivateKey:
		return key.Seed(), nil
	}
	return nil, fmt.Errorf("a key of type %T shows no private number", key)
}
