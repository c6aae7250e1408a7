package pki

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"slices"
)

// Users that the cluster's own parts are, as in stock Kubernetes.
const (
	// UserAdmin is the user of the admin kubeconfig.
	UserAdmin = "kubernetes-admin"
	// UserKubeletClient is the API server when it calls a kubelet.
	UserKubeletClient = "kube-apiserver-kubelet-client"
	// UserFrontProxy is the API server when it calls an aggregated API server.
	UserFrontProxy = "front-proxy-client"
	// GroupMasters may do everything.
	GroupMasters = "system:masters"
	// GroupNodes is the group of all kubelets.
	GroupNodes = "system:nodes"
	// nodePrefix starts the user name of a kubelet.
	nodePrefix = "system:node:"
)

// ServerNames are what an API server is called by its clients.
type ServerNames struct {
	// Host is the machine's host or node name; may be empty.
	Host string
	// ClusterDomain ends in-cluster names; empty means cluster.local.
	ClusterDomain string
	// Addresses are the advertised address, the bind address, the virtual IP, the first
	// service address, and others that users know. Invalid and unspecified ones are
	// left out; loopback is always added.
	Addresses []netip.Addr
	// Names are further DNS names.
	Names []string
}

// APIServer requests the serving certificate of an API server.
func APIServer(n ServerNames) Request {
	domain := n.ClusterDomain
	if domain == "" {
		domain = "cluster.local"
	}
	names := []string{
		"localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc",
		"kubernetes.default.svc." + domain,
	}
	if n.Host != "" {
		names = append(names, n.Host)
	}
	return Request{
		CommonName: "kube-apiserver",
		DNSNames:   unique(append(names, n.Names...)),
		IPs:        addresses(n.Addresses),
		Usages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

// Client requests a client certificate for a user in groups.
func Client(user string, groups ...string) Request {
	return Request{
		CommonName:    user,
		Organizations: groups,
		Usages:        []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
}

// Node requests the client certificate of a node's kubelet.
func Node(name string) Request { return Client(nodePrefix+name, GroupNodes) }

// KubeletServing requests the certificate that a node's kubelet serves with.
func KubeletServing(node string, names []string, ips []netip.Addr) Request {
	return Request{
		CommonName:    nodePrefix + node,
		Organizations: []string{GroupNodes},
		DNSNames:      unique(append([]string{node}, names...)),
		IPs:           addresses(ips),
		Usages:        []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
}

// EtcdPeer requests the certificate of an etcd member, which is server and client to others.
func EtcdPeer(member string, ips []netip.Addr) Request {
	return Request{
		CommonName: member,
		DNSNames:   unique([]string{"localhost", member}),
		IPs:        addresses(ips),
		Usages:     []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}
}

// addresses adds loopback, drops what no client can dial, and sorts.
func addresses(in []netip.Addr) []netip.Addr {
	out := []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1}), netip.IPv6Loopback()}
	for _, a := range in {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsUnspecified() {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.Addr.Compare)
	return slices.Compact(out)
}

// unique drops empty and repeated names, keeping the order.
func unique(in []string) []string {
	var out []string
	for _, s := range in {
		if s != "" && !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// mismatch describes what of a request a certificate lacks; nil when it satisfies it.
func mismatch(cert *x509.Certificate, req Request) error {
	if cert.Subject.CommonName != req.CommonName {
		return fmt.Errorf("it is for %q, not %q", cert.Subject.CommonName, req.CommonName)
	}
	for _, o := range req.Organizations {
		if !slices.Contains(cert.Subject.Organization, o) {
			return fmt.Errorf("it lacks the group %q", o)
		}
	}
	for _, name := range req.DNSNames {
		if !slices.Contains(cert.DNSNames, name) {
			return fmt.Errorf("it lacks the name %q", name)
		}
	}
	for _, ip := range req.IPs {
		has := false
		for _, have := range cert.IPAddresses {
			if a, ok := netip.AddrFromSlice(have); ok && a.Unmap() == ip.Unmap() {
				has = true
				break
			}
		}
		if !has {
			return fmt.Errorf("it lacks the address %s", ip)
		}
	}
	for _, u := range req.Usages {
		if !slices.Contains(cert.ExtKeyUsage, u) {
			return fmt.Errorf("it lacks a usage")
		}
	}
	return nil
}
