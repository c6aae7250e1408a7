package node

import (
	"fmt"
	"slices"
	"strings"

	"barque.dev/internal/admission"
	"barque.dev/internal/admission/policy"
	"barque.dev/internal/admission/webhook"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/relay"
)

// admission is the chain that every change passes.
func (s *Server) admission() (admission.Reinvoking, error) {
	chain, err := admission.Default(admission.Config{Reader: lateReader{s}, Authorizer: s.auth.Authorizer, Metrics: s.metrics})
	if err != nil {
		return admission.Reinvoking{}, fmt.Errorf("set up admission: %w", err)
	}
	mutating, validating, err := webhook.New(webhook.Config{
		Image: lateImage{s}, Services: relay.NewResolver(relay.Image(lateReader{s})), Authorizer: s.auth.Authorizer,
	})
	if err != nil {
		return admission.Reinvoking{}, err
	}
	mutations, validations := policy.New(policy.Config{Image: lateImage{s}, Authorizer: s.auth.Authorizer})
	all := append(chain,
		admission.Plugin{Name: "Escalation", Interface: s.auth.Escalation},
		admission.Plugin{Name: policy.MutatingName, Interface: mutations},
		admission.Plugin{Name: webhook.MutatingName, Interface: mutating},
		admission.Plugin{Name: policy.ValidatingName, Interface: validations},
		admission.Plugin{Name: webhook.ValidatingName, Interface: validating},
	)
	return admission.Reinvoking{Chain: all.Without(s.cfg.DisableAdmission...)}, nil
}

// resourceQuota is the stock name of what charges quotas, which is no link of the chain: it comes after all of it.
const resourceQuota = "ResourceQuota"

// quota is what charges quotas; nil when it is disabled.
func (s *Server) quota() registry.Ledger {
	if slices.Contains(s.cfg.DisableAdmission, resourceQuota) {
		return nil
	}
	return admission.NewResourceQuota(lateReader{s})
}

// checkPlugins tells which of the plugins that shall be disabled can't be. What keeps namespaces' life and RBAC's
// promises is no choice.
func (c *ServerConfig) checkPlugins() error {
	if len(c.DisableAdmission) == 0 {
		return nil
	}
	builtin, err := admission.Default(admission.Config{})
	if err != nil {
		return fmt.Errorf("list the admission plugins: %w", err)
	}
	known := append(builtin.Names(), policy.MutatingName, webhook.MutatingName, policy.ValidatingName, webhook.ValidatingName, resourceQuota)
	for _, name := range c.DisableAdmission {
		if !slices.Contains(known, name) {
			return fmt.Errorf("--disable-admission-plugins %q: choose among %s", name, strings.Join(known, ", "))
		}
	}
	return nil
}
