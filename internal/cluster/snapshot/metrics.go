package snapshot

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a keeper tells to who watches over the cluster.
type metrics struct {
	last     prometheus.Gauge
	revision prometheus.Gauge
	bytes    prometheus.Gauge
	failures prometheus.Counter
}

func newMetrics() *metrics {
	gauge := func(name, help string) prometheus.Gauge {
		return prometheus.NewGauge(prometheus.GaugeOpts{Name: "barque_snapshot_last_" + name, Help: help})
	}
	return &metrics{
		last:     gauge("timestamp_seconds", "When this server took its last snapshot that was checked and found well; 0 for not since it started."),
		revision: gauge("revision", "etcd's revision in this server's last snapshot."),
		bytes:    gauge("size_bytes", "Size of this server's last snapshot."),
		failures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "barque_snapshot_failures_total", Help: "Scheduled snapshots that this server could not take.",
		}),
	}
}

// Register adds the keeper's metrics to a registry.
func (k *Keeper) Register(r prometheus.Registerer) {
	r.MustRegister(k.metrics.last, k.metrics.revision, k.metrics.bytes, k.metrics.failures)
}

func (m *metrics) took(snapshot Manifest, size int64) {
	m.last.Set(float64(snapshot.Time.Unix()))
	m.revision.Set(float64(snapshot.Revision))
	m.bytes.Set(float64(size))
}
