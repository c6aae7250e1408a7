package node

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/server/healthz"
	"k8s.io/client-go/tools/record"
	ctrlclient "sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/apiserver/auditlog"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/relay"
	"barque.dev/internal/auth"
	"barque.dev/internal/auth/image"
	"barque.dev/internal/auth/rbac"
	"barque.dev/internal/client"
	"barque.dev/internal/cluster/detect"
	"barque.dev/internal/cluster/leadership"
	"barque.dev/internal/cluster/liveness"
	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/cluster/upgrade"
	"barque.dev/internal/controllers"
	"barque.dev/internal/encryption"
	"barque.dev/internal/pki"
	"barque.dev/internal/pki/expiry"
	"barque.dev/internal/run"
	"barque.dev/internal/runtime/kernel"
	"barque.dev/internal/scheduler"
	"barque.dev/internal/store"
	"barque.dev/internal/store/etcd"
	"barque.dev/internal/tracing/otlp"
)

// nodePorts is where Services' node ports come from.
var nodePorts = utilnet.PortRange{Base: 30000, Size: 2768}

// Server is a running master. Its parts are made one after the other, each from those above it.
type Server struct {
	cfg  ServerConfig
	home *home

	// others are the servers' URLs as they were written down at an earlier time. factsMu guards them, and what is written down,
	// once the services run.
	others  []string
	factsMu sync.Mutex

	pki      *pki.Authorities
	listener net.Listener

	// failed tells why the embedded etcd can't go on.
	failed chan error
	// end stops the services, for a reason that [Server.next] knows what to do about. opened: etcd's data is in use; up: the
	// services run, for which a node that isn't registered yet needs a quorum.
	end     func(error)
	opened  atomic.Bool
	up      atomic.Bool
	leaving *leaving
	control *control

	member     *etcd.Member // nil with an etcd of the user's
	remote     *etcd.Remote // nil with the embedded one
	backend    store.Backend
	store      *store.Store
	encryption *encrypted
	membership *membership.Membership // nil with an etcd of the user's
	detector   *detect.Detector       // likewise
	snapshots  *snapshot.Keeper       // likewise
	upgrades   *upgrade.Upgrader
	leadership *leadership.Leadership

	registry *registry.Registry
	auth     *auth.Auth
	// accountKeys is what the files of the keys of service account tokens held at the start.
	accountKeys []byte
	audit       *auditlog.Log  // nil when nothing is recorded
	traces      *otlp.Exporter // nil when nothing is traced
	client      *client.InProcess
	tracker     *liveness.Tracker
	peerClient  *http.Client // speaks to other servers, as this one
	api         *apiserver.Server
	worker      *worker // nil when the agent is disabled

	// keepers are the server's certificates, by name: complete once the worker is opened. sightings are the nodes'.
	keepers   map[string]*pki.Keeper
	sightings *sightings
	expiry    *expiry.Control

	metrics         *prometheus.Registry
	recorders       []*client.Recorder
	schedulerEvents record.EventRecorder
	scheduling      *scheduler.Metrics
	controllers     *controllers.Runner
}

// RunServer runs a server until ctx ends. ready is called once it answers requests. It returns ErrAgain when
// the process has to be replaced by a new one of the same command line.
func RunServer(ctx context.Context, cfg ServerConfig, ready func()) error {
	etcd.TunePeerStreams()
	s := &Server{cfg: cfg, metrics: prometheus.NewRegistry(), failed: make(chan error, 1), leaving: newLeaving()}
	s.metrics.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	err := orFailure(s.failed, func() error { return s.run(ctx, ready) })
	return adviseOnEtcd(s.next(ctx, err), cfg.DataDir)
}

// run opens everything, runs the services until ctx ends, and closes what was opened.
func (s *Server) run(ctx context.Context, ready func()) (err error) {
	defer s.close()
	ctx, s.end = context.WithCancelCause(ctx)
	defer s.end(nil)
	defer func() {
		if err != nil && s.isRemoved(err) && !errors.Is(err, etcd.ErrRemoved) {
			err = fmt.Errorf("%w (%w)", etcd.ErrRemoved, err)
		}
	}()
	for _, step := range s.steps() {
		if err := step(ctx); err != nil {
			if ctx.Err() != nil {
				return s.reason(ctx)
			}
			return err
		}
	}
	err = run.Group(s.linger(ctx), s.cfg.Log, func() { s.up.Store(true); ready() }, s.services()...)
	if reason := s.reason(ctx); reason != nil && !s.leaving.failed() {
		return reason
	}
	return err
}

// steps open what the services stand on.
func (s *Server) steps() []func(context.Context) error {
	if s.cfg.Witness {
		return []func(context.Context) error{s.openHome, s.listen, s.enter, s.openVote}
	}
	return []func(context.Context) error{
		s.checkKernel, s.checkAccess, s.openAudit, s.openTraces, s.openHome, s.listen, s.enter, s.openStore, s.openEncryption, s.openAPI, s.openLoops, s.openWorker,
	}
}

// reason is why the services were stopped; nil when the process was told to stop.
func (s *Server) reason(ctx context.Context) error {
	for _, own := range []error{ErrLeft, errRecover, errSwitch} {
		if errors.Is(context.Cause(ctx), own) {
			return own
		}
	}
	return nil
}

// services is the wiring list: what a server runs, in the order in which it is started; it is
// stopped in reverse.
func (s *Server) services() []run.Service {
	if s.cfg.Witness {
		return s.witnessServices()
	}
	services := []run.Service{run.Func("memory", releaseMemory), run.Func("store", s.store.Run)}
	if s.member != nil {
		services = append(services,
			run.Func("etcd", s.member.Run),
			run.Func("membership", s.membership.Run),
			run.Func("failure detector", s.detector.Run))
		if s.cfg.RemoveDeadAfter > 0 {
			services = append(services, run.Func("dead servers", s.removeDead))
		}
	}
	services = append(services, run.Func("departure", s.depart), run.Func("arrivals", s.followArrivals))
	services = append(services, s.encryption.services()...)
	services = append(services, s.snapshotServices()...)
	services = append(services, s.traceServices()...)
	services = append(services,
		run.Service{Name: "default objects", Run: s.ensureDefaults},
		run.Func("addresses of services", s.reclaimAddresses),
		run.Service{Name: "apiserver", Run: s.api.Run},
		run.Func("API registration", s.registerAPIs),
		run.Func("access configuration", s.auth.Run),
		run.Func("service account keys", s.followAccountKeys),
		run.Func("certificates", s.renewCertificates),
		run.Func("member mark", s.markMember),
		run.Func("events", s.runEvents),
		run.Func("leadership", s.followLeadership))
	if s.cfg.VIP.IsValid() {
		services = append(services, run.Service{Name: "virtual IP", Run: s.runVIP})
	}
	if s.worker != nil {
		services = append(services, s.worker.services()...)
	}
	return services
}

// checkKernel comes before anything is made.
func (s *Server) checkKernel(context.Context) error {
	if s.cfg.DisableAgent {
		return nil
	}
	return kernel.Check(kernel.Features())
}

func (s *Server) openHome(context.Context) (err error) {
	if s.home, err = openHome(s.cfg.DataDir); err != nil {
		return err
	}
	if err := s.home.checkRole(s.cfg.role()); err != nil {
		return err
	}
	if err := s.home.checkLeft(); err != nil {
		return err
	}
	if s.upgrades, err = s.home.openUpgrades(s.cfg.NodeName, s.end, s.cfg.Log); err != nil {
		return err
	}
	s.control, err = s.home.openControl(map[string]order{
		orderLeave: s.leaveOrder, orderPlan: s.planOrder, orderRecover: s.recoverOrder, orderSight: sightOrder(s.upgrades, s.up.Load),
		orderCertificates: s.certificatesOrder,
	})
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.home.path("certs"), 0o700); err != nil {
		return fmt.Errorf("make the directory of certificates: %w", err)
	}
	return nil
}

// listen takes the API's port first of all, and looks whether the others are free: a port that is
// taken shall leave nothing behind.
func (s *Server) listen(context.Context) (err error) {
	api := port{s.cfg.BindAddress, s.cfg.HTTPSPort, "the API", "choose another with --https-port"}
	if s.listener, err = api.listen(); err != nil {
		return err
	}
	return checkPorts(s.cfg.ports())
}

// openStore connects the store to its etcd.
func (s *Server) openStore(ctx context.Context) error {
	var err error
	if s.backend, err = s.openEtcd(ctx); err != nil {
		return err
	}
	s.opened.Store(true)
	if s.store, err = store.Open(ctx, store.Config{Backend: s.backend, Log: s.cfg.Log}); err != nil {
		return fmt.Errorf("read the cluster's state: %w", err)
	}
	return nil
}

// openAPI makes everything from the verbs up to HTTP.
func (s *Server) openAPI(ctx context.Context) (err error) {
	log := s.cfg.Log
	tables := image.NewTables(func(gr schema.GroupResource) *store.Table {
		if s.registry == nil {
			return nil
		}
		return s.registry.Table(gr)
	}, auth.Indexes()...)
	if err := s.openAuth(ctx, tables); err != nil {
		return err
	}
	virtual := map[string]registry.Handler{}
	for name, create := range s.auth.Virtual() {
		virtual[name] = func(ctx context.Context, r registry.Request, obj runtime.Object) (runtime.Object, error) {
			return create(ctx, r.Namespace, r.Name, obj)
		}
	}
	chain, err := s.admission()
	if err != nil {
		return err
	}
	s.registry, err = registry.New(registry.Config{
		Store: s.store, Admission: chain, Quota: s.quota(), Indexes: indexes(), Authorizer: s.auth.Authorizer,
		Transformer:  s.encryption.transformer(),
		ServiceCIDRs: []netip.Prefix{s.cfg.ServiceCIDR}, NodePortRange: nodePorts, ServerPort: int32(s.cfg.HTTPSPort), Virtual: virtual, Log: log,
	})
	if err != nil {
		return fmt.Errorf("set up the API's resources: %w", err)
	}
	s.client = client.NewInProcess(client.Config{Tables: s.registry, Verbs: s.audit.Inside(s.registry.Verbs()), Log: log})
	if err := s.openTracker(); err != nil {
		return err
	}
	return s.openServer()
}

// servingRequest holds every name by which the API is found at this server.
func (s *Server) servingRequest() pki.Request {
	return pki.APIServer(pki.ServerNames{
		Host: s.cfg.NodeName, ClusterDomain: s.cfg.ClusterDomain,
		Addresses: append([]netip.Addr{s.cfg.AdvertiseAddress, s.cfg.BindAddress, s.cfg.VIP, s.cfg.ServiceCIDR.Addr().Next()}, addresses(s.tlsNames())...),
		Names:     names(s.tlsNames()),
	})
}

// reserved tells whether clients find the API, or a service, by the name or address.
func (s *Server) reserved(name string) bool {
	request := s.servingRequest()
	if ip, err := netip.ParseAddr(name); err == nil {
		return s.cfg.ServiceCIDR.Contains(ip) || slices.Contains(request.IPs, ip)
	}
	return slices.Contains(request.DNSNames, name)
}

// openServer makes the HTTP side.
func (s *Server) openServer() error {
	serving, err := s.keeper("apiserver", s.pki.Cluster, s.servingRequest())
	if err != nil {
		return err
	}
	kubelet, err := s.keeper("apiserver-kubelet-client", s.pki.Cluster, pki.Client("kube-apiserver-kubelet-client", "system:masters"))
	if err != nil {
		return err
	}
	frontProxy, err := s.keeper("front-proxy-client", s.pki.FrontProxy, pki.Client(pki.UserFrontProxy))
	if err != nil {
		return err
	}
	joiner, err := s.joinHandler()
	if err != nil {
		return err
	}
	s.openExpiry()
	s.sightings = &sightings{Request: s.auth.Authenticator}
	handlers := s.auth.Handlers()
	maps.Copy(handlers, s.expiry.Handlers())
	maps.Copy(handlers, s.encryptionControl().Handlers())
	if err := s.openSnapshots(handlers); err != nil {
		return err
	}
	maps.Copy(handlers, s.upgrades.Handlers(apiserver.LongPaths))
	extra := map[string]http.Handler{
		joinPath: joiner, livePath: s.tracker.Handler(), leavePath: http.HandlerFunc(s.serveLeave), witnessesPath: http.HandlerFunc(s.serveWitnesses),
		expiry.PathOwn: s.expiry.Own(),
	}
	if s.membership != nil {
		control := s.serversControl()
		maps.Copy(handlers, control.Handlers())
		extra[membership.PathReached] = control.Reached()
	}
	s.api, err = apiserver.New(apiserver.Config{
		Registry: s.registry, Authenticator: s.sightings, Audiences: s.auth.Audiences, Authorizer: s.auth.Authorizer,
		Listener: s.listener,
		TLS: &tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: serving.GetCertificate,
			ClientCAs: s.auth.ClientCAs(), ClientAuth: tls.RequestClientCert,
		},
		Identity: apiserver.Identity{Name: s.cfg.NodeName, Address: s.cfg.AdvertiseAddress.String(), Port: s.cfg.HTTPSPort},
		Kubelet: relay.Config{TLS: &tls.Config{
			MinVersion: tls.VersionTLS12, RootCAs: s.pki.Cluster.Pool(), GetClientCertificate: kubelet.GetClientCertificate,
		}},
		FrontProxy: frontProxy.GetClientCertificate,
		Readyz:     append(s.encryption.checks(), healthz.NamedCheck("etcd", func(*http.Request) error { return s.store.Healthy() })),
		Livez:      []healthz.HealthChecker{},
		Extra:      extra, Paths: handlers, Metrics: s.metrics, Gatherers: []prometheus.Gatherer{encryption.Metrics()}, Log: s.cfg.Log,
		Limits:        apiserver.Limits{Reads: s.cfg.Requests.Reads, Writes: s.cfg.Requests.Writes, Plain: s.cfg.Requests.Plain},
		ConnectionAge: s.cfg.ConnectionAge, Floating: s.cfg.VIP,
		Audit: s.audit, Tracer: s.tracer(),
	})
	if err != nil {
		return fmt.Errorf("set up the API server: %w", err)
	}
	return s.writeKubeconfig()
}

// writeKubeconfig writes the administrator's, which points at what survives this server.
func (s *Server) writeKubeconfig() error {
	url := cmp.Or(s.entrance(), s.ownURL())
	if err := s.pki.WriteAdminKubeconfig(s.home.path("kubeconfig"), "barque", url, s.cfg.givenLifetime(), time.Now()); err != nil {
		return fmt.Errorf("write the administrator's kubeconfig: %w", err)
	}
	return nil
}

// firstTry bounds how long the start waits for the cluster's default objects: a server that comes
// back while there is no quorum must serve what it can.
const firstTry = 2 * time.Second

// defaultsPeriod is how often the default objects are looked after, as a stock server does.
const defaultsPeriod = time.Minute

// ensureDefaults makes what every cluster has: namespaces, the stock roles and bindings, the DNS
// service. Every other server may do so as well. It is ready after the first attempt; once one
// succeeded it looks now and then whether somebody deleted one of those that nothing works without.
func (s *Server) ensureDefaults(ctx context.Context, ready func()) error {
	attempt, cancel := context.WithTimeout(ctx, firstTry)
	err := s.makeDefaults(attempt)
	cancel()
	ready()
	for wait := 100 * time.Millisecond; err != nil && ctx.Err() == nil; wait = min(2*wait, 5*time.Second) {
		s.cfg.Log.Info("the cluster's default objects can't be written yet", "error", err)
		run.Pause(ctx, wait)
		err = s.makeDefaults(ctx)
	}
	for ctx.Err() == nil {
		run.Pause(ctx, defaultsPeriod)
		if err := s.registry.Bootstrap(ctx); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("the cluster's default objects are not complete", "error", err)
		}
	}
	return nil
}

// reclaimPeriod is how often it is looked for addresses and ports of services that do not exist.
const reclaimPeriod = time.Minute

func (s *Server) reclaimAddresses(ctx context.Context) error {
	for run.Pause(ctx, reclaimPeriod) {
		if err := s.registry.Reclaim(ctx, time.Now()); err != nil && ctx.Err() == nil {
			s.cfg.Log.Warn("addresses that no service has can't be given back yet", "error", err)
		}
	}
	return nil
}

// serverManager is the field manager of what an API server writes of its own accord.
const serverManager = "kube-apiserver"

func (s *Server) makeDefaults(ctx context.Context) error {
	if err := s.registry.Bootstrap(ctx); err != nil {
		return err
	}
	c := s.client.WithFieldManager(serverManager)
	if err := rbac.Bootstrap(ctx, c, rbac.Policy(), s.cfg.Log); err != nil {
		return err
	}
	for _, obj := range s.defaultObjects() {
		if err := s.ensure(ctx, c, obj); err != nil {
			return fmt.Errorf("create %T %s: %w", obj, obj.GetName(), err)
		}
	}
	return nil
}

// ensure creates obj unless it exists. It looks first: a second Service with the same address is
// refused for its address, before its name matters.
func (s *Server) ensure(ctx context.Context, c *client.InProcess, obj ctrlclient.Object) error {
	current, ok := obj.DeepCopyObject().(ctrlclient.Object)
	if !ok {
		return fmt.Errorf("it is no API object")
	}
	err := c.Get(ctx, ctrlclient.ObjectKeyFromObject(obj), current)
	if ctrlclient.IgnoreNotFound(err) != nil || err == nil {
		return err
	}
	return ctrlclient.IgnoreAlreadyExists(c.Create(ctx, obj))
}

// markMember notes that the server belongs to the cluster, once it serves it.
func (s *Server) markMember(ctx context.Context) error {
	if err := s.keepFacts(s.facts()); err != nil {
		return err
	}
	if err := s.home.markMember(s.pki.Cluster.Hash()); err != nil {
		return err
	}
	for run.Pause(ctx, factsPeriod) {
		// A server that was away finds the others by what it knew of them.
		if err := s.keepFacts(s.facts()); err != nil {
			s.cfg.Log.Warn("what is known of the cluster was not written down", "error", err)
		}
	}
	return nil
}

// factsPeriod is how often it is looked whether what is known of the cluster has changed.
const factsPeriod = 5 * time.Second

// close ends what the steps opened, as far as they came.
func (s *Server) close() {
	if s.worker != nil {
		s.worker.close()
	}
	if s.listener != nil {
		_ = s.listener.Close()
	}
	s.encryption.close()
	if s.member != nil {
		s.member.Close()
	}
	if s.remote != nil {
		s.remote.Close()
	}
	s.control.close()
	if s.home != nil {
		s.home.close()
	}
}

// addresses are those of names that are IP addresses.
func addresses(list []string) []netip.Addr {
	var out []netip.Addr
	for _, n := range list {
		if a, err := netip.ParseAddr(n); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// names are those that are no IP addresses.
func names(list []string) []string {
	var out []string
	for _, n := range list {
		if _, err := netip.ParseAddr(n); err != nil {
			out = append(out, n)
		}
	}
	return out
}
