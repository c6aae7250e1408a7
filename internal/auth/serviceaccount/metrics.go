package serviceaccount

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// Metrics count the use of tokens, under kube-apiserver's names. It is safe for concurrent use.
type Metrics struct {
	valid, stale, legacy, manual, automatic, invalid prometheus.Counter
}

// NewMetrics registers the metrics; with a nil registry nobody sees them.
func NewMetrics(registry prometheus.Registerer) (*Metrics, error) {
	var made []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "serviceaccount_" + name, Help: help})
		made = append(made, c)
		return c
	}
	m := &Metrics{
		valid:     counter("valid_tokens_total", "Requests with projected tokens that are not to be renewed yet."),
		stale:     counter("stale_tokens_total", "Requests with projected tokens that should have been renewed."),
		legacy:    counter("legacy_tokens_total", "Requests with tokens without an end."),
		manual:    counter("legacy_manual_token_uses_total", "Requests with tokens without an end that somebody asked for."),
		automatic: counter("legacy_auto_token_uses_total", "Requests with tokens without an end that a cluster made by itself."),
		invalid:   counter("invalid_legacy_auto_token_uses_total", "Requests with tokens without an end that were marked invalid."),
	}
	if registry == nil {
		return m, nil
	}
	for _, c := range made {
		if err := registry.Register(c); err != nil {
			return nil, fmt.Errorf("register metrics of service account tokens: %w", err)
		}
	}
	return m, nil
}
