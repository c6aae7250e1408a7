package apiserver

import (
	"net/http"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/api"
)

// metrics carry the names, labels and buckets of kube-apiserver's, so that its dashboards and
// alerts work.
type metrics struct {
	registry     *prometheus.Registry
	shown        prometheus.Gatherers // registry, and others'
	requests     *prometheus.CounterVec
	duration     *prometheus.HistogramVec
	sli          *prometheus.HistogramVec
	sizes        *prometheus.HistogramVec
	longRunning  *prometheus.GaugeVec
	terminations *prometheus.CounterVec
	aborts       *prometheus.CounterVec
	watchEvents  *prometheus.CounterVec
	watchSizes   *prometheus.HistogramVec
	handshakes   prometheus.Counter
	deprecated   *prometheus.GaugeVec
	access       *accessMetrics
	series       sync.Map // seriesKey to *series
}

func newMetrics(registry *prometheus.Registry, more []prometheus.Gatherer, flight *inFlight) (*metrics, error) {
	if registry == nil {
		registry = prometheus.NewRegistry()
	}
	labels := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	withDryRun := []string{"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"}
	m := &metrics{
		shown: append(prometheus.Gatherers{registry}, more...), registry: registry,
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_total", Help: "Requests by what they did and how they were answered.",
		}, append(withDryRun[:len(withDryRun):len(withDryRun)], "code")),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_duration_seconds", Help: "Time to the end of the response, in seconds.",
			Buckets: []float64{0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, withDryRun),
		sli: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_request_sli_duration_seconds", Help: "Time to the end of the response without what users' webhooks took, in seconds.",
			Buckets: []float64{0.05, 0.1, 0.2, 0.4, 0.6, 0.8, 1, 1.25, 1.5, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 45, 60},
		}, labels),
		sizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_response_sizes", Help: "Response sizes in bytes.",
			Buckets: prometheus.ExponentialBuckets(1000, 10, 7),
		}, labels),
		longRunning: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "apiserver_longrunning_requests", Help: "Watches, execs and other requests that last.",
		}, labels),
		terminations: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_terminations_total", Help: "Requests that were turned away in self-defence.",
		}, append(labels[:len(labels):len(labels)], "code")),
		aborts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_request_aborts_total", Help: "Requests whose response was cut off.",
		}, []string{"verb", "group", "version", "resource", "subresource", "scope"}),
		watchEvents: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "apiserver_watch_events_total", Help: "Events sent to watches.",
		}, []string{"group", "version", "resource"}),
		watchSizes: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "apiserver_watch_events_sizes", Help: "Sizes of watch events in bytes.",
			Buckets: prometheus.ExponentialBuckets(1024, 2, 8),
		}, []string{"group", "version", "resource"}),
		handshakes: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "apiserver_tls_handshake_errors_total", Help: "Connections that failed to set up TLS.",
		}),
	}
	m.access = newAccessMetrics()
	m.deprecated = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "apiserver_requested_deprecated_apis", Help: "Deprecated kinds that somebody asks for.",
	}, []string{"group", "version", "resource", "subresource", "removed_release"})
	inFlightGauge := func(kind string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_current_inflight_requests", Help: "Requests being answered, long-running ones apart.",
			ConstLabels: prometheus.Labels{"request_kind": kind},
		}, value)
	}
	for _, c := range append(m.access.collectors(),
		m.requests, m.duration, m.sli, m.sizes, m.longRunning, m.terminations, m.aborts, m.watchEvents, m.watchSizes, m.handshakes, m.deprecated,
		inFlightGauge("readOnly", func() float64 { return float64(flight.reads.count.Load()) }),
		inFlightGauge("mutating", func() float64 { return float64(flight.writes.count.Load()) }),
	) {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(gatherer(m.shown), promhttp.HandlerOpts{})
}

// component is the value of the label of that name: this is an API server.
const component = "apiserver"

// reported are a request's label values.
type reported struct {
	verb, dryRun, group, version, resource, subresource, scope string
}

// report names a request for metrics. What somebody made up, a path, a resource that is not served, or a subresource
// that it has not, must not become a label: it is asked for before it is known who asks. resource is nil for what is
// not served.
func report(req *http.Request, info *request.RequestInfo, resource *api.Resource) reported {
	var r reported
	switch {
	case !info.IsResourceRequest:
		r.subresource = knownPath(info.Path)
	case resource != nil && (info.Subresource == "" || resource.Subresources[info.Subresource] != nil):
		r = reported{group: info.APIGroup, version: info.APIVersion, resource: info.Resource, subresource: info.Subresource}
	}
	switch {
	case info.Name != "" || info.Verb == "create":
		r.scope = "resource"
	case info.Namespace != "":
		r.scope = "namespace"
	case info.IsResourceRequest:
		r.scope = "cluster"
	}
	r.verb = reportedVerb(req, info)
	if strings.Contains(req.URL.RawQuery, "dryRun") {
		r.dryRun = req.URL.Query().Get("dryRun")
		if r.dryRun != "" && r.dryRun != "All" {
			r.dryRun = "invalid"
		}
	}
	return r
}

func reportedVerb(req *http.Request, info *request.RequestInfo) string {
	if !info.IsResourceRequest {
		switch req.Method {
		case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodPatch:
			return req.Method
		}
		return "other"
	}
	switch info.Subresource {
	case "exec", "attach", "portforward", "proxy", "log":
		return "CONNECT"
	}
	switch info.Verb {
	case "get", "list", "watch", "delete", "deletecollection":
		return strings.ToUpper(info.Verb)
	case "create":
		return "POST"
	case "update":
		return "PUT"
	case "patch":
		if strings.HasPrefix(req.Header.Get("Content-Type"), "application/apply-patch") {
			return "APPLY"
		}
		return "PATCH"
	}
	return "other"
}

func knownPath(path string) string {
	for _, known := range []string{"/healthz", "/livez", "/readyz", "/metrics", "/version", "/openapi/v2", "/openapi/v3", "/debug/pprof", "/debug/api_priority_and_fairness", "/apis", "/api"} {
		if path == known || strings.HasPrefix(path, known+"/") {
			return known
		}
	}
	return ""
}

// series are what a finished request counts in. To find them by their labels costs more than to count.
type series struct {
	requests             prometheus.Counter
	duration, sli, sizes prometheus.Observer // the last two are nil where they don't count it
}

// seriesKey is what series depend on.
type seriesKey struct {
	reported
	code int
	long bool
}

// seriesOf finds the series of a request. There are as many as /metrics shows.
func (m *metrics) seriesOf(k seriesKey) *series {
	if known, ok := m.series.Load(k); ok {
		return known.(*series)
	}
	s := &series{
		requests: m.requests.WithLabelValues(k.verb, k.dryRun, k.group, k.version, k.resource, k.subresource, k.scope, component, strconv.Itoa(k.code)),
		duration: m.duration.WithLabelValues(k.verb, k.dryRun, k.group, k.version, k.resource, k.subresource, k.scope, component),
	}
	if !k.long { // its length is the client's choice
		s.sli = m.sli.WithLabelValues(k.verb, k.group, k.version, k.resource, k.subresource, k.scope, component)
		if k.verb == "GET" || k.verb == "LIST" {
			s.sizes = m.sizes.WithLabelValues(k.verb, k.group, k.version, k.resource, k.subresource, k.scope, component)
		}
	}
	m.series.Store(k, s)
	return s
}

// done records a finished request.
func (m *metrics) done(r reported, long bool, code int, size int64, took time.Duration) {
	s := m.seriesOf(seriesKey{r, code, long})
	s.requests.Inc()
	s.duration.Observe(took.Seconds())
	if s.sli != nil {
		s.sli.Observe(took.Seconds())
	}
	if s.sizes != nil {
		s.sizes.Observe(float64(size))
	}
}

func (m *metrics) running(r reported) prometheus.Gauge {
	return m.longRunning.WithLabelValues(r.verb, r.group, r.version, r.resource, r.subresource, r.scope, component)
}

func (m *metrics) aborted(r reported) {
	m.aborts.WithLabelValues(r.verb, r.group, r.version, r.resource, r.subresource, r.scope).Inc()
}

func (m *metrics) terminated(r reported, code int) {
	m.terminations.WithLabelValues(r.verb, r.group, r.version, r.resource, r.subresource, r.scope, component, strconv.Itoa(code)).Inc()
}
