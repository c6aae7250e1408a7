package apiserver

import (
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"
)

// gatherer collects the server's own metrics, and those that the packages of k8s.io/apiserver keep
// of what the server lets them do: they have a registry of their own. Of a name that both have,
// ours counts.
func gatherer(own prometheus.Gatherer) prometheus.Gatherer {
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		families, err := own.Gather()
		if err != nil {
			return families, err
		}
		seen := make(map[string]bool, len(families))
		for _, family := range families {
			seen[family.GetName()] = true
		}
		others, err := legacyregistry.DefaultGatherer.Gather()
		for _, family := range others {
			if !seen[family.GetName()] {
				families = append(families, family)
			}
		}
		return families, err
	})
}
