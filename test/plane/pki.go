package plane

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

// PKI is what stock's processes prove themselves with: one authority, a server's and an
// administrator's certificate, and the key of service account tokens.
type PKI struct {
	dir                     string
	CA, AdminCert, AdminKey []byte // in PEM
}

// Path is where a file of it is, such as "ca.crt" or "server.key".
func (f *PKI) Path(name string) string { return filepath.Join(f.dir, name) }

// WritePKI makes everything anew below dir.
func WritePKI(dir string) (*PKI, error) {
	f := &PKI{dir: filepath.Join(dir, "pki")}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return nil, err
	}
	caKey, err := newKey()
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{Subject: pkix.Name{CommonName: "side by side"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	authority, err := sign(ca, ca, &caKey.PublicKey, caKey)
	if err != nil {
		return nil, err
	}
	f.CA = authority
	if err := f.write("ca.crt", authority); err != nil {
		return nil, err
	}
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for name, template := range map[string]*x509.Certificate{
		"server": {Subject: pkix.Name{CommonName: "server"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"}, ExtKeyUsage: both},
		"admin":  {Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}}, ExtKeyUsage: both[1:]},
		"sa":     {},
	} {
		key, err := newKey()
		if err != nil {
			return nil, err
		}
		der, err := x509.MarshalECPrivateKey(key)
		if err != nil {
			return nil, err
		}
		private := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
		cert, err := sign(template, ca, &key.PublicKey, caKey)
		if err != nil {
			return nil, err
		}
		if name == "admin" {
			f.AdminCert, f.AdminKey = cert, private
		}
		if err := f.write(name+".key", private); err != nil {
			return nil, err
		}
		if err := f.write(name+".crt", cert); err != nil {
			return nil, err
		}
	}
	return f, nil
}

func (f *PKI) write(name string, data []byte) error { return os.WriteFile(f.Path(name), data, 0o600) }

func newKey() (*ecdsa.PrivateKey, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) }

// sign completes a certificate and has its authority sign it.
func sign(template, authority *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey) ([]byte, error) {
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		return nil, err
	}
	template.SerialNumber = serial
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, authority, public, key)
	if err != nil {
		return nil, err
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), nil
}
