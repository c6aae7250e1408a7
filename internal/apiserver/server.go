// Package apiserver is the portal of a master: the Kubernetes API over HTTPS.
//
// A request passes through one chain ([Server.ServeHTTP]): who is it, may it, is there room, and then
// the handler. Handlers of objects are thin: they read the request, call the verb in package
// registry, and put together the answer from item bytes that are encoded once and shared
// (package wire). What a verb means is the registry's business; what a kind is, package api's.
//
// Beside objects the server answers discovery (package discovery), OpenAPI, health, metrics and
// version, and passes exec, attach, port-forward, logs and proxy requests on to nodes, pods and
// services (package relay), and requests for aggregated APIs to the servers that have them
// (package aggregate).
package apiserver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/util/sets"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters/impersonation"
	"k8s.io/apiserver/pkg/endpoints/request"
	"k8s.io/apiserver/pkg/server/healthz"

	"barque.dev/internal/api"
	"barque.dev/internal/api/openapi"
	"barque.dev/internal/apiserver/aggregate"
	"barque.dev/internal/apiserver/auditlog"
	"barque.dev/internal/apiserver/custom"
	"barque.dev/internal/apiserver/fairness"
	"barque.dev/internal/apiserver/h2"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/relay"
	"barque.dev/internal/client"
)

// Config configures a Server.
type Config struct {
	// Registry answers the verbs.
	Registry *registry.Registry
	// Authenticator says who a request comes from. Requests that it does not know are refused.
	Authenticator authenticator.Request
	// Audiences are those that tokens for this server are meant for; empty accepts what the authenticator does.
	Audiences authenticator.Audiences
	// Authorizer says whether they may.
	Authorizer authorizer.Authorizer
	// Listener is where to listen; the server closes it. TLS holds the server's certificate and the authorities of
	// clients; HTTP/2 and at least TLS 1.2 are added.
	Listener net.Listener
	TLS      *tls.Config
	// Identity is how the server is known to others; it is published as a Lease while the server runs.
	Identity Identity
	// Kubelet says how nodes are reached. Without a dialer, requests for nodes and pods go out directly.
	Kubelet relay.Config
	// FrontProxy is the client certificate that aggregated API servers are shown, by which they know that they may trust
	// the headers that say who asks; nil shows none.
	FrontProxy func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// Metrics is what /metrics shows, with the server's own added; nil makes one.
	Metrics *prometheus.Registry
	// Gatherers are shown by /metrics beside Metrics. No two may have a metric of the same name.
	Gatherers []prometheus.Gatherer
	// Livez and Readyz are checked by /livez and /readyz, and both by /healthz, beside ping and shutdown.
	Livez, Readyz []healthz.HealthChecker
	// Extra serves further paths. Its handlers check their callers themselves: neither
	// authentication nor authorization comes before them. A key that ends in a slash stands
	// for everything below.
	Extra map[string]http.Handler
	// Paths serves further paths behind authentication and authorization.
	Paths map[string]http.Handler
	// Version is what /version says; the zero value is Barque's own.
	Version apiversion.Info
	// Audit is where requests are recorded; nil for nowhere. The server runs it.
	Audit *auditlog.Log
	// Tracer begins the spans of requests; nil traces nothing.
	Tracer trace.Tracer
	// ConnectionAge is after how long a client's connection is told to go, at least, so that clients spread over all servers anew; at
	// most twice that, and a fifth of it after a server has come ([Server.Grew]). 0 is never. Floating is the address, if there
	// is one, that moves between servers: clients that come by it stay.
	ConnectionAge time.Duration
	Floating      netip.Addr
	// Limits bound what is taken on; zero fields mean the defaults.
	Limits Limits
	Log    *slog.Logger
}

// Limits bound what a server takes on at once.
type Limits struct {
	// Reads and Writes are how many requests are answered at a time, long-running ones apart. By default 400 and 200.
	// Priority and fairness divides their sum, by what requests are for and whom they are from.
	Reads, Writes int64
	// Plain turns priority and fairness off: whoever comes first is served.
	Plain bool
	// Request is how long a request may take; 60 s by default. Long-running ones are exempt.
	Request time.Duration
	// Body is how large a request's body may be, in bytes; 3 MiB by default.
	Body int64
	// Receive is how long a client may take to receive an answer that does not fit into a packet or two; 2 minutes by
	// default. Long-running requests are exempt.
	Receive time.Duration
	// Drain is how long running requests may take to end at shutdown; 10 s by default.
	Drain time.Duration
}

func (l Limits) withDefaults() Limits {
	set := func(v *int64, d int64) {
		if *v == 0 {
			*v = d
		}
	}
	set(&l.Reads, 400)
	set(&l.Writes, 200)
	set(&l.Body, 3<<20)
	set((*int64)(&l.Request), int64(time.Minute))
	set((*int64)(&l.Receive), int64(2*time.Minute))
	set((*int64)(&l.Drain), int64(10*time.Second))
	return l
}

// Server is the API over HTTPS.
type Server struct {
	cfg      Config
	log      *slog.Logger
	limits   Limits
	registry *registry.Registry
	resolver request.RequestInfoResolver
	// impersonated goes on with the chain as the user that a request asks to act as.
	impersonated http.Handler
	flight       *inFlight
	fair         *fairness.Control // nil without priority and fairness
	metrics      *metrics
	paths        *paths
	custom       *custom.Registrar
	aggregator   *aggregate.Aggregator
	describing   sync.Mutex // held while a catalog is made of the last one
	catalog      atomic.Pointer[catalog]
	specs        *openapi.Specs // nil in a binary without them
	relay        *relay.Relay
	encoders     sync.Map // encoderKey to *wire.Encoder
	lifecycles   sync.Map // schema.GroupVersionKind to lifecycle
	turnover     turnover

	// retiring ends when clients shall go elsewhere: readiness fails. stopping ends when shutdown begins: watches end.
	retiring, stopping context.Context
	retire, stop       context.CancelFunc
}

// New makes a server; Run serves.
func New(cfg Config) (*Server, error) {
	if cfg.Registry == nil || cfg.Authenticator == nil || cfg.Authorizer == nil || cfg.Listener == nil || cfg.TLS == nil {
		return nil, errors.New("apiserver: Registry, Authenticator, Authorizer, Listener and TLS are required")
	}
	s := &Server{
		cfg: cfg, log: cfg.Log, limits: cfg.Limits.withDefaults(), registry: cfg.Registry,
		resolver: &request.RequestInfoFactory{
			APIPrefixes: sets.NewString("api", "apis"), GrouplessAPIPrefixes: sets.NewString("api"),
		},
		turnover: turnover{age: cfg.ConnectionAge, floating: cfg.Floating},
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if cfg.Version.GitVersion == "" {
		s.cfg.Version = Version()
	}
	s.stopping, s.stop = context.WithCancel(context.Background())
	s.retiring, s.retire = context.WithCancel(s.stopping)
	s.flight = &inFlight{}
	s.flight.reads.max, s.flight.writes.max = s.limits.Reads, s.limits.Writes
	var err error
	if s.metrics, err = newMetrics(cfg.Metrics, cfg.Gatherers, s.flight); err != nil {
		return nil, fmt.Errorf("apiserver: metrics: %w", err)
	}
	if !s.limits.Plain {
		s.fair, err = fairness.New(fairness.Config{
			Seats: int(s.limits.Reads + s.limits.Writes), Table: s.registry.Table, Metrics: s.metrics.registry, Log: s.log,
		})
		if err != nil {
			return nil, fmt.Errorf("apiserver: %w", err)
		}
	}
	s.relay = relay.New(cfg.Kubelet, relay.Image(client.NewInProcess(client.Config{Tables: s.registry})))
	s.impersonated = impersonation.WithConstrainedImpersonation(http.HandlerFunc(s.identified), cfg.Authorizer, api.Codecs())
	if err := s.openSpecs(); err != nil {
		return nil, fmt.Errorf("apiserver: %w", err)
	}
	if err := s.openCustom(); err != nil {
		return nil, fmt.Errorf("apiserver: %w", err)
	}
	if err := s.openAggregation(); err != nil {
		return nil, fmt.Errorf("apiserver: %w", err)
	}
	s.describe()
	s.paths = s.newPaths()
	return s, nil
}

// Run serves until ctx ends; ready is called once connections are accepted. Then watches end,
// running requests get their time, and everything is closed. A Server runs once.
func (s *Server) Run(ctx context.Context, ready func()) error {
	listener := newTracked(s.cfg.Listener)
	server := s.httpServer()
	base, cancel := context.WithCancel(context.Background())
	defer cancel()
	defer s.relay.Close()
	server.BaseContext = func(net.Listener) context.Context { return base }

	stopAudit, err := s.runAudit()
	if err != nil {
		return err
	}
	defer stopAudit()
	upkeep, end := context.WithCancel(registry.WithUserAgent(ctx, "barque"))
	var keepers sync.WaitGroup
	keepers.Go(func() { s.keepLease(upkeep) })
	keepers.Go(func() { s.followDefinitions(upkeep) })
	keepers.Go(func() { s.followAPIServices(upkeep) })
	if s.fair != nil {
		keepers.Go(func() { s.keepFair(upkeep) })
	}
	defer keepers.Wait()
	defer end()

	served := make(chan error, 1)
	go func() { served <- server.ServeTLS(listener, "", "") }()
	ready()
	select {
	case err := <-served:
		s.stop()
		cancel()
		listener.closeAll()
		return fmt.Errorf("serve API: %w", err)
	case <-ctx.Done():
	}

	s.stop()
	drain, done := context.WithTimeout(context.WithoutCancel(ctx), s.limits.Drain)
	defer done()
	err = server.Shutdown(drain)
	cancel() // what still runs, such as execs, ends now
	if err != nil {
		s.log.Warn("requests cut off at shutdown", "error", err)
		_ = server.Close() // closes what Shutdown could not; the listener is closed already
	}
	listener.closeAll()
	<-served
	s.flight.wait()
	return nil
}

// keepFair follows the configuration of priority and fairness, until ctx ends.
func (s *Server) keepFair(ctx context.Context) {
	if err := s.fair.Run(ctx); err != nil {
		s.log.Error("priority and fairness no longer follows its configuration", "error", err)
	}
}

// Bounds on connections, as kube-apiserver has them.
const (
	idleTimeout     = 90 * time.Second
	headerTimeout   = 32 * time.Second
	maxHeader       = 1 << 20 // bytes
	maxStreams      = 250     // concurrent requests on one HTTP/2 connection
	uploadPerStream = 256 << 10
)

func (s *Server) httpServer() *http.Server {
	config := s.cfg.TLS.Clone()
	config.MinVersion = max(config.MinVersion, tls.VersionTLS12)
	config.DynamicRecordSizingDisabled = true // small records first help browsers, and cost a system call each
	protocols := &http.Protocols{}
	protocols.SetHTTP1(true) // streams are upgraded from it
	protocols.SetHTTP2(true)
	server := &http.Server{
		Protocols:         protocols,
		Handler:           s,
		ConnContext:       s.turnover.note,
		TLSConfig:         config,
		ReadHeaderTimeout: headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(connectionErrors{s.log.Handler(), s.metrics.handshakes}, slog.LevelDebug),
	}
	h2.Attach(server, h2.Config{
		MaxStreams: maxStreams, StreamWindow: uploadPerStream, ConnWindow: uploadPerStream * maxStreams,
		MaxHeader: maxHeader, Idle: idleTimeout, ErrorLog: server.ErrorLog,
	})
	return server
}

// connectionErrors logs what net/http says about broken connections, and counts failed handshakes.
type connectionErrors struct {
	slog.Handler
	handshakes prometheus.Counter
}

// Enabled is always true, as what is not logged is still counted.
func (h connectionErrors) Enabled(context.Context, slog.Level) bool { return true }

func (h connectionErrors) Handle(ctx context.Context, r slog.Record) error {
	if strings.Contains(r.Message, "TLS handshake error") {
		h.handshakes.Inc()
	}
	if !h.Handler.Enabled(ctx, r.Level) {
		return nil
	}
	return h.Handler.Handle(ctx, r)
}

// tracked is a listener that knows its open connections: http.Server forgets those that became streams.
type tracked struct {
	net.Listener
	mu   sync.Mutex
	open map[*trackedConn]struct{}
}

type trackedConn struct {
	*h2.Batched
	listener *tracked
}

func newTracked(l net.Listener) *tracked {
	return &tracked{Listener: l, open: map[*trackedConn]struct{}{}}
}

func (l *tracked) Accept() (net.Conn, error) {
	conn, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := &trackedConn{h2.NewBatched(conn), l}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open[c] = struct{}{}
	return c, nil
}

func (c *trackedConn) Close() error {
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
	return c.Batched.Close()
}

func (l *tracked) closeAll() {
	l.mu.Lock()
	conns := make([]*trackedConn, 0, len(l.open))
	for c := range l.open {
		conns = append(conns, c)
	}
	l.mu.Unlock()
	for _, c := range conns {
		_ = c.Close() // whoever uses it sees the error
	}
}
