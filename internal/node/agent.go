package node

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	certificatesv1 "k8s.io/api/certificates/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/cluster/join"
	"barque.dev/internal/cluster/upgrade"
	"barque.dev/internal/pki"
	"barque.dev/internal/run"
	"barque.dev/internal/runtime/kernel"
)

// Agent is a machine that only runs pods.
type Agent struct {
	cfg    AgentConfig
	home   *home
	joined join.AgentJoin
	certs  *requestedCertificates
	worker *worker

	// end stops the services; up: they run.
	end      func(error)
	up       atomic.Bool
	leaving  *leaving
	control  *control
	upgrades *upgrade.Upgrader
}

// RunAgent runs an agent until ctx ends. ready is called once its node is registered. It returns ErrAgain when the
// process has to be replaced by a new one of the same command line.
func RunAgent(ctx context.Context, cfg AgentConfig, ready func()) error {
	a := &Agent{cfg: cfg, leaving: newLeaving()}
	defer a.close()
	ctx, a.end = context.WithCancelCause(ctx)
	defer a.end(nil)
	for _, step := range []func(context.Context) error{a.openHome, a.enter, a.openCertificates, a.openWorker} {
		if err := step(ctx); err != nil {
			if errors.Is(context.Cause(ctx), errSwitch) {
				return ErrAgain
			}
			if ctx.Err() != nil {
				return nil //nolint:nilerr // it was told to stop while it started
			}
			return err
		}
	}
	services := append([]run.Service{run.Func("memory", releaseMemory), run.Func("certificates", a.certs.renew)}, a.worker.services()...)
	err := run.Group(ctx, cfg.Log, func() { a.up.Store(true); ready() }, services...)
	if errors.Is(context.Cause(ctx), errSwitch) {
		return ErrAgain
	}
	if !a.leaving.decided.Load() {
		return err
	}
	if err := a.depart(); err != nil {
		return err
	}
	cfg.Log.Info("this machine has left the cluster", "node", cfg.NodeName)
	return nil
}

func (a *Agent) openHome(context.Context) (err error) {
	if err := kernel.Check(kernel.Features()); err != nil {
		return err
	}
	if a.home, err = openHome(a.cfg.DataDir); err != nil {
		return err
	}
	if err := a.home.checkRole("agent"); err != nil {
		return err
	}
	if err := a.home.checkLeft(); err != nil {
		return err
	}
	if a.upgrades, err = a.home.openUpgrades(a.cfg.NodeName, a.end, a.cfg.Log); err != nil {
		return err
	}
	a.control, err = a.home.openControl(map[string]order{
		orderLeave: a.leaveOrder, orderSight: sightOrder(a.upgrades, a.up.Load), orderCertificates: a.certificatesOrder,
	})
	if err != nil {
		return err
	}
	return checkPorts([]port{{a.cfg.NodeIP, kubeletPort, "the node's API", "run the agent on another machine"}})
}

// enter learns the cluster's facts: at the first start by the token, later from the disk.
func (a *Agent) enter(ctx context.Context) error {
	file := a.home.path("cluster.json")
	known, err := a.home.member()
	if err != nil {
		return err
	}
	if known != "" {
		if token, err := join.ParseToken(a.cfg.Token); err == nil && token.CAHash != "" && token.CAHash != known {
			return fmt.Errorf("%s holds the data of another cluster than the token is for: choose another --data-dir, or remove this one", a.home.dir)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			return fmt.Errorf("read what is known of the cluster: %w", err)
		}
		return json.Unmarshal(data, &a.joined)
	}
	if a.cfg.Token == "" {
		return errors.New("--token is missing: make one with `barque token create` on a server of the cluster")
	}
	token, err := join.ParseToken(a.cfg.Token)
	if err != nil {
		return fmt.Errorf("--token: %w", err)
	}
	joined, err := join.Agent(ctx, join.Options{URL: a.cfg.Server, Token: token})
	if err != nil {
		return fmt.Errorf("join %s: %w", a.cfg.Server, err)
	}
	a.joined = *joined
	data, err := json.Marshal(joined)
	if err != nil {
		return err
	}
	if err := pki.WriteFile(file, data, 0o600); err != nil {
		return err
	}
	return nil
}

func (a *Agent) openCertificates(ctx context.Context) error {
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(a.joined.CA) {
		return errors.New("the cluster's CA that was received at joining is damaged: remove the data directory and join again")
	}
	a.certs = &requestedCertificates{
		dir: a.home.path("pki"), node: a.cfg.NodeName, ip: a.cfg.NodeIP, server: a.cfg.Server, ca: a.joined.CA, pool: pool, agent: a,
	}
	if err := os.MkdirAll(a.certs.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of certificates: %w", err)
	}
	if err := a.certs.open(ctx, a.cfg.Token); err != nil {
		return err
	}
	return a.home.markMember(a.joined.CAHash)
}

func (a *Agent) openWorker(context.Context) error {
	cfg := workerConfig{
		Common: a.cfg.Common, home: a.home, ip: a.cfg.NodeIP, certs: a.certs, ca: a.joined.CA,
		servers: append([]string{a.cfg.Server}, a.joined.Servers...), clusterDomain: a.joined.ClusterDomain,
		paths: a.upgrades.Handlers(apiserver.LongPaths),
	}
	var err error
	parse := func(list []string, into *netip.Prefix) {
		if len(list) == 0 {
			err = errors.Join(err, errors.New("a range of the cluster is not known"))
			return
		}
		p, e := netip.ParsePrefix(list[0])
		*into, err = p, errors.Join(err, e)
	}
	parse(a.joined.ClusterCIDRs, &cfg.clusterCIDR)
	parse(a.joined.ServiceCIDRs, &cfg.serviceCIDR)
	if len(a.joined.ClusterDNS) > 0 {
		dns, e := netip.ParseAddr(a.joined.ClusterDNS[0])
		cfg.clusterDNS, err = dns, errors.Join(err, e)
	}
	if err != nil {
		return fmt.Errorf("what is known of the cluster: %w", err)
	}
	a.worker, err = newWorker(cfg)
	if err == nil {
		a.certs.client = a.worker.client
	}
	return err
}

func (a *Agent) close() {
	if a.worker != nil {
		a.worker.close()
	}
	a.control.close()
	if a.home != nil {
		a.home.close()
	}
}

// requestedCertificates are a node's certificates on a machine without the cluster's keys: it
// requests them from the cluster, the first with the join token, later ones with the one before
// (the stock kubelet's TLS bootstrap, and its signers).
type requestedCertificates struct {
	dir    string
	node   string
	ip     netip.Addr
	server string
	ca     []byte
	pool   *x509.CertPool
	agent  *Agent
	// client speaks for the node, once there is a worker.
	client kubernetes.Interface

	identity, serving *pki.Reloader
}

func (c *requestedCertificates) file(name string) string { return c.dir + "/" + name }

// open requests the identity if there is none that is good.
func (c *requestedCertificates) open(ctx context.Context, token string) error {
	if c.age("node") >= 1 {
		t, err := join.ParseToken(token)
		if err != nil {
			return errors.New("this node's certificate has expired or is missing: give a --token that admits agents")
		}
		client, err := kubernetes.NewForConfig(&rest.Config{
			Host: c.server, BearerToken: t.Stock(), TLSClientConfig: rest.TLSClientConfig{CAData: c.ca}, Timeout: 30 * time.Second,
			UserAgent: "barque-agent/" + apiserver.KubernetesVersion,
		})
		if err != nil {
			return err
		}
		if err := c.request(ctx, client, "node"); err != nil {
			return err
		}
	}
	if _, err := os.Stat(c.file("node-serving.crt")); err != nil {
		// The cluster signs a node's serving certificate once the node is registered; until
		// then one that nobody trusts keeps the port.
		if err := c.selfSign(); err != nil {
			return err
		}
	}
	var err error
	if c.identity, err = pki.NewReloader(c.file("node.crt"), c.file("node.key")); err != nil {
		return err
	}
	c.serving, err = pki.NewReloader(c.file("node-serving.crt"), c.file("node-serving.key"))
	return err
}

// ClientTLS implements certificates.
func (c *requestedCertificates) ClientTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: c.pool, ServerName: "kubernetes", GetClientCertificate: c.identity.GetClientCertificate}
}

// ServingTLS implements certificates.
func (c *requestedCertificates) ServingTLS() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: c.serving.GetCertificate, ClientCAs: c.pool, ClientAuth: tls.RequestClientCert}
}

// age is how much of a certificate's life has passed, 0 to 1; 1 when there is none, or it is not
// of this cluster.
func (c *requestedCertificates) age(name string) float64 {
	pair, err := tls.LoadX509KeyPair(c.file(name+".crt"), c.file(name+".key"))
	if err != nil {
		return 1
	}
	cert, err := x509.ParseCertificate(pair.Certificate[0])
	if err != nil {
		return 1
	}
	if _, err := cert.Verify(x509.VerifyOptions{Roots: c.pool, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}}); err != nil {
		return 1
	}
	return float64(time.Since(cert.NotBefore)) / float64(cert.NotAfter.Sub(cert.NotBefore))
}

// renewAt is the share of its life after which a certificate is renewed.
const renewAt = 0.7

// renew keeps both certificates fresh until ctx ends.
func (c *requestedCertificates) renew(ctx context.Context) error {
	wait := time.Second // the node registers meanwhile
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait):
		}
		wait = time.Hour
		for _, name := range []string{"node", "node-serving"} {
			if c.age(name) < renewAt {
				continue
			}
			if err := c.request(ctx, c.client, name); err != nil && ctx.Err() == nil {
				c.agent.cfg.Log.Warn("certificate not renewed; will try again", "certificate", name, "error", err)
				wait = 5 * time.Second
			}
		}
	}
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
	if name == "node-serving" {
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
	if err := pki.WriteFile(c.file(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der}), 0o600); err != nil {
		return err
	}
	return pki.WriteFile(c.file(name+".crt"), cert, 0o600)
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
	if err := pki.WriteFile(c.file("node-serving.key"), pair.Key, 0o600); err != nil {
		return err
	}
	return pki.WriteFile(c.file("node-serving.crt"), pair.Certificate, 0o600)
}
