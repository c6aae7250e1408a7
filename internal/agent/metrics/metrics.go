// Package metrics counts and times what the agent does, under the stock kubelet's names, so that
// dashboards and alerts made for it keep working. What is not an event but a state, such as how many
// containers run, is read by package server when somebody asks.
package metrics

import (
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"k8s.io/apimachinery/pkg/types"
)

// The operations of a pod's worker.
const (
	OperationCreate = "create"
	OperationUpdate = "update"
	OperationSync   = "sync"
)

// Set holds an agent's metrics. It is safe for concurrent use. A nil *Set counts nothing.
type Set struct {
	// Agent has what /metrics serves, Probes what /metrics/probes does: the latter has a series for
	// each container, which not everybody wants to collect.
	Agent, Probes *prometheus.Registry

	podStart        prometheus.Histogram
	podWorker       *prometheus.HistogramVec
	calls, failures *prometheus.CounterVec
	callTime        *prometheus.HistogramVec
	probes          *prometheus.CounterVec
	probeTime       *prometheus.HistogramVec
}

// New returns a set of metrics in registries of its own.
func New() *Set {
	operation := []string{"operation_type"}
	s := &Set{
		Agent: prometheus.NewRegistry(), Probes: prometheus.NewRegistry(),
		podStart: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "kubelet_pod_start_duration_seconds", Help: "Seconds from when the agent first saw a pod until the pod ran.",
			Buckets: []float64{0.1, 0.25, 0.5, 1, 2, 3, 4, 5, 6, 8, 10, 20, 30, 45, 60, 120, 180, 240, 300, 360, 480, 600, 900, 1200, 1800, 2700, 3600},
		}),
		podWorker: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubelet_pod_worker_duration_seconds", Help: "Seconds that one look at a pod took, by what it was for.", Buckets: prometheus.DefBuckets,
		}, operation),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubelet_runtime_operations_total", Help: "Calls of the container runtime.",
		}, operation),
		failures: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "kubelet_runtime_operations_errors_total", Help: "Calls of the container runtime that failed.",
		}, operation),
		callTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "kubelet_runtime_operations_duration_seconds", Help: "Seconds that calls of the container runtime took.",
			Buckets: prometheus.ExponentialBuckets(.005, 2.5, 14),
		}, operation),
		probes: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "prober_probe_total", Help: "Probes of a container, by their result.",
		}, []string{"probe_type", "result", "container", "pod", "namespace", "pod_uid"}),
		probeTime: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "prober_probe_duration_seconds", Help: "Seconds that a container took to answer a probe.",
		}, []string{"probe_type", "container", "pod", "namespace"}),
	}
	s.Agent.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
		s.podStart, s.podWorker, s.calls, s.failures, s.callTime)
	s.Probes.MustRegister(s.probes, s.probeTime)
	return s
}

// PodStarted takes in how long a pod took from when it was first seen until it ran.
func (s *Set) PodStarted(took time.Duration) {
	if s != nil {
		s.podStart.Observe(took.Seconds())
	}
}

// PodStep takes in how long one look at a pod took.
func (s *Set) PodStep(operation string, took time.Duration) {
	if s != nil {
		s.podWorker.WithLabelValues(operation).Observe(took.Seconds())
	}
}

// RuntimeCall takes in a call of the container runtime. The call is in words, such as "run pod
// sandbox".
func (s *Set) RuntimeCall(call string, took time.Duration, err error) {
	if s == nil {
		return
	}
	// The stock kubelet writes pod sandbox as one word.
	operation := strings.ReplaceAll(strings.ReplaceAll(call, " ", "_"), "pod_sandbox", "podsandbox")
	s.calls.WithLabelValues(operation).Inc()
	s.callTime.WithLabelValues(operation).Observe(took.Seconds())
	if err != nil {
		s.failures.WithLabelValues(operation).Inc()
	}
}

// Probed is a container that was probed, in one way.
type Probed struct {
	// Kind is Startup, Liveness or Readiness.
	Kind                      string
	Container, Pod, Namespace string
	UID                       types.UID
}

// Probe takes in a probe's result: successful, failed or unknown.
func (s *Set) Probe(p Probed, result string, took time.Duration) {
	if s == nil {
		return
	}
	s.probes.WithLabelValues(p.Kind, result, p.Container, p.Pod, p.Namespace, string(p.UID)).Inc()
	s.probeTime.WithLabelValues(p.Kind, p.Container, p.Pod, p.Namespace).Observe(took.Seconds())
}

// Forget drops the series of a pod that is gone.
func (s *Set) Forget(namespace, pod string, uid types.UID) {
	if s == nil {
		return
	}
	s.probes.DeletePartialMatch(prometheus.Labels{"pod_uid": string(uid)})
	s.probeTime.DeletePartialMatch(prometheus.Labels{"namespace": namespace, "pod": pod})
}
