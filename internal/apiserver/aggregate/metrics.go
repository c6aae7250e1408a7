package aggregate

import (
	"fmt"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration/v1/helper"
)

// metrics carry kube-aggregator's names.
type metrics struct {
	unavailable *prometheus.GaugeVec
	turns       *prometheus.CounterVec

	mu sync.Mutex
	// available is what was known last, by name.
	available map[string]bool
}

func newMetrics(registry prometheus.Registerer) (*metrics, error) {
	m := &metrics{
		unavailable: prometheus.NewGaugeVec(prometheus.GaugeOpts{
			Name: "aggregator_unavailable_apiservice", Help: "APIServices that are not available (1) or are (0).",
		}, []string{"name"}),
		turns: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "aggregator_unavailable_apiservice_total", Help: "How often APIServices became unavailable, by reason.",
		}, []string{"name", "reason"}),
		available: map[string]bool{},
	}
	if registry == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.unavailable, m.turns} {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("metrics of API aggregation: %w", err)
		}
	}
	return m, nil
}

// see takes in a version of an APIService; nil is one that is gone.
func (m *metrics) see(name string, svc *apiregistrationv1.APIService) {
	m.mu.Lock()
	defer m.mu.Unlock()
	was, known := m.available[name]
	if svc == nil {
		delete(m.available, name)
		m.unavailable.DeleteLabelValues(name)
		return
	}
	is := helper.IsAPIServiceConditionTrue(svc, apiregistrationv1.Available)
	m.available[name] = is
	if is {
		m.unavailable.WithLabelValues(name).Set(0)
		return
	}
	m.unavailable.WithLabelValues(name).Set(1)
	if condition := helper.GetAPIServiceConditionByType(svc, apiregistrationv1.Available); condition != nil && (was || !known) {
		m.turns.WithLabelValues(name, condition.Reason).Inc()
	}
}
