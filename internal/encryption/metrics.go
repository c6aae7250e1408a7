package encryption

import (
	"slices"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"k8s.io/component-base/metrics/legacyregistry"
)

// Metrics gathers what kube-apiserver's own code counts of encryption, under the names that it has there.
func Metrics() prometheus.Gatherer {
	names := []string{"apiserver_storage_transformation_", "apiserver_storage_data_key_", "apiserver_storage_envelope_", "apiserver_envelope_encryption_", "apiserver_encryption_config_"}
	return prometheus.GathererFunc(func() ([]*dto.MetricFamily, error) {
		all, err := legacyregistry.DefaultGatherer.Gather()
		return slices.DeleteFunc(all, func(f *dto.MetricFamily) bool {
			return !slices.ContainsFunc(names, func(prefix string) bool { return strings.HasPrefix(f.GetName(), prefix) })
		}), err
	})
}
