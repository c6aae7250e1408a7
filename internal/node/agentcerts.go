package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/join"
	"barque.dev/internal/pki"
	"barque.dev/internal/run"
)

// requestedCertificates are a node's certificates on a machine without the cluster's keys: it
// requests them from the cluster, the first with the join token, later ones with the one before
// (the stock kubelet's TLS bootstrap, and its signers).
type requestedCertificates struct {
	dir     string
	node    string
	ip      netip.Addr
	servers []string // URLs, for requests by the token
	token   string   // may be empty
	ca      []byte
	pool    *x509.CertPool
	log     *slog.Logger
	// client speaks for the node, once there is a worker.
	client kubernetes.Interface

	identity, serving *pki.Reloader
}

// The names of the two.
const (
	identityName = "node"
	servingName  = "node-serving"
)

func (c *requestedCertificates) file(name string) string { return c.dir + "/" + name }

// open requests the identity if there is none that is good.
func (c *requestedCertificates) open(ctx context.Context) error {
	if c.due(identityName, 1) <= 0 {
		if err := c.requestByToken(ctx); err != nil {
			return err
		}
	}
	if _, err := os.Stat(c.file(servingName + ".crt")); err != nil {
		// The cluster signs a node's serving certificate once the node is registered; until
		// then one that nobody trusts keeps the port.
		if err := c.selfSign(); err != nil {
			return err
		}
	}
	var err error
	if c.identity, err = pki.NewReloader(c.file(identityName+".crt"), c.file(identityName+".key")); err != nil {
		return err
	}
	c.serving, err = pki.NewReloader(c.file(servingName+".crt"), c.file(servingName+".key"))
	return err
}

// requestByToken requests the identity without one, from any server that answers.
func (c *requestedCertificates) requestByToken(ctx context.Context) error {
	const need = "this node's certificate has expired or is missing: give a --token that admits agents (`barque token create` on a server makes one)"
	t, err := join.ParseToken(c.token)
	if err != nil {
		return errors.New(need)
	}
	var failures []error
	for _, server := range c.servers {
		client, err := kubernetes.NewForConfig(&rest.Config{
			Host: server, BearerToken: t.Stock(), TLSClientConfig: rest.TLSClientConfig{CAData: c.ca}, Timeout: 30 * time.Second,
			UserAgent: "barque-agent/" + apiserver.KubernetesVersion,
		})
		if err != nil {
			return err
		}
		switch err := c.request(ctx, client, identityName); {
		case err == nil:
			return nil
		case apierrors.IsUnauthorized(err), apierrors.IsForbidden(err):
			return fmt.Errorf("%s; the one that it has is not good, or not any more (%w)", need, err)
		case ctx.Err() != nil:
			return err
		default:
			failures = append(failures, fmt.Errorf("%s: %w", server, err))
		}
	}
	return errors.Join(failures...)
}

// ClientTLS implements certificates.
func (c *requestedCertificates) ClientTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.pool, ServerName: "kubernetes", GetClientCertificate: c.identity.GetClientCertificate}
}

// ServingTLS implements certificates.
func (c *requestedCertificates) ServingTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.serving.GetCertificate, ClientCAs: c.pool, ClientAuth: tls.RequestClientCert}
}

// due is how long it takes until a share of a certificate's life has passed; 0 or less when there is none, or it is not
// of this cluster.
func (c *requestedCertificates) due(name string, share float64) time.Duration {
	pair, err := tls.LoadX509KeyPair(c.file(name+".crt"), c.file(name+".key"))
	if err != nil {
		return 0
	}
	cert := pair.Leaf
	if _, err := cert.Verify(x509.VerifyOptions{Roots: c.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return 0
	}
	life := cert.NotAfter.Sub(cert.NotBefore)
	return time.Until(cert.NotBefore.Add(time.Duration(share * float64(life))))
}

// renewAt is the share of its life after which a certificate is renewed.
const renewAt = 0.7

// renew keeps both certificates fresh until ctx ends.
func (c *requestedCertificates) renew(ctx context.Context) error {
	wait := time.Second // the node registers meanwhile
	for run.Pause(ctx, wait) {
		wait = maxLook
		for _, name := range []string{identityName, servingName} {
			if c.due(name, renewAt) <= 0 {
				if err := c.replace(ctx, name); err != nil && ctx.Err() == nil {
					c.log.Warn("certificate not renewed; will try again", "certificate", name, "error", err)
				}
			}
			wait = min(wait, max(c.due(name, renewAt), agentRetry))
		}
	}
	return nil
}

// agentRetry is how soon an agent requests a certificate again that it did not get.
const agentRetry = 5 * time.Second

// replace requests a new certificate: as the node, or by the token if it is too late for that, as on a machine that
// stood still for long.
func (c *requestedCertificates) replace(ctx context.Context, name string) error {
	if name == identityName && c.due(name, 1) <= 0 {
		return c.requestByToken(ctx)
	}
	return c.request(ctx, c.client, name)
}

// request has the cluster sign a new certificate, and keeps it.
func (c *requestedCertificates) request(ctx context.Context, client kubernetes.Interface, name string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + c.node, Organization: []string{"system:nodes"}}}
	csr := &certificatesv1.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: "csr-"},
		Spec: certificatesv1.CertificateSigningRequestSpec{
			SignerName: certificatesv1.KubeAPIServerClientKubeletSignerName,
			Usages:     []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageClientAuth},
		},
	}
	if name == servingName {
		template.DNSNames, template.IPAddresses = []string{c.node}, []net.IP{c.ip.AsSlice()}
		csr.Spec.SignerName = certificatesv1.KubeletServingSignerName
		csr.Spec.Usages = []certificatesv1.KeyUsage{certificatesv1.UsageDigitalSignature, certificatesv1.UsageServerAuth}
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return err
	}
	csr.Spec.Request = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	made, err := client.CertificatesV1().CertificateSigningRequests().Create(ctx, csr, metav1.CreateOptions{})
	if err != nil {
		return fmt.Errorf("request the node's certificate: %w", err)
	}
	cert, err := waitSigned(ctx, client, made.Name)
	if err != nil {
		return err
	}
	return c.keep(name, key, cert)
}

// signTimeout bounds the wait for a certificate.
const signTimeout = time.Minute

func waitSigned(ctx context.Context, client kubernetes.Interface, name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, signTimeout)
	defer cancel()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		csr, err := client.CertificatesV1().CertificateSigningRequests().Get(ctx, name, metav1.GetOptions{})
		if err == nil && len(csr.Status.Certificate) > 0 {
			return csr.Status.Certificate, nil
		}
		if err == nil {
			for _, cond := range csr.Status.Conditions {
				if cond.Type == certificatesv1.CertificateDenied || cond.Type == certificatesv1.CertificateFailed {
					return nil, fmt.Errorf("the cluster refused the node's certificate: %s", cond.Message)
				}
			}
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("certificate request %s was not signed in %v: see `kubectl get csr`", name, signTimeout)
		case <-tick.C:
		}
	}
}

func (c *requestedCertificates) keep(name string, key *ecdsa.PrivateKey, cert []byte) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return err
	}
	return pki.WritePair(c.file(name+".crt"), c.file(name+".key"),
		&pki.Pair{Certificate: cert, Key: pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})})
}

func (c *requestedCertificates) selfSign() error {
	authority, err := pki.NewAuthority("barque-agent-"+c.node, time.Now())
	if err != nil {
		return err
	}
	pair, err := authority.Issue(pki.KubeletServing(c.node, []string{c.node}, []netip.Addr{c.ip}), time.Now())
	if err != nil {
		return err
	}
	return pki.WritePair(c.file(servingName+".crt"), c.file(servingName+".key"), pair)
}
