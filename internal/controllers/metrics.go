package controllers

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/client-go/util/workqueue"
)

// metrics provides the queues' metrics under the names that component-base gives them, and
// counts failures under the names of controller-runtime. A nil *metrics counts nothing.
type metrics struct {
	depth, unfinished, longest *prometheus.GaugeVec
	adds, retries              *prometheus.CounterVec
	latency, work              *prometheus.HistogramVec
	errors, panics             *prometheus.CounterVec
}

func newMetrics(registerer prometheus.Registerer) (*metrics, error) {
	if registerer == nil {
		return nil, nil
	}
	byName, byController := []string{"name"}, []string{"controller"}
	gauge := func(name, help string) *prometheus.GaugeVec {
		return prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "workqueue_" + name, Help: help}, byName)
	}
	counter := func(name, help string, labels []string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, labels)
	}
	histogram := func(name, help string) *prometheus.HistogramVec {
		return prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "workqueue_" + name, Help: help, Buckets: prometheus.ExponentialBuckets(10e-9, 10, 12),
		}, byName)
	}
	m := &metrics{
		depth:      gauge("depth", "Requests that wait in the queue."),
		unfinished: gauge("unfinished_work_seconds", "Seconds of work under way that no work_duration holds yet."),
		longest:    gauge("longest_running_processor_seconds", "Seconds that the longest running worker has been at it."),
		adds:       counter("workqueue_adds_total", "Requests that were added.", byName),
		retries:    counter("workqueue_retries_total", "Requests that came again after a failure.", byName),
		latency:    histogram("queue_duration_seconds", "Seconds that a request waited."),
		work:       histogram("work_duration_seconds", "Seconds that a request's handling took."),
		errors:     counter("controller_runtime_reconcile_errors_total", "Reconciliations that failed.", byController),
		panics:     counter("controller_runtime_reconcile_panics_total", "Reconciliations that panicked.", byController),
	}
	for _, c := range []prometheus.Collector{m.depth, m.unfinished, m.longest, m.adds, m.retries, m.latency, m.work, m.errors, m.panics} {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register controllers' metrics: %w", err)
		}
	}
	return m, nil
}

func (m *metrics) reconcileError(controller string) {
	if m != nil {
		m.errors.WithLabelValues(controller).Inc()
	}
}

func (m *metrics) panicked(controller string) {
	if m != nil {
		m.panics.WithLabelValues(controller).Inc()
	}
}

// The methods below make metrics a workqueue.MetricsProvider.

func (m *metrics) NewDepthMetric(name string) workqueue.GaugeMetric {
	return m.depth.WithLabelValues(name)
}

func (m *metrics) NewAddsMetric(name string) workqueue.CounterMetric {
	return m.adds.WithLabelValues(name)
}

func (m *metrics) NewLatencyMetric(name string) workqueue.HistogramMetric {
	return m.latency.WithLabelValues(name)
}

func (m *metrics) NewWorkDurationMetric(name string) workqueue.HistogramMetric {
	return m.work.WithLabelValues(name)
}

func (m *metrics) NewUnfinishedWorkSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return m.unfinished.WithLabelValues(name)
}

func (m *metrics) NewLongestRunningProcessorSecondsMetric(name string) workqueue.SettableGaugeMetric {
	return m.longest.WithLabelValues(name)
}

func (m *metrics) NewRetriesMetric(name string) workqueue.CounterMetric {
	return m.retries.WithLabelValues(name)
}
