package node

import (
	"context"
	"crypto/tls"
	"net"
	"net/netip"
	"strconv"

	"barque.dev/internal/pki"
)

// openWorker makes the part that runs pods. A server has the cluster's keys, so it issues the
// node's certificates itself.
func (s *Server) openWorker(context.Context) (err error) {
	if s.cfg.DisableAgent {
		return nil
	}
	certs, err := s.nodeCertificates()
	if err != nil {
		return err
	}
	own := net.JoinHostPort(s.cfg.AdvertiseAddress.String(), strconv.Itoa(s.cfg.HTTPSPort))
	s.worker, err = newWorker(workerConfig{
		Common: s.cfg.Common, home: s.home, ip: s.cfg.AdvertiseAddress,
		servers: []string{"https://" + own}, prefer: "https://" + own, certs: certs, ca: s.pki.Cluster.PEM(),
		clusterCIDR: s.cfg.ClusterCIDR, serviceCIDR: s.cfg.ServiceCIDR,
		clusterDNS: s.cfg.ClusterDNS, clusterDomain: s.cfg.ClusterDomain,
	})
	return err
}

// keptCertificates are a node's certificates on a machine that has the cluster's keys.
type keptCertificates struct {
	authority       *pki.Authority
	client, serving *pki.Keeper
}

func (s *Server) nodeCertificates() (*keptCertificates, error) {
	client, err := s.keeper("node", s.pki.Cluster, pki.Node(s.cfg.NodeName))
	if err != nil {
		return nil, err
	}
	serving, err := s.keeper("node-serving", s.pki.Cluster,
		pki.KubeletServing(s.cfg.NodeName, []string{s.cfg.NodeName}, []netip.Addr{s.cfg.AdvertiseAddress}))
	if err != nil {
		return nil, err
	}
	return &keptCertificates{s.pki.Cluster, client, serving}, nil
}

// ClientTLS implements certificates.
func (c *keptCertificates) ClientTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: c.authority.Pool(), ServerName: "kubernetes",
		GetClientCertificate: c.client.GetClientCertificate,
	}
}

// ServingTLS implements certificates.
func (c *keptCertificates) ServingTLS() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: c.serving.GetCertificate,
		ClientCAs: c.authority.Pool(), ClientAuth: tls.RequestClientCert,
	}
}
