package csr

import (
	"crypto/x509"
	"encoding/pem"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
)

type decision int8

const (
	leave decision = iota
	approve
	sign
)

const (
	nodePrefix      = "system:node:"
	nodesGroup      = "system:nodes"
	bootstrapGroup  = "system:bootstrappers"
	bootstrapPrefix = "system:bootstrap:"
)

// decide is what to do with a request. nodeAddresses are the requesting node's, if it is one.
func decide(csr *certificatesv1.CertificateSigningRequest, nodeAddresses []string) decision {
	switch {
	case has(csr, certificatesv1.CertificateDenied), has(csr, certificatesv1.CertificateFailed), len(csr.Status.Certificate) > 0:
		return leave
	case has(csr, certificatesv1.CertificateApproved):
		switch csr.Spec.SignerName {
		case certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName,
			certificatesv1.KubeAPIServerClientSignerName:
			return sign
		}
		return leave
	}
	request := parse(csr.Spec.Request)
	if request == nil {
		return leave
	}
	switch csr.Spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName:
		if mayBeNode(csr, request) && isNodeClient(csr, request) {
			return approve
		}
	case certificatesv1.KubeletServingSignerName:
		if isOwnServing(csr, request, nodeAddresses) {
			return approve
		}
	}
	return leave
}

func parse(text []byte) *x509.CertificateRequest {
	block, _ := pem.Decode(text)
	if block == nil {
		return nil
	}
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil || request.CheckSignature() != nil {
		return nil
	}
	return request
}

func nodeOf(user string) (string, bool) { return strings.CutPrefix(user, nodePrefix) }

// mayBeNode: a node may renew its own certificate, and a machine that joins with a bootstrap
// token may ask for its first.
func mayBeNode(csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest) bool {
	if slices.Contains(csr.Spec.Groups, nodesGroup) {
		return csr.Spec.Username == request.Subject.CommonName
	}
	return strings.HasPrefix(csr.Spec.Username, bootstrapPrefix) && slices.Contains(csr.Spec.Groups, bootstrapGroup)
}

func isNode(request *x509.CertificateRequest) bool {
	return slices.Equal(request.Subject.Organization, []string{nodesGroup}) &&
		len(request.Subject.CommonName) > len(nodePrefix) && strings.HasPrefix(request.Subject.CommonName, nodePrefix)
}

func isNodeClient(csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest) bool {
	return isNode(request) && !hasNames(request) && usesAre(csr, certificatesv1.UsageClientAuth)
}

// isOwnServing: the node asks for itself, and names nothing but addresses that it has told.
func isOwnServing(csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest, addresses []string) bool {
	if !isNode(request) || csr.Spec.Username != request.Subject.CommonName || !slices.Contains(csr.Spec.Groups, nodesGroup) ||
		!usesAre(csr, certificatesv1.UsageServerAuth) || len(request.EmailAddresses)+len(request.URIs) > 0 ||
		len(request.DNSNames)+len(request.IPAddresses) == 0 {
		return false
	}
	node, _ := nodeOf(csr.Spec.Username)
	for _, name := range request.DNSNames {
		if name != node && !slices.Contains(addresses, name) {
			return false
		}
	}
	for _, ip := range request.IPAddresses {
		if !slices.Contains(addresses, ip.String()) {
			return false
		}
	}
	return true
}

func hasNames(request *x509.CertificateRequest) bool {
	return len(request.DNSNames)+len(request.IPAddresses)+len(request.EmailAddresses)+len(request.URIs) > 0
}

// usesAre tells whether the request asks for the extended use and nothing but what goes with it.
func usesAre(csr *certificatesv1.CertificateSigningRequest, use certificatesv1.KeyUsage) bool {
	found := false
	for _, u := range csr.Spec.Usages {
		switch u {
		case use:
			found = true
		case certificatesv1.UsageDigitalSignature, certificatesv1.UsageKeyEncipherment:
		default:
			return false
		}
	}
	return found
}
