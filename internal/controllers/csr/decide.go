package csr

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"slices"
	"strings"

	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"

	"barque.dev/internal/api"
	"barque.dev/internal/controllers/noderole"
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

// decide is what to do with a request. own is what the requesting node, if it is one, may serve under.
func decide(csr *certificatesv1.CertificateSigningRequest, own []string) decision {
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
		if isOwnServing(csr, request, own) {
			return approve
		}
	}
	return leave
}

// refusal is why what was approved must not be signed; nil if it may be.
func refusal(csr *certificatesv1.CertificateSigningRequest) error {
	request := parse(csr.Spec.Request)
	if request == nil {
		return errors.New("spec.request is no certificate request (PKCS #10) in PEM with a good signature")
	}
	signer, use := csr.Spec.SignerName, certificatesv1.UsageClientAuth
	if signer == certificatesv1.KubeletServingSignerName {
		use = certificatesv1.UsageServerAuth
	}
	switch {
	case !usesAre(csr, use):
		return fmt.Errorf("spec.usages: %s signs for the use %q, beside digital signature and key encipherment", signer, use)
	case slices.Contains(request.Subject.Organization, api.ServersGroup):
		return fmt.Errorf("nobody but a server signs for the organization %s", api.ServersGroup)
	case signer == certificatesv1.KubeAPIServerClientSignerName:
		return nil
	case !isNode(request):
		return fmt.Errorf("%s signs for the organization %s alone, and common names that begin with %s", signer, nodesGroup, nodePrefix)
	case signer == certificatesv1.KubeAPIServerClientKubeletSignerName && hasNames(request):
		return fmt.Errorf("%s signs no alternative names", signer)
	case signer == certificatesv1.KubeletServingSignerName && !servesNames(request):
		return fmt.Errorf("%s signs DNS names and IP addresses, one at least, and no other alternative names", signer)
	}
	return nil
}

// servesNames: there are names that a server can be reached at, and none of another sort.
func servesNames(request *x509.CertificateRequest) bool {
	return len(request.DNSNames)+len(request.IPAddresses) > 0 && len(request.EmailAddresses)+len(request.URIs) == 0
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
func isOwnServing(csr *certificatesv1.CertificateSigningRequest, request *x509.CertificateRequest, own []string) bool {
	if !isNode(request) || csr.Spec.Username != request.Subject.CommonName || !slices.Contains(csr.Spec.Groups, nodesGroup) ||
		!usesAre(csr, certificatesv1.UsageServerAuth) || !servesNames(request) {
		return false
	}
	node, _ := nodeOf(csr.Spec.Username)
	for _, name := range request.DNSNames {
		if name != node || !slices.Contains(own, name) {
			return false
		}
	}
	for _, ip := range request.IPAddresses {
		if !slices.Contains(own, ip.String()) {
			return false
		}
	}
	return true
}

// ownNames are the node's name and those of its addresses that are nobody else's: a node says itself what its addresses
// are, and could name those of an API server or of another node, to be taken for it. Nodes that are gone keep nobody
// from taking over their address, unless they are servers.
func ownNames(name string, nodes []corev1.Node, servers []discoveryv1.EndpointSlice, reserved Reserved) []string {
	others := map[string]bool{}
	var said []corev1.NodeAddress
	for i := range nodes {
		n := &nodes[i]
		if n.Name == name {
			said = n.Status.Addresses
			continue
		}
		_, server := n.Labels[noderole.Label]
		if !server && !isReady(n) {
			continue
		}
		for _, a := range n.Status.Addresses {
			others[a.Address] = true
		}
	}
	for i := range servers {
		for _, e := range servers[i].Endpoints {
			for _, a := range e.Addresses {
				others[a] = true
			}
		}
	}
	var own []string
	for _, a := range append(said, corev1.NodeAddress{Address: name}) {
		if !others[a.Address] && !reserved(a.Address) {
			own = append(own, a.Address)
		}
	}
	return own
}

func isReady(n *corev1.Node) bool {
	return slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
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
