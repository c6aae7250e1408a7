package node

import (
	"context"
	"fmt"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"

	"barque.dev/internal/pki"
	"barque.dev/internal/run"
)

// checkLifetime tells what is wrong with how long certificates are to be valid.
func checkLifetime(d time.Duration) error {
	if d != 0 && (d < pki.MinValidity || d > pki.AuthorityValidity) {
		return fmt.Errorf("--certificate-lifetime %v: choose %v or more, and at most ten years, or 0 for the defaults", d, pki.MinValidity)
	}
	return nil
}

// ownLifetime is how long a certificate is valid that this server issues to itself. Nobody misses it when it ends, since the next
// one costs a millisecond.
func (c *ServerConfig) ownLifetime() time.Duration {
	if c.CertificateLifetime != 0 {
		return c.CertificateLifetime
	}
	return pki.OwnValidity
}

// givenLifetime is how long one is valid that others have to fetch in time: agents, and whoever copied a kubeconfig.
func (c *ServerConfig) givenLifetime() time.Duration {
	if c.CertificateLifetime != 0 {
		return c.CertificateLifetime
	}
	return pki.Validity
}

// keeper keeps one of the server's certificates in its data directory.
func (s *Server) keeper(name string, authority *pki.Authority, request pki.Request) (*pki.Keeper, error) {
	request.Validity = s.cfg.ownLifetime()
	k, err := pki.NewKeeper(pki.KeeperConfig{
		Authority: authority, Request: request, Log: s.cfg.Log,
		CertFile: s.home.path("certs", name+".crt"), KeyFile: s.home.path("certs", name+".key"),
	})
	if err != nil {
		return nil, fmt.Errorf("certificate %s: %w", name, err)
	}
	if s.keepers == nil {
		s.keepers = map[string]*pki.Keeper{}
	}
	s.keepers[name] = k
	return k, nil
}

// Bounds of how often it is looked for certificates that are due: a twentieth of their life.
const (
	minLook = time.Second
	maxLook = time.Hour
	// lookAgain is how soon it is looked again after a failure.
	lookAgain = 10 * time.Second
)

// renewCertificates renews in time what nobody may ask for until it is too late: etcd reads its certificates from their files, and
// administrators the kubeconfig.
func (s *Server) renewCertificates(ctx context.Context) error {
	period := min(max(s.cfg.ownLifetime()/20, minLook), maxLook)
	for wait := period; run.Pause(ctx, wait); {
		wait = period
		if !s.renewDue() {
			wait = min(period, lookAgain)
		}
	}
	return nil
}

// renewDue renews what is due; false if something could not be.
func (s *Server) renewDue() bool {
	good := true
	for name, k := range s.keepers {
		if err := k.Renew(); err != nil {
			good = false
			s.cfg.Log.Warn("a certificate was not renewed; will try again", "certificate", name, "error", err)
		}
	}
	if err := s.writeKubeconfig(); err != nil {
		good = false
		s.cfg.Log.Warn("the administrator's kubeconfig was not renewed; will try again", "error", err)
	}
	return good
}

// csrLife bounds the certificates that users request.
const csrLife = 365 * 24 * time.Hour

// signCSR signs what was approved. Those of nodes live as the cluster's other certificates do, since agents renew them.
func (s *Server) signCSR(spec *certificatesv1.CertificateSigningRequestSpec) ([]byte, error) {
	limit := csrLife
	switch spec.SignerName {
	case certificatesv1.KubeAPIServerClientKubeletSignerName, certificatesv1.KubeletServingSignerName:
		limit = min(limit, s.cfg.givenLifetime())
	}
	return s.pki.Cluster.SignCSR(spec, limit, time.Now())
}
