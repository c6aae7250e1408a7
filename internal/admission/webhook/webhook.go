// Package webhook asks the webhooks that users configured about every change: the admission plugins
// MutatingAdmissionWebhook and ValidatingAdmissionWebhook of k8s.io/apiserver, with the store's
// shared image in place of informers, and with bounds on what webhooks may answer.
package webhook

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/generic"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/predicates/rules"
	"k8s.io/apiserver/pkg/admission/plugin/webhook/validating"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	webhookutil "k8s.io/apiserver/pkg/util/webhook"

	"barque.dev/internal/admission/bound"
	"barque.dev/internal/admission/state"
	"barque.dev/internal/api"
)

// Names of the plugins.
const (
	MutatingName   = mutating.PluginName
	ValidatingName = validating.PluginName
)

// Config is what webhooks are found and reached by.
type Config struct {
	Image state.Image
	// Services finds endpoints of the services that webhooks are behind.
	Services webhookutil.ServiceResolver
	// Authorizer answers match conditions that ask what the user may do.
	Authorizer authorizer.UnconditionalAuthorizer
}

// Mutating is the plugin that asks mutating webhooks. It is safe for concurrent use.
type Mutating struct {
	stock          *mutating.Plugin
	configurations *configurations[*admissionv1.MutatingWebhookConfiguration]
}

// Validating is the plugin that asks validating webhooks. It is safe for concurrent use.
type Validating struct {
	stock          *validating.Plugin
	configurations *configurations[*admissionv1.ValidatingWebhookConfiguration]
}

var (
	_ admission.MutationInterface   = (*Mutating)(nil)
	_ admission.ValidationInterface = (*Validating)(nil)
)

// New makes both plugins.
func New(cfg Config) (*Mutating, *Validating, error) {
	m := &Mutating{configurations: &configurations[*admissionv1.MutatingWebhookConfiguration]{
		image: cfg.Image, resource: resource("mutatingwebhookconfigurations")}}
	v := &Validating{configurations: &configurations[*admissionv1.ValidatingWebhookConfiguration]{
		image: cfg.Image, resource: resource("validatingwebhookconfigurations")}}
	var err error
	if m.stock, err = mutating.NewMutatingWebhook(nil); err != nil {
		return nil, nil, fmt.Errorf("set up mutating webhooks: %w", err)
	}
	if v.stock, err = validating.NewValidatingAdmissionWebhook(nil); err != nil {
		return nil, nil, fmt.Errorf("set up validating webhooks: %w", err)
	}
	from := factory{namespaces: state.Namespaces{Image: cfg.Image}, mutating: m.configurations, validating: v.configurations}
	for _, hook := range []*generic.Webhook{m.stock.Webhook, v.stock.Webhook} {
		if err := initialize(hook, cfg, from); err != nil {
			return nil, nil, err
		}
	}
	return m, v, nil
}

func resource(name string) schema.GroupResource {
	return schema.GroupResource{Group: admissionv1.GroupName, Resource: name}
}

func initialize(hook *generic.Webhook, cfg Config, from factory) error {
	hook.SetServiceResolver(cfg.Services)
	hook.SetAuthenticationInfoResolverWrapper(bound.Answers(checkPatch))
	hook.SetExternalKubeClientSet(from.namespaces.Clientset())
	hook.SetExternalKubeInformerFactory(from)
	hook.SetUnconditionalAuthorizer(cfg.Authorizer)
	hook.SetExcludedAdmissionResources(api.Unintercepted())
	hook.InspectFeatureGates(utilfeature.DefaultFeatureGate)
	if err := hook.ValidateInitialization(); err != nil {
		return fmt.Errorf("set up webhooks: %w", err)
	}
	return nil
}

// Handles implements admission.Interface.
func (m *Mutating) Handles(op admission.Operation) bool { return m.stock.Handles(op) }

// Admit implements admission.MutationInterface.
func (m *Mutating) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	some, err := m.configurations.refresh()
	if !some || (err != nil && rules.IsExemptAdmissionConfigurationResource(a)) {
		return nil
	}
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	return m.stock.Admit(ctx, a, o)
}

// Handles implements admission.Interface.
func (v *Validating) Handles(op admission.Operation) bool { return v.stock.Handles(op) }

// Validate implements admission.ValidationInterface.
func (v *Validating) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	some, err := v.configurations.refresh()
	if !some || (err != nil && rules.IsExemptAdmissionConfigurationResource(a)) {
		return nil
	}
	if err != nil {
		return admission.NewForbidden(a, err)
	}
	return v.stock.Validate(ctx, a, o)
}
