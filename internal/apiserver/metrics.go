package apiserver

import (
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// metrics carry the names, labels and buckets of kube-apiserver's, so that its dashboards and
// alerts work.
type metrics struct {
	registry     *prometheus.Registry
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
}

func newMetrics(registry *prometheus.Registry, flight *inFlight) (*metrics, error) {
	if registry == nil {
		registry = prometheus.NewRegistry()
	}
	labels := []string{"verb", "group", "version", "resource", "subresource", "scope", "component"}
	withDryRun := []string{"verb", "dry_run", "group", "version", "resource", "subresource", "scope", "component"}
	m := &metrics{
		registry: registry,
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
	m.deprecated = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "apiserver_requested_deprecated_apis", Help: "Deprecated kinds that somebody asks for.",
	}, []string{"group", "version", "resource", "subresource", "removed_release"})
	inFlightGauge := func(kind string, value func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "apiserver_current_inflight_requests", Help: "Requests being answered, long-running ones apart.",
			ConstLabels: prometheus.Labels{"request_kind": kind},
		}, value)
	}
	for _, c := range []prometheus.Collector{
		m.requests, m.duration, m.sli, m.sizes, m.longRunning, m.terminations, m.aborts, m.watchEvents, m.watchSizes, m.handshakes, m.deprecated,
		inFlightGauge("readOnly", func() float64 { return float64(flight.reads.Load()) }),
		inFlightGauge("mutating", func() float64 { return float64(flight.writes.Load()) }),
	} {
		if err := registry.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// component is the value of the label of that name: this is an API server.
const component = "apiserver"

// reported are a request's label values.
type reported struct {
	verb, dryRun, group, version, resource, subresource, scope string
}

// report names a request for metrics. What somebody made up, a path or a resource that is not served, must not
// become a label.
func report(req *http.Request, info *request.RequestInfo, served bool) reported {
	var r reported
	switch {
	case !info.IsResourceRequest:
		r.subresource = knownPath(info.Path)
	case served:
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
	for _, known := range []string{"/healthz", "/livez", "/readyz", "/metrics", "/version", "/openapi/v2", "/openapi/v3", "/debug/pprof", "/apis", "/api"} {
		if path == known || strings.HasPrefix(path, known+"/") {
			return known
		}
	}
	return ""
}

// done records a finished request.
func (m *metrics) done(r reported, long bool, code int, size int64, took time.Duration) {
	m.requests.WithLabelValues(r.verb, r.dryRun, r.group, r.version, r.resource, r.subresource, r.scope, component, strconv.Itoa(code)).Inc()
	m.duration.WithLabelValues(r.verb, r.dryRun, r.group, r.version, r.resource, r.subresource, r.scope, component).Observe(took.Seconds())
	if long {
		return // its length is the client's choice
	}
	m.sli.WithLabelValues(r.verb, r.group, r.version, r.resource, r.subresource, r.scope, component).Observe(took.Seconds())
	if r.verb == "GET" || r.verb == "LIST" {
		m.sizes.WithLabelValues(r.verb, r.group, r.version, r.resource, r.subresource, r.scope, component).Observe(float64(size))
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
