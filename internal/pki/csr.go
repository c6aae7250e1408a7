package pki

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
)

// MinCSRValidity is the shortest validity that a CertificateSigningRequest can ask for.
const MinCSRValidity = 10 * time.Minute

// ParseCSR reads a certificate request in PEM (PKCS #10, RFC 2986) and checks its signature.
func ParseCSR(text []byte) (*x509.CertificateRequest, error) {
	block, _ := pem.Decode(text)
	if block == nil || block.Type != "CERTIFICATE REQUEST" {
		return nil, errors.New("parse certificate request: it holds no CERTIFICATE REQUEST in PEM")
	}
	csr, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return nil, fmt.Errorf("parse certificate request: %w", err)
	}
	if err := csr.CheckSignature(); err != nil {
		return nil, fmt.Errorf("check certificate request: %w", err)
	}
	return csr, nil
}

// SignCSR signs an approved CertificateSigningRequest as its spec asks: its usages, and its
// expirationSeconds within [MinCSRValidity, limit] (limit 0 means Validity). Whether the
// signer may sign it at all is the caller's decision. It returns the certificate in PEM.
func (a *Authority) SignCSR(spec *certificatesv1.CertificateSigningRequestSpec, limit time.Duration, now time.Time) ([]byte, error) {
	csr, err := ParseCSR(spec.Request)
	if err != nil {
		return nil, err
	}
	keyUsage, usages, err := usagesOf(spec.Usages)
	if err != nil {
		return nil, fmt.Errorf("sign certificate request of %s: %w", csr.Subject.CommonName, err)
	}
	if len(csr.URIs) > 0 || len(csr.EmailAddresses) > 0 {
		return nil, fmt.Errorf("sign certificate request of %s: URI and e-mail names are not supported", csr.Subject.CommonName)
	}
	req := Request{
		CommonName:    csr.Subject.CommonName,
		Organizations: csr.Subject.Organization,
		DNSNames:      csr.DNSNames,
		IPs:           addrs(csr.IPAddresses),
		Usages:        usages,
		Validity:      csrValidity(spec.ExpirationSeconds, limit),
	}
	return a.sign(req, csr.PublicKey, keyUsage, now)
}

func csrValidity(seconds *int32, limit time.Duration) time.Duration {
	if limit == 0 {
		limit = Validity
	}
	if seconds == nil {
		return limit
	}
	return min(max(time.Duration(*seconds)*time.Second, MinCSRValidity), limit)
}

func addrs(in []net.IP) []netip.Addr {
	var out []netip.Addr
	for _, ip := range in {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out = append(out, a.Unmap())
		}
	}
	return out
}

// usagesOf translates the API's usage names (RFC 5280 4.2.1.3 and 4.2.1.12). A certificate
// that may sign others is never issued.
func usagesOf(names []certificatesv1.KeyUsage) (key x509.KeyUsage, ext []x509.ExtKeyUsage, err error) {
	for _, name := range names {
		switch name {
		case certificatesv1.UsageSigning, certificatesv1.UsageDigitalSignature:
			key |= x509.KeyUsageDigitalSignature
		case certificatesv1.UsageContentCommitment:
			key |= x509.KeyUsageContentCommitment
		case certificatesv1.UsageKeyEncipherment:
			key |= x509.KeyUsageKeyEncipherment
		case certificatesv1.UsageKeyAgreement:
			key |= x509.KeyUsageKeyAgreement
		case certificatesv1.UsageDataEncipherment:
			key |= x509.KeyUsageDataEncipherment
		case certificatesv1.UsageEncipherOnly:
			key |= x509.KeyUsageEncipherOnly
		case certificatesv1.UsageDecipherOnly:
			key |= x509.KeyUsageDecipherOnly
		case certificatesv1.UsageAny:
			ext = append(ext, x509.ExtKeyUsageAny)
		case certificatesv1.UsageServerAuth:
			ext = append(ext, x509.ExtKeyUsageServerAuth)
		case certificatesv1.UsageClientAuth:
			ext = append(ext, x509.ExtKeyUsageClientAuth)
		case certificatesv1.UsageCodeSigning:
			ext = append(ext, x509.ExtKeyUsageCodeSigning)
		case certificatesv1.UsageEmailProtection, certificatesv1.UsageSMIME:
			ext = append(ext, x509.ExtKeyUsageEmailProtection)
		case certificatesv1.UsageTimestamping:
			ext = append(ext, x509.ExtKeyUsageTimeStamping)
		case certificatesv1.UsageOCSPSigning:
			ext = append(ext, x509.ExtKeyUsageOCSPSigning)
		default:
			return 0, nil, fmt.Errorf("the usage %q is not supported", name)
		}
	}
	return key, ext, nil
}
