package apiserver

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// accessMetrics count who came and who was let in, and how long that took, under kube-apiserver's names. What a request needs
// of them was looked up when they were made.
type accessMetrics struct {
	attempts, users, decisions *prometheus.CounterVec
	whose, whether             *prometheus.HistogramVec

	success, failure, failed          outcome
	email, other                      prometheus.Counter
	allowed, denied, noOpinion, error outcome
}

// An outcome is counted, with how long it took.
type outcome struct {
	count prometheus.Counter
	took  prometheus.Observer
}

func (o *outcome) since(start time.Time) {
	o.count.Inc()
	o.took.Observe(time.Since(start).Seconds())
}

func newAccessMetrics() *accessMetrics {
	counter := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	duration := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(0.001, 2, 15)}, []string{"result"})
	}
	m := &accessMetrics{
		attempts:  counter("authentication_attempts", "Requests by whether their credentials were good.", "result"),
		users:     counter("authenticated_user_requests", "Requests of known users, by the kind of their names.", "username"),
		decisions: counter("authorization_attempts_total", "Requests by whether they were let in.", "result"),
		whose:     duration("authentication_duration_seconds", "How long it took to know whose a request is, by whether its credentials were good."),
		whether:   duration("authorization_duration_seconds", "How long it took to decide upon a request, by the decision."),
	}
	of := func(counts *prometheus.CounterVec, durations *prometheus.HistogramVec, result string) outcome {
		return outcome{counts.WithLabelValues(result), durations.WithLabelValues(result)}
	}
	m.success, m.failure, m.failed = of(m.attempts, m.whose, "success"), of(m.attempts, m.whose, "failure"), of(m.attempts, m.whose, "error")
	m.email, m.other = m.users.WithLabelValues("email_id"), m.users.WithLabelValues("other")
	m.allowed, m.denied = of(m.decisions, m.whether, "allowed"), of(m.decisions, m.whether, "denied")
	m.noOpinion, m.error = of(m.decisions, m.whether, "no-opinion"), of(m.decisions, m.whether, "error")
	return m
}

func (m *accessMetrics) collectors() []prometheus.Collector {
	return []prometheus.Collector{m.attempts, m.users, m.decisions, m.whose, m.whether}
}

func (m *accessMetrics) authenticated(start time.Time, who *authenticator.Response, ok bool, err error) {
	switch {
	case err != nil:
		m.failed.since(start)
	case !ok:
		m.failure.since(start)
	default:
		m.success.since(start)
		m.user(who.User.GetName()).Inc()
	}
}

// user is the counter of a name: a name itself is nobody's business but for a few that all clusters
// know.
func (m *accessMetrics) user(name string) prometheus.Counter {
	switch name {
	case "admin", "client", "kube_proxy", "kubelet", "system:serviceaccount:kube-system:default":
		return m.users.WithLabelValues(name)
	}
	if strings.Contains(name, "@") {
		return m.email
	}
	return m.other
}

func (m *accessMetrics) authorized(start time.Time, decision authorizer.Decision, err error) {
	switch {
	case decision == authorizer.DecisionAllow:
		m.allowed.since(start)
	case err != nil:
		m.error.since(start)
	case decision == authorizer.DecisionDeny:
		m.denied.since(start)
	default:
		m.noOpinion.since(start)
	}
}
