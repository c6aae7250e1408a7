// Package aggregate passes requests for versions of API groups that other servers serve on to those: API aggregation,
// as kube-aggregator does it.
//
// An [Aggregator] follows the APIServices in the store's image on every server; it needs no leader. Each APIService that
// names a service has a [Backend], which reaches one of the service's endpoints over TLS, shows the front proxy's
// certificate and says in headers who asks. A backend also keeps what its server says of itself, for the documents of
// discovery and OpenAPI. Whether a request can be passed on, each server decides itself ([Backend.Serve]): the
// condition that the leader keeps in the APIService's status is one voice.
package aggregate

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/follow"
	"barque.dev/internal/store"
)

// A Resolver finds an endpoint of a service's port. *relay.Resolver is one.
type Resolver interface {
	ResolveEndpoint(namespace, name string, port int32) (*url.URL, error)
}

// Config configures an Aggregator.
type Config struct {
	// Table holds the APIServices.
	Table    *store.Table
	Resolver Resolver
	// Certificate is the front proxy's, by which servers know that it may name users; nil shows none.
	Certificate func(*tls.CertificateRequestInfo) (*tls.Certificate, error)
	// Dial connects to servers; nil dials directly.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Changed is called when what is to be said about APIServices has changed. Calls may come at once.
	Changed func()
	// Metrics is where the metrics are registered; nil for none.
	Metrics prometheus.Registerer
	Log     *slog.Logger
}

// An Aggregator knows all APIServices. It is safe for concurrent use.
type Aggregator struct {
	*follow.Follower
	cfg     Config
	metrics *metrics

	// routes are the backends of versions that other servers serve; nil while there are none.
	routes atomic.Pointer[map[schema.GroupVersion]*Backend]

	mu    sync.Mutex
	known map[string]service // by name
	// life ends the backends' upkeep; nil before Run.
	life    context.Context
	keepers sync.WaitGroup
}

// service is what is known of an APIService.
type service struct {
	gv       schema.GroupVersion
	priority api.Priority
	// backend is nil for what this server serves itself.
	backend *Backend
}

// New knows the APIServices that the image holds; Run goes on from there.
func New(cfg Config) (*Aggregator, error) {
	if cfg.Table == nil {
		return nil, errors.New("API aggregation: APIServices are not served")
	}
	m, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	a := &Aggregator{cfg: cfg, metrics: m, known: map[string]service{}}
	a.Follower = follow.New(follow.Config{Table: cfg.Table, What: "APIServices", Handle: a.handle})
	a.CatchUp()
	return a, nil
}

// Run follows the APIServices, and asks their servers what they serve, until ctx ends or the store stops.
func (a *Aggregator) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	a.mu.Lock()
	a.life = ctx
	for _, s := range a.known {
		a.keep(s.backend)
	}
	a.mu.Unlock()
	defer a.close()
	defer cancel()
	return a.Follower.Run(ctx)
}

// close waits for the upkeep to end, and drops connections that are idle.
func (a *Aggregator) close() {
	a.keepers.Wait()
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range a.known {
		if s.backend != nil {
			s.backend.transport.CloseIdleConnections()
		}
	}
}

// keep starts the upkeep of a backend, once there is Run to end it. Callers hold mu.
func (a *Aggregator) keep(b *Backend) {
	if b == nil || a.life == nil {
		return
	}
	ctx, cancel := context.WithCancel(a.life)
	b.stop = cancel
	a.keepers.Go(func() {
		defer cancel()
		b.keep(ctx, a.cfg.Changed)
	})
}

// Find returns who serves a version of a group; nil if no other server does.
func (a *Aggregator) Find(gv schema.GroupVersion) *Backend {
	routes := a.routes.Load()
	if routes == nil {
		return nil
	}
	return (*routes)[gv]
}

// Backends are those of all versions that other servers serve, by name of the APIService.
func (a *Aggregator) Backends() []*Backend {
	var out []*Backend
	if routes := a.routes.Load(); routes != nil {
		for _, b := range *routes {
			out = append(out, b)
		}
	}
	slices.SortFunc(out, func(x, y *Backend) int { return strings.Compare(x.name, y.name) })
	return out
}

// Priorities are those that APIServices say, by version.
func (a *Aggregator) Priorities() map[schema.GroupVersion]api.Priority {
	a.mu.Lock()
	defer a.mu.Unlock()
	out := make(map[schema.GroupVersion]api.Priority, len(a.known))
	for _, s := range a.known {
		out[s.gv] = s.priority
	}
	return out
}

// handle takes in one version of an APIService.
func (a *Aggregator) handle(name string, entry *store.Entry) error {
	svc := a.read(entry)
	a.metrics.see(name, svc)
	a.mu.Lock()
	was := a.known[name]
	next := service{}
	if svc == nil {
		delete(a.known, name)
	} else {
		next = a.understand(svc, was)
		a.known[name] = next
	}
	if next.backend != was.backend {
		if was.backend != nil {
			was.backend.retire()
		}
		a.route()
		a.keep(next.backend)
	}
	a.mu.Unlock()
	if next.notable() != was.notable() {
		a.cfg.Changed()
	}
	return nil
}

// notable is what is to be said of a service beside what goes without saying, as that of most does.
func (s service) notable() service {
	if s.backend == nil && s.priority == api.PriorityOf(s.gv) {
		return service{}
	}
	return s
}

// read is the APIService of an entry; nil if there is none, or none that can be read.
func (a *Aggregator) read(entry *store.Entry) *apiregistrationv1.APIService {
	if entry == nil {
		return nil
	}
	obj, err := entry.Object()
	if err != nil {
		a.cfg.Log.Error("an APIService can't be read, and requests are not passed on for it", "apiservice", entry.Key().Name, "error", err)
		return nil
	}
	svc, _ := obj.(*apiregistrationv1.APIService)
	return svc
}

// understand is what is to be known of an APIService, of which something may have been known before.
func (a *Aggregator) understand(svc *apiregistrationv1.APIService, was service) service {
	next := service{
		gv:       schema.GroupVersion{Group: svc.Spec.Group, Version: svc.Spec.Version},
		priority: api.Priority{Group: svc.Spec.GroupPriorityMinimum, Version: svc.Spec.VersionPriority},
	}
	// Who could take the group of APIServices itself away could never give it back.
	if svc.Spec.Service == nil || svc.Spec.Group == apiregistrationv1.GroupName {
		return next
	}
	if was.backend != nil && apiequality.Semantic.DeepEqual(was.backend.spec, svc.Spec) {
		was.backend.judged(svc)
		next.backend = was.backend
		return next
	}
	next.backend = newBackend(a.cfg, svc)
	if was.backend != nil {
		next.backend.inherit(was.backend)
	}
	return next
}

// route makes the routes of what is known. Callers hold mu.
func (a *Aggregator) route() {
	routes := map[schema.GroupVersion]*Backend{}
	for _, s := range a.known {
		if s.backend != nil {
			routes[s.gv] = s.backend
		}
	}
	if len(routes) == 0 {
		a.routes.Store(nil)
		return
	}
	a.routes.Store(&routes)
}
