package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"

	"barque.dev/internal/pki/expiry"
)

// peerCA is the copy of etcd's authority that etcd reads.
const peerCA = "etcd-peer-ca"

// Certificates tells which certificates a machine with the data directory has, and, if it is a server that runs, those of its cluster.
// running tells whether it runs: if not, only the files were looked at.
func Certificates(ctx context.Context, dir string) (report expiry.Report, running bool, err error) {
	result, err := tell(ctx, dir, orderCertificates, nil, func(string) {})
	switch {
	case err == nil:
		return report, true, json.Unmarshal(result, &report)
	case !errors.Is(err, ErrNotRunning):
		return report, false, err
	}
	h := &home{dir: dir}
	name, err := h.serverName()
	if err != nil {
		name = "this machine"
	}
	if report = h.certificates(name); len(report.Certificates) == 0 {
		return report, false, fmt.Errorf("%s holds no certificates: name the data directory of a server or an agent", dir)
	}
	return report, false, nil
}

// certificates are those in a machine's data directory.
func (h *home) certificates(machine string) expiry.Report {
	var r expiry.Report
	// A server's authorities are where an agent has its certificates.
	kind := expiry.Leaf
	if _, err := os.Lstat(h.path("pki", "ca.crt")); err == nil {
		kind = expiry.Authority
	}
	for dir, kind := range map[string]string{"pki": kind, "certs": expiry.Leaf} {
		files, _ := filepath.Glob(h.path(dir, "*.crt"))
		for _, path := range files {
			if filepath.Base(path) != peerCA+".crt" {
				r.Certificates = append(r.Certificates, expiry.FromFile(machine, path, kind))
			}
		}
	}
	if path := h.path("kubeconfig"); exists(path) {
		if c, ok := expiry.FromKubeconfig(machine, "kubeconfig", path); ok {
			c.Renewed = true
			r.Certificates = append(r.Certificates, c)
		}
	}
	return expiry.Combine(r)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// openExpiry makes what tells of certificates.
func (s *Server) openExpiry() {
	s.expiry = expiry.NewControl(expiry.Config{
		Own: s.ownCertificates, Client: s.peerClient, Nodes: s.servedByNodes, Log: s.cfg.Log,
		Peers: func() map[string]string {
			urls := map[string]string{}
			for _, p := range s.peers() {
				urls[p.Name] = p.URL
			}
			return urls
		},
		MayAsk: func(r *http.Request) bool { return s.returning(r) != "" },
	})
}

// certificatesOrder is what `barque certs` asks a server on its own machine.
func (s *Server) certificatesOrder(ctx context.Context, _ json.RawMessage, _ say) (any, error) {
	if s.up.Load() {
		return s.expiry.Collect(ctx), nil
	}
	return s.home.certificates(s.cfg.NodeName), nil
}

// certificatesOrder is what `barque certs` asks an agent.
func (a *Agent) certificatesOrder(context.Context, json.RawMessage, say) (any, error) {
	return a.home.certificates(a.cfg.NodeName), nil
}

// ownCertificates are those of this server, and those of nodes that it has seen.
func (s *Server) ownCertificates(ctx context.Context) expiry.Report {
	own := s.home.certificates(s.cfg.NodeName)
	own.Certificates = slices.DeleteFunc(own.Certificates, func(c expiry.Certificate) bool {
		return c.Kind == expiry.Leaf && s.keepers[c.Name] == nil // of a part that this server does not run any more
	})
	var nodes corev1.NodeList
	if err := s.client.List(ctx, &nodes); err != nil {
		s.cfg.Log.Debug("the nodes can't be listed", "error", err)
		return own
	}
	return expiry.Combine(own, s.sightings.report(nodes.Items))
}

// sightings note with which certificates nodes call the API, since nobody else knows: an agent's key, and with it
// its certificate, is on its machine alone.
type sightings struct {
	authenticator.Request
	seen sync.Map // by node: *x509.Certificate
}

// AuthenticateRequest implements authenticator.Request.
func (s *sightings) AuthenticateRequest(req *http.Request) (*authenticator.Response, bool, error) {
	resp, ok, err := s.Request.AuthenticateRequest(req)
	if !ok || err != nil || req.TLS == nil || len(req.TLS.PeerCertificates) == 0 {
		return resp, ok, err
	}
	name, cert := resp.User.GetName(), req.TLS.PeerCertificates[0]
	if node, is := strings.CutPrefix(name, nodePrefix); is && name == cert.Subject.CommonName {
		if last, known := s.seen.Load(node); !known || last != cert {
			s.seen.Store(node, cert)
		}
	}
	return resp, ok, err
}

// nodePrefix and a node's name are who it is to the API.
const nodePrefix = "system:node:"

// report tells of the nodes, and forgets those that there are no more.
func (s *sightings) report(nodes []corev1.Node) expiry.Report {
	var r expiry.Report
	for name, value := range s.seen.Range {
		node, _ := name.(string)
		cert, _ := value.(*x509.Certificate)
		if !slices.ContainsFunc(nodes, func(n corev1.Node) bool { return n.Name == node }) {
			s.seen.Delete(node)
			continue
		}
		r.Certificates = append(r.Certificates, expiry.Of(node, "node", expiry.Leaf, cert))
	}
	return r
}

const (
	// lookTimeout bounds the look at one node, and lookers how many are looked at at a time.
	lookTimeout = 2 * time.Second
	lookers     = 32
)

// servedByNodes looks at what the nodes that are no servers, which tell themselves, serve with.
func (s *Server) servedByNodes(ctx context.Context) expiry.Report {
	var nodes corev1.NodeList
	if err := s.client.List(ctx, &nodes); err != nil {
		s.cfg.Log.Debug("the nodes can't be listed", "error", err)
		return expiry.Report{}
	}
	servers := []string{s.cfg.NodeName}
	for _, p := range s.peers() {
		servers = append(servers, p.Name)
	}
	var mu sync.Mutex
	var r expiry.Report
	var wg sync.WaitGroup
	turns := make(chan struct{}, lookers)
	for i := range nodes.Items {
		node := &nodes.Items[i]
		if slices.Contains(servers, node.Name) {
			continue
		}
		turns <- struct{}{}
		wg.Go(func() {
			defer func() { <-turns }()
			c, err := s.servedBy(ctx, node)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				s.cfg.Log.Debug("a node does not show its certificate", "node", node.Name, "error", err)
				r.Silent = append(r.Silent, node.Name)
				return
			}
			r.Certificates = append(r.Certificates, c)
		})
	}
	wg.Wait()
	return r
}

// servedBy looks at what a node serves with.
func (s *Server) servedBy(ctx context.Context, node *corev1.Node) (c expiry.Certificate, err error) {
	at := slices.IndexFunc(node.Status.Addresses, func(a corev1.NodeAddress) bool { return a.Type == corev1.NodeInternalIP })
	if at < 0 {
		return c, errors.New("it has no address")
	}
	port := cmp.Or(int(node.Status.DaemonEndpoints.KubeletEndpoint.Port), kubeletPort)
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	// Whoever it is: nothing is said, and a certificate that is not good is what is looked for.
	dialer := tls.Dialer{Config: &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true}}
	conn, err := dialer.DialContext(ctx, "tcp", net.JoinHostPort(node.Status.Addresses[at].Address, strconv.Itoa(port)))
	if err != nil {
		return c, err
	}
	defer func() { _ = conn.Close() }()
	shown, ok := conn.(*tls.Conn)
	if !ok || len(shown.ConnectionState().PeerCertificates) == 0 {
		return c, errors.New("it shows no certificate")
	}
	cert := shown.ConnectionState().PeerCertificates[0]
	c = expiry.Of(node.Name, "node-serving", expiry.Leaf, cert)
	if cert.CheckSignatureFrom(s.pki.Cluster.Certificate()) != nil {
		c.Problem = "the cluster has not signed it: see `kubectl get csr`"
	}
	return c, nil
}
