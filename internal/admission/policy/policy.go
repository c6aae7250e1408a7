// Package policy holds changes to the policies that users wrote in CEL: the admission plugins
// MutatingAdmissionPolicy and ValidatingAdmissionPolicy. How a policy is evaluated is k8s.io/apiserver's;
// which policies, bindings and parameters there are is read from the store's shared image.
package policy

import (
	"context"
	"slices"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/generic"
	"k8s.io/apiserver/pkg/admission/plugin/policy/matching"
	"k8s.io/apiserver/pkg/admission/plugin/policy/mutating"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"barque.dev/internal/admission/state"
	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// Names of the plugins.
const (
	MutatingName   = mutating.PluginName
	ValidatingName = validating.PluginName
)

// Image is the shared image, and what is served of it.
type Image interface {
	state.Image
	// ForKind returns the resource of a kind, and its table, which is nil for a virtual one.
	ForKind(gk schema.GroupKind) (*api.Resource, *store.Table, bool)
	// TypeConverter returns what knows the schema of a kind; nil if nothing does.
	TypeConverter(gvk schema.GroupVersionKind) managedfields.TypeConverter
}

// Config is what policies are evaluated with.
type Config struct {
	Image Image
	// Authorizer answers expressions that ask what the user may do.
	Authorizer authorizer.UnconditionalAuthorizer
}

type (
	mutatingSource   = source[*mutating.Policy, *mutating.PolicyBinding, mutating.PolicyEvaluator]
	validatingSource = source[*validating.Policy, *validating.PolicyBinding, validating.PolicyEvaluator]
)

// Mutating is the plugin of mutating policies. It is safe for concurrent use.
type Mutating struct{ plugin[mutating.PolicyHook] }

// Validating is the plugin of validating policies. It is safe for concurrent use.
type Validating struct{ plugin[validating.PolicyHook] }

var (
	_ admission.MutationInterface   = (*Mutating)(nil)
	_ admission.ValidationInterface = (*Validating)(nil)
)

// New makes both plugins.
func New(cfg Config) (*Mutating, *Validating) {
	namespaces := state.Namespaces{Image: cfg.Image}
	matcher := matching.NewMatcher(namespaces, namespaces.Clientset())
	unseen := append(api.Unintercepted(), resource("mutatingadmissionpolicies"), resource("mutatingadmissionpolicybindings"),
		resource("validatingadmissionpolicies"), resource("validatingadmissionpolicybindings"))
	mutations := &mutatingSource{
		image: cfg.Image, policies: resource("mutatingadmissionpolicies"), bindings: resource("mutatingadmissionpolicybindings"),
		policyOf: func(b *mutating.PolicyBinding) string { return b.Spec.PolicyName },
		paramOf:  func(p *mutating.Policy) *admissionv1.ParamKind { return p.Spec.ParamKind },
		compile:  compileMutating,
	}
	validations := &validatingSource{
		image: cfg.Image, policies: resource("validatingadmissionpolicies"), bindings: resource("validatingadmissionpolicybindings"),
		policyOf: func(b *validating.PolicyBinding) string { return b.Spec.PolicyName },
		paramOf:  func(p *validating.Policy) *admissionv1.ParamKind { return p.Spec.ParamKind },
		compile:  compileValidating,
	}
	return &Mutating{plugin[mutating.PolicyHook]{
			Handler: admission.NewHandler(admission.Create, admission.Update, admission.Connect), unseen: unseen, hooks: mutations.hooks,
			dispatcher: mutating.NewDispatcher(cfg.Authorizer, matcher, types{cfg.Image}),
		}}, &Validating{plugin[validating.PolicyHook]{
			Handler: admission.NewHandler(admission.Create, admission.Update, admission.Delete, admission.Connect), unseen: unseen, hooks: validations.hooks,
			dispatcher: validating.NewDispatcher(cfg.Authorizer, generic.NewPolicyMatcher(matcher)),
		}}
}

func resource(name string) schema.GroupResource {
	return schema.GroupResource{Group: admissionv1.GroupName, Resource: name}
}

// plugin is what both have in common.
type plugin[H generic.Hook] struct {
	*admission.Handler
	unseen     []schema.GroupResource // never subject to policies
	hooks      func() ([]H, error)
	dispatcher generic.Dispatcher[H]
}

func (p *plugin[H]) dispatch(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	hooks, err := p.hooks()
	if (err == nil && len(hooks) == 0) || slices.Contains(p.unseen, a.GetResource().GroupResource()) {
		return nil
	}
	if err != nil {
		// What can't be read might have said no.
		return admission.NewForbidden(a, err)
	}
	return p.dispatcher.Dispatch(ctx, a, o, hooks)
}

// Admit implements admission.MutationInterface.
func (m *Mutating) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	return m.dispatch(ctx, a, o)
}

// Validate implements admission.ValidationInterface.
func (v *Validating) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	return v.dispatch(ctx, a, o)
}

// types finds the schemas that configurations are applied by.
type types struct{ image Image }

func (t types) GetTypeConverter(gvk schema.GroupVersionKind) managedfields.TypeConverter {
	return t.image.TypeConverter(gvk)
}

// Run implements patch.TypeConverterManager: there is nothing to refresh.
func (types) Run(context.Context) {}
