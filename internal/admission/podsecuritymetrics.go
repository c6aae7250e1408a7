package admission

import (
	"fmt"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	podsecurityapi "k8s.io/pod-security-admission/api"
	"k8s.io/pod-security-admission/metrics"
)

// securityMetrics count what PodSecurity decides, under upstream's names.
type securityMetrics struct {
	evaluations, exemptions, errors *prometheus.CounterVec
}

var _ metrics.Recorder = (*securityMetrics)(nil)

// newSecurityMetrics makes the metrics; registerer may be nil.
func newSecurityMetrics(registerer prometheus.Registerer) (*securityMetrics, error) {
	counter := func(name, help string, labels ...string) *prometheus.CounterVec {
		labels = append(labels, "request_operation", "resource", "subresource")
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	m := &securityMetrics{
		evaluations: counter("pod_security_evaluations_total", "Policy evaluations, less ignored and exempt requests.",
			"decision", "policy_level", "policy_version", "mode"),
		exemptions: counter("pod_security_exemptions_total", "Exempt requests, less ignored ones."),
		errors:     counter("pod_security_errors_total", "Errors that kept from a normal evaluation.", "fatal"),
	}
	if registerer == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.evaluations, m.exemptions, m.errors} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of PodSecurity: %w", err)
		}
	}
	return m, nil
}

// request are the labels of the request.
func (*securityMetrics) request(a podsecurityapi.Attributes) []string {
	resource := "controller"
	switch r := a.GetResource(); {
	case r.Group == "" && r.Resource == "pods":
		resource = "pod"
	case r.Group == "" && r.Resource == "namespaces":
		resource = "namespace"
	}
	return []string{strings.ToLower(string(a.GetOperation())), resource, a.GetSubresource()}
}

// RecordEvaluation implements metrics.Recorder.
func (m *securityMetrics) RecordEvaluation(d metrics.Decision, policy podsecurityapi.LevelVersion, mode metrics.Mode, a podsecurityapi.Attributes) {
	version := "latest"
	if !policy.Version.Latest() && policy.Level != podsecurityapi.LevelPrivileged {
		version = policy.Version.String()
		if served := podsecurityapi.GetAPIVersion(); served.Older(policy.Version) {
			version = "future"
		}
	}
	m.evaluations.WithLabelValues(append([]string{string(d), string(policy.Level), version, string(mode)}, m.request(a)...)...).Inc()
}

// RecordExemption implements metrics.Recorder.
func (m *securityMetrics) RecordExemption(a podsecurityapi.Attributes) {
	m.exemptions.WithLabelValues(m.request(a)...).Inc()
}

// RecordError implements metrics.Recorder.
func (m *securityMetrics) RecordError(fatal bool, a podsecurityapi.Attributes) {
	m.errors.WithLabelValues(append([]string{strconv.FormatBool(fatal)}, m.request(a)...)...).Inc()
}
