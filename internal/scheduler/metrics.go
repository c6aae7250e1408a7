package scheduler

import (
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Results of an attempt to schedule a pod, as stock's metrics name them.
const (
	resultScheduled     = "scheduled"
	resultUnschedulable = "unschedulable"
	resultError         = "error"
)

// Metrics counts what schedulers do, under the names, labels and buckets of kube-scheduler. It
// outlasts a Scheduler: each term of leadership has a new one. A nil *Metrics counts nothing.
type Metrics struct {
	attempts  *prometheus.CounterVec
	attempt   *prometheus.HistogramVec
	algorithm prometheus.Histogram
	preempted prometheus.Counter
	victims   prometheus.Histogram
	// queue is the one of the scheduler that runs, nil while none does.
	queue atomic.Pointer[queue]
}

// NewMetrics registers a scheduler's metrics.
func NewMetrics(registerer prometheus.Registerer) (*Metrics, error) {
	labels := []string{"result", "profile"}
	buckets := prometheus.ExponentialBuckets(0.001, 2, 15)
	m := &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "scheduler_schedule_attempts_total", Help: "Attempts to schedule pods, by how they ended.",
		}, labels),
		attempt: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "scheduler_scheduling_attempt_duration_seconds", Help: "Seconds that an attempt took: the decision, and the binding if there was one.", Buckets: buckets,
		}, labels),
		algorithm: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "scheduler_scheduling_algorithm_duration_seconds", Help: "Seconds that a decision took.", Buckets: buckets,
		}),
		preempted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "scheduler_preemption_attempts_total", Help: "How often pods were looked for that could make room for another.",
		}),
		victims: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name: "scheduler_preemption_victims", Help: "How many pods made room for another.", Buckets: prometheus.ExponentialBuckets(1, 2, 7),
		}),
	}
	all := []prometheus.Collector{m.attempts, m.attempt, m.algorithm, m.preempted, m.victims}
	for _, state := range []string{"active", "backoff", "unschedulable"} {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "scheduler_pending_pods", Help: "Pods without a node, by what they wait for.", ConstLabels: prometheus.Labels{"queue": state},
		}, func() float64 { return float64(m.pending(state)) }))
	}
	for _, c := range all {
		if err := registerer.Register(c); err != nil {
			return nil, fmt.Errorf("register the scheduler's metrics: %w", err)
		}
	}
	return m, nil
}

// follow shows a queue's pods until the function returned is called.
func (m *Metrics) follow(q *queue) (stop func()) {
	if m == nil {
		return func() {}
	}
	m.queue.Store(q)
	return func() { m.queue.CompareAndSwap(q, nil) }
}

func (m *Metrics) pending(state string) int {
	q := m.queue.Load()
	if q == nil {
		return 0
	}
	return q.Pending()[state]
}

// decided records how long a decision took.
func (m *Metrics) decided(took time.Duration) {
	if m != nil {
		m.algorithm.Observe(took.Seconds())
	}
}

// ended records an attempt that began at started.
func (m *Metrics) ended(result, profile string, started time.Time) {
	if m != nil {
		m.attempts.WithLabelValues(result, profile).Inc()
		m.attempt.WithLabelValues(result, profile).Observe(time.Since(started).Seconds())
	}
}

// preempts records that pods were looked for that could make room, and how many were found.
func (m *Metrics) preempts(victims int) {
	if m == nil {
		return
	}
	m.preempted.Inc()
	if victims > 0 {
		m.victims.Observe(float64(victims))
	}
}
