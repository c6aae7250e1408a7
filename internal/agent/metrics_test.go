package agent_test

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/metrics"
)

// metric returns the metric of that name; nil if there is none.
func metric(t *testing.T, registry *prometheus.Registry, name string) []*dto.Metric {
	t.Helper()
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()
		}
	}
	return nil
}

func TestPodsAreCounted(t *testing.T) {
	c := newCluster(t)
	c.config.Metrics = metrics.New()
	stop := c.start()
	p := newPod("web", "a")
	p.Spec.Containers[0].ReadinessProbe = &corev1.Probe{PeriodSeconds: 1, ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"true"}}}}
	c.create(p)
	c.eventually("ready", c.isReady("web"))
	started := func() uint64 {
		return metric(t, c.config.Metrics.Agent, "kubelet_pod_start_duration_seconds")[0].GetHistogram().GetSampleCount()
	}
	if n := started(); n != 1 {
		t.Errorf("%d pods have started", n)
	}
	probes := metric(t, c.config.Metrics.Probes, "prober_probe_total")
	if len(probes) != 1 || probes[0].GetCounter().GetValue() < 1 {
		t.Errorf("probes: %v", probes)
	}
	if steps := metric(t, c.config.Metrics.Agent, "kubelet_pod_worker_duration_seconds"); len(steps) < 2 {
		t.Errorf("steps: %v", steps)
	}
	// An agent that takes over a pod that runs has not started it.
	stop()
	c.config.Metrics = metrics.New()
	c.start()
	c.eventually("the pod is looked at", func() bool {
		return len(metric(t, c.config.Metrics.Agent, "kubelet_pod_worker_duration_seconds")) > 0
	})
	if n := started(); n != 0 {
		t.Errorf("%d pods count as started again", n)
	}
	c.delete("web", 1)
	c.eventually("gone", func() bool { return c.pod("web") == nil })
	c.eventually("its series are gone", func() bool { return len(metric(t, c.config.Metrics.Probes, "prober_probe_total")) == 0 })
}
