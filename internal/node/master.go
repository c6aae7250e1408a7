package node

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/admission"
	"barque.dev/internal/api"
	"barque.dev/internal/client"
	"barque.dev/internal/cluster/leadership"
	"barque.dev/internal/cluster/liveness"
	"barque.dev/internal/controllers"
	"barque.dev/internal/controllers/apiservice"
	"barque.dev/internal/controllers/nodelifecycle"
	"barque.dev/internal/pki"
	"barque.dev/internal/reconnect"
	"barque.dev/internal/run"
	"barque.dev/internal/scheduler"
)

// livePath is where agents and servers reach the liveness tracker.
const livePath = liveness.Path

// registerAPIs registers the built-in versions of the API, once. Nothing that is built in waits for that.
func (s *Server) registerAPIs(ctx context.Context) error {
	for wait := 100 * time.Millisecond; ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		err := apiservice.RegisterBuiltin(ctx, s.client.WithFieldManager(serverManager))
		if err == nil {
			break
		}
		if ctx.Err() == nil {
			s.cfg.Log.Info("the API's versions can't be registered yet", "error", err)
			run.Pause(ctx, wait)
		}
	}
	<-ctx.Done()
	return nil
}

// openLoops makes what only the leading server runs. It lasts for the process: each term of
// leadership runs it once more.
func (s *Server) openLoops(context.Context) (err error) {
	recorder := func(component string) record.EventRecorder {
		r := client.NewRecorder(s.client, component, s.cfg.Log)
		s.recorders = append(s.recorders, r)
		return r
	}
	s.schedulerEvents = recorder("default-scheduler")
	if s.scheduling, err = scheduler.NewMetrics(s.metrics); err != nil {
		return err
	}
	// The runner gives each controller its own identity.
	own := s.client.WithFieldManager("kube-controller-manager")
	deps := controllers.Deps{
		Client: own, CatchUp: s.catchUp, Kinds: s.registry, Recorder: recorder, Clock: clock.RealClock{}, Log: s.cfg.Log,
	}
	portal := deps
	portal.Client = s.client.WithFieldManager(serverManager)
	cluster := s.cluster()
	all := controllers.Portal(portal, cluster)
	if !s.cfg.DisableControllers {
		all = append(append(all, controllers.All(deps, cluster)...), s.roleAggregation(own))
	}
	s.controllers, err = controllers.NewRunner(controllers.RunnerConfig{
		Watcher: s.client, Controllers: all, Metrics: s.metrics, Log: s.cfg.Log,
	})
	return err
}

// cluster is what controllers must know.
func (s *Server) cluster() controllers.Cluster {
	return controllers.Cluster{
		RootCA: s.pki.Cluster.PEM(), PodCIDR: s.cfg.ClusterCIDR,
		Witness: s.tracker, Prober: s.tracker, Servers: s.serverNames, Nodes: nodelifecycle.Bounds{Fence: s.cfg.FenceAfter, Grace: s.cfg.NodeGrace}, Sign: s.signCSR, Reserved: s.reserved,
		Schemas: s.api, APIServices: s.api, Elsewhere: s.api,
		Trust: s.trust, SignToken: s.auth.Issuer.IssueLegacy, UnusedTokens: s.cfg.Access.ServiceAccounts.Unused,
	}
}

// handOverTimeout bounds what a leader that stops spends on passing leadership on.
const handOverTimeout = 3 * time.Second

// followLeadership runs what the leader runs whenever this server leads. A leader that is told to stop passes
// leadership on before it waits for the requests under way: nobody would lead for as long as they take.
func (s *Server) followLeadership(ctx context.Context) error {
	err := s.leadership.Follow(ctx, s.lead)
	if s.membership == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), handOverTimeout)
	defer cancel()
	if err := s.membership.HandOver(ctx); err != nil {
		s.cfg.Log.Info("leadership could not be passed on; the others elect somebody when this server is gone", "error", err)
	}
	return err
}

// lead runs one term of leadership: ctx carries the fence and ends with the term.
func (s *Server) lead(ctx context.Context) error {
	// What the last leader wrote must be seen before anything is decided.
	if _, err := s.store.ReadIndex(ctx); err != nil {
		return fmt.Errorf("catch up before leading: %w", err)
	}
	services := []run.Service{{Name: "controllers", Run: s.controllers.Run}, run.Func("encryption", s.encryption.rewriter.Run)}
	if !s.cfg.DisableScheduler {
		services = append(services, run.Func("scheduler", s.newScheduler().Run))
	}
	return run.Group(ctx, s.cfg.Log, func() {}, services...)
}

func (s *Server) newScheduler() *scheduler.Scheduler {
	return scheduler.New(scheduler.Config{
		Client:   s.client.As(client.Component(user.KubeScheduler)).WithFieldManager("kube-scheduler"),
		Recorder: s.schedulerEvents, Metrics: s.scheduling, Log: s.cfg.Log.With("component", "scheduler"),
	})
}

// runEvents writes the events that the loops record.
func (s *Server) runEvents(ctx context.Context) error {
	services := make([]run.Service, 0, len(s.recorders))
	for _, r := range s.recorders {
		services = append(services, run.Func("events", r.Run))
	}
	return run.Group(ctx, s.cfg.Log, func() {}, services...)
}

// publish shows in Leases who leads, as kubectl and dashboards know them from stock clusters. The Lease of what is
// disabled belongs to the user's.
func (s *Server) publish(ctx context.Context, holder string, acquired time.Time, transitions int32) error {
	var errs []error
	for name, disabled := range map[string]bool{"kube-scheduler": s.cfg.DisableScheduler, "kube-controller-manager": s.cfg.DisableControllers} {
		if !disabled {
			errs = append(errs, s.publishLease(ctx, name, leadership.LeaseSpec(holder, acquired, time.Now(), transitions)))
		}
	}
	return errors.Join(errs...)
}

func (s *Server) publishLease(ctx context.Context, name string, spec coordinationv1.LeaseSpec) error {
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceSystem, Name: name}}
	err := s.client.Get(ctx, ctrlclient.ObjectKeyFromObject(lease), lease)
	if apierrors.IsNotFound(err) {
		lease.Spec = spec
		return s.client.Create(ctx, lease)
	}
	if err != nil {
		return err
	}
	changed := lease.DeepCopy()
	changed.Spec = spec
	return s.client.Update(ctx, changed)
}

// serverCertificate is how this server shows others that it is one.
func (s *Server) serverCertificate() (*pki.Keeper, error) {
	return s.keeper("server-client", s.pki.Cluster, pki.Client(serverPrefix+s.cfg.NodeName, api.ServersGroup))
}

// openTracker makes what knows which nodes live.
func (s *Server) openTracker() error {
	cert, err := s.serverCertificate()
	if err != nil {
		return err
	}
	transport := &http.Transport{
		TLSClientConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: s.pki.Cluster.Pool(), GetClientCertificate: cert.GetClientCertificate,
		},
		DialContext: (&net.Dialer{Timeout: time.Second}).DialContext, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
	}
	s.peerClient = &http.Client{Transport: reconnect.New(transport)}
	s.tracker = liveness.NewTracker(liveness.Config{
		Peers: s.jury, Client: s.peerClient, Log: s.cfg.Log,
		MayBeat: s.isNode,
		MayAsk:  func(r *http.Request) bool { return s.returning(r) != "" },
	})
	return nil
}

// isNode tells whether a request comes from the node.
func (s *Server) isNode(r *http.Request, node string) bool {
	c := s.caller(r)
	return c != nil && c.Subject.CommonName == "system:node:"+node && slices.Contains(c.Subject.Organization, user.NodesGroup)
}

// serverPrefix and a server's name are the common name of its client certificate among servers.
const serverPrefix = "barque:server:"

// returning is the name of the server that a request comes from; "" when it comes from somebody else.
func (s *Server) returning(r *http.Request) string {
	c := s.caller(r)
	if c == nil || !slices.Contains(c.Subject.Organization, api.ServersGroup) {
		return ""
	}
	name, ok := strings.CutPrefix(c.Subject.CommonName, serverPrefix)
	if !ok {
		return ""
	}
	return name
}

// caller is the client's certificate, if the cluster's authority vouches for it.
func (s *Server) caller(r *http.Request) *x509.Certificate {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return nil
	}
	cert := r.TLS.PeerCertificates[0]
	_, err := cert.Verify(x509.VerifyOptions{Roots: s.pki.Cluster.Pool(), KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return nil
	}
	return cert
}

// defaultObjects are what every cluster has besides roles.
func (s *Server) defaultObjects() []ctrlclient.Object {
	objects := []ctrlclient.Object{s.dnsService()}
	for _, class := range admission.SystemPriorityClasses() {
		objects = append(objects, class)
	}
	return objects
}

// dnsService is the cluster's DNS service. Every node answers at its address by itself, so it
// has no endpoints; it is there so that its name and address are known.
func (s *Server) dnsService() *corev1.Service {
	port := func(name string, protocol corev1.Protocol) corev1.ServicePort {
		return corev1.ServicePort{Name: name, Port: 53, Protocol: protocol}
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: metav1.NamespaceSystem, Name: "kube-dns",
			Labels: map[string]string{"k8s-app": "kube-dns", "kubernetes.io/cluster-service": "true", "kubernetes.io/name": "CoreDNS"},
		},
		Spec: corev1.ServiceSpec{
			ClusterIP: s.cfg.ClusterDNS.String(),
			Ports:     []corev1.ServicePort{port("dns", corev1.ProtocolUDP), port("dns-tcp", corev1.ProtocolTCP)},
		},
	}
}
