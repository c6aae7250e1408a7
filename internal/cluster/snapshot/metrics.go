package snapshot

import "github.com/prometheus/client_golang/prometheus"

// metrics are what a keeper tells to who watches over the cluster.
type metrics struct {
	last     prometheus.Gauge
	revision prometheus.Gauge
	bytes    prometheus.Gauge
	failures prometheus.Counter
	// copied and copyFailures are of the remote.
	copied       prometheus.Gauge
	copyFailures prometheus.Counter
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
		copied: gauge("copied_timestamp_seconds", "When the newest snapshot was taken that this server has copied to its bucket; 0 for none since it started."),
		copyFailures: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "barque_snapshot_copy_failures_total", Help: "Attempts to copy scheduled snapshots to the bucket that failed.",
		}),
	}
}

// Register adds the keeper's metrics to a registry.
func (k *Keeper) Register(r prometheus.Registerer) {
	r.MustRegister(k.metrics.last, k.metrics.revision, k.metrics.bytes, k.metrics.failures, k.metrics.copied, k.metrics.copyFailures)
}

func (m *metrics) took(snapshot Manifest, size int64) {
	m.last.Set(float64(snapshot.Time.Unix()))
	m.revision.Set(float64(snapshot.Revision))
	m.bytes.Set(float64(size))
}
