package aggregate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"

	"barque.dev/internal/reconnect"
)

// defaultPort is that of an APIService that names none.
const defaultPort = 443

// A Backend is the server of one version of a group. It is safe for concurrent use.
type Backend struct {
	name     string // of the APIService
	gv       schema.GroupVersion
	spec     apiregistrationv1.APIServiceSpec // its Service is never nil
	resolver Resolver
	log      *slog.Logger

	transport *reconnect.Transport
	// broken says why the server can't be reached whatever it does; nil if nothing is wrong.
	broken error

	// condition is what the APIService's status says of its availability; never nil.
	condition atomic.Pointer[apiregistrationv1.APIServiceCondition]
	// said is what the server said of itself; never nil.
	said atomic.Pointer[statement]
	// again asks the upkeep not to wait until it asks the server once more.
	again chan struct{}
	stop  context.CancelFunc // ends the upkeep; nil before it began
}

// newBackend makes the backend of an APIService that names a service.
func newBackend(cfg Config, svc *apiregistrationv1.APIService) *Backend {
	b := &Backend{
		name: svc.Name, gv: schema.GroupVersion{Group: svc.Spec.Group, Version: svc.Spec.Version}, spec: svc.Spec,
		resolver: cfg.Resolver, log: cfg.Log, again: make(chan struct{}, 1),
	}
	b.said.Store(&statement{Description: Description{Stale: true}})
	b.judged(svc)
	trust, err := trustOf(&svc.Spec)
	if err != nil {
		b.broken = fmt.Errorf("APIService %s: %w", svc.Name, err)
	}
	trust.GetClientCertificate = cfg.Certificate
	dial := cfg.Dial
	if dial == nil {
		dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	b.transport = reconnect.New(&http.Transport{
		DialContext: dial, TLSClientConfig: trust, TLSHandshakeTimeout: 10 * time.Second,
		ForceAttemptHTTP2: true, IdleConnTimeout: 90 * time.Second, MaxIdleConnsPerHost: 25, DisableCompression: true,
		// A connection whose other end went away without a word must not hold all requests.
		HTTP2: &http.HTTP2Config{SendPingTimeout: 30 * time.Second, PingTimeout: 15 * time.Second},
	})
	return b
}

// trustOf says whom a server must prove to be: the service, to the APIService's authorities or to those that the
// machine trusts.
func trustOf(spec *apiregistrationv1.APIServiceSpec) (*tls.Config, error) {
	trust := &tls.Config{
		MinVersion: tls.VersionTLS12, ServerName: spec.Service.Name + "." + spec.Service.Namespace + ".svc",
		NextProtos:         []string{"h2", "http/1.1"},
		InsecureSkipVerify: spec.InsecureSkipTLSVerify, //nolint:gosec // the user's choice, in so many words
	}
	if len(spec.CABundle) == 0 {
		return trust, nil
	}
	trust.RootCAs = x509.NewCertPool()
	if !trust.RootCAs.AppendCertsFromPEM(spec.CABundle) {
		return trust, fmt.Errorf("its caBundle holds no certificate")
	}
	return trust, nil
}

// Name is the APIService's.
func (b *Backend) Name() string { return b.name }

// GroupVersion is what the server serves.
func (b *Backend) GroupVersion() schema.GroupVersion { return b.gv }

// judged takes in what an APIService's status says.
func (b *Backend) judged(svc *apiregistrationv1.APIService) {
	condition := helper.GetAPIServiceConditionByType(svc, apiregistrationv1.Available)
	if condition == nil {
		condition = &apiregistrationv1.APIServiceCondition{Type: apiregistrationv1.Available, Status: apiregistrationv1.ConditionUnknown}
	}
	was := b.condition.Swap(condition)
	if was != nil && was.Status != condition.Status {
		b.ask()
	}
}

// ask has the server asked soon what it serves.
func (b *Backend) ask() {
	select {
	case b.again <- struct{}{}:
	default: // it will be
	}
}

// inherit takes over what is known of the same version by its last APIService, until the server of this one has answered.
func (b *Backend) inherit(from *Backend) {
	said := *from.said.Load()
	b.said.Store(&statement{Description: Description{Resources: said.Resources, Stale: true, V2: said.V2, V3: said.V3}})
}

// retire ends the upkeep of a backend that is no longer asked; requests that are under way go on.
func (b *Backend) retire() {
	if b.stop != nil {
		b.stop()
	}
	b.transport.CloseIdleConnections()
}

// endpoint finds an endpoint of the service.
func (b *Backend) endpoint() (*url.URL, error) {
	if b.broken != nil {
		return nil, b.broken
	}
	port := int32(defaultPort)
	if b.spec.Service.Port != nil {
		port = *b.spec.Service.Port
	}
	return b.resolver.ResolveEndpoint(b.spec.Service.Namespace, b.spec.Service.Name, port)
}

// Bounds on the time between two questions to a server.
const (
	refresh    = time.Minute
	firstRetry = 500 * time.Millisecond
)

// keep asks the server again and again what it serves, until ctx ends: each minute while it answers, earlier and ever
// later while it does not. changed is called when it says something else than before.
func (b *Backend) keep(ctx context.Context, changed func()) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	delay := firstRetry
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.again:
			delay = firstRetry
		case <-timer.C:
		}
		was := b.said.Load()
		next := b.hear(ctx, was)
		if ctx.Err() != nil {
			return
		}
		b.said.Store(next)
		if !next.same(&was.Description) {
			changed()
		}
		wait := refresh
		if next.err != nil {
			wait, delay = delay, min(2*delay, refresh)
			b.log.Debug("an aggregated API server does not answer", "apiservice", b.name, "error", next.err)
		} else {
			delay = firstRetry
		}
		timer.Reset(wait)
	}
}
