package authorizers

import (
	"context"
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

// Decisions counts what each authorizer decides, under stock's name. A decision costs one
// addition: the counters are looked up when a chain is made.
type Decisions struct {
	total *prometheus.CounterVec
}

// NewDecisions registers the metric.
func NewDecisions(registry prometheus.Registerer) (*Decisions, error) {
	d := &Decisions{total: prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "apiserver_authorization_decisions_total", Help: "Final decisions by authorizer.",
	}, []string{"type", "name", "decision"})}
	if err := registry.Register(d.total); err != nil {
		return nil, fmt.Errorf("register metrics of authorization: %w", err)
	}
	return d, nil
}

func (d *Decisions) counted(conf *apiserver.AuthorizerConfiguration, a authorizer.Authorizer) authorizer.Authorizer {
	if d == nil {
		return a
	}
	of := func(decision string) prometheus.Counter {
		return d.total.WithLabelValues(string(conf.Type), conf.Name, decision)
	}
	return &counted{Authorizer: a, allowed: of("allowed"), denied: of("denied")}
}

type counted struct {
	authorizer.Authorizer
	allowed, denied prometheus.Counter
}

// Authorize implements authorizer.Authorizer.
func (c *counted) Authorize(ctx context.Context, a authorizer.Attributes) (authorizer.Decision, string, error) {
	decision, reason, err := c.Authorizer.Authorize(ctx, a)
	switch decision {
	case authorizer.DecisionAllow:
		c.allowed.Inc()
	case authorizer.DecisionDeny:
		c.denied.Inc()
	case authorizer.DecisionNoOpinion: // the next one is asked
	}
	return decision, reason, err
}
