// Package admission decides what is let into the store: a [Chain] of plugins sees every change
// after authorization and before it is stored, first those that may alter it, then those that
// may only refuse it.
//
// Plugins see objects of the versioned types (*corev1.Pod), not of Kubernetes' internal ones.
// [Default] lists the built-in ones; webhooks and policies take their place in the same chain.
package admission

import (
	"context"
	"slices"

	"github.com/prometheus/client_golang/prometheus"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A Plugin is one link of a chain.
type Plugin struct {
	// Name is the stock plugin's, such as "ServiceAccount".
	Name string
	// Interface implements admission.MutationInterface, admission.ValidationInterface or both.
	admission.Interface
}

// Chain asks its plugins in order. It is immutable and safe for concurrent use.
type Chain []Plugin

var (
	_ admission.MutationInterface   = Chain(nil)
	_ admission.ValidationInterface = Chain(nil)
)

// Names are the plugins', in their order.
func (c Chain) Names() []string {
	names := make([]string, len(c))
	for i, p := range c {
		names[i] = p.Name
	}
	return names
}

// Without returns a chain that lacks the plugins of these names, and leaves this one as it is.
func (c Chain) Without(names ...string) Chain {
	return slices.DeleteFunc(slices.Clone(c), func(p Plugin) bool { return slices.Contains(names, p.Name) })
}

// Handles implements admission.Interface.
func (c Chain) Handles(op admission.Operation) bool {
	for _, p := range c {
		if p.Handles(op) {
			return true
		}
	}
	return false
}

// Admit implements admission.MutationInterface: plugins that may alter the object, in order.
func (c Chain) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	for _, p := range c {
		mutating, ok := p.Interface.(admission.MutationInterface)
		if !ok || !p.Handles(a.GetOperation()) {
			continue
		}
		if err := mutating.Admit(ctx, a, o); err != nil {
			return err
		}
	}
	return nil
}

// Validate implements admission.ValidationInterface: plugins that may refuse the object.
func (c Chain) Validate(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	for _, p := range c {
		validating, ok := p.Interface.(admission.ValidationInterface)
		if !ok || !p.Handles(a.GetOperation()) {
			continue
		}
		if err := validating.Validate(ctx, a, o); err != nil {
			return err
		}
	}
	return nil
}

// Config is what the built-in plugins need.
type Config struct {
	// Reader reads the shared image.
	Reader client.Reader
	// Authorizer answers who may act for a certificate signer.
	Authorizer authorizer.UnconditionalAuthorizer
	// Metrics is where plugins register what they count; nil for nowhere.
	Metrics prometheus.Registerer
}

// Default returns the plugins that stock has on by default, in stock's order, up to the place of
// webhooks and policies, which are appended to it. Of those that are missing, the registry does
// NamespaceLifecycle first of all, and charges quotas last of all (see [ResourceQuota]).
func Default(c Config) (Chain, error) {
	recorder, err := newSecurityMetrics(c.Metrics)
	if err != nil {
		return nil, err
	}
	security, err := NewPodSecurity(c.Reader, recorder)
	if err != nil {
		return nil, err
	}
	return Chain{
		{"LimitRanger", NewLimitRanger(c.Reader)},
		{"ServiceAccount", NewServiceAccount(c.Reader)},
		{"NodeRestriction", NewNodeRestriction(c.Reader)},
		{"TaintNodesByCondition", NewTaintNodesByCondition()},
		{"PodSecurity", security},
		{"Priority", NewPriority(c.Reader)},
		{"DefaultTolerationSeconds", NewDefaultTolerationSeconds()},
		{"DefaultStorageClass", NewDefaultStorageClass(c.Reader)},
		{"StorageObjectInUseProtection", NewStorageObjectInUseProtection()},
		{"PersistentVolumeClaimResize", NewPersistentVolumeClaimResize(c.Reader)},
		{"RuntimeClass", NewRuntimeClass(c.Reader)},
		{"CertificateApproval", NewCertificateApproval(c.Authorizer)},
		{"CertificateSigning", NewCertificateSigning(c.Authorizer)},
		{"ClusterTrustBundleAttest", NewClusterTrustBundleAttest(c.Authorizer)},
		{"CertificateSubjectRestriction", NewCertificateSubjectRestriction()},
		{"DefaultIngressClass", NewDefaultIngressClass(c.Reader)},
		{"PodTopologyLabels", NewPodTopologyLabels(c.Reader)},
		{"NodeDeclaredFeatureValidator", NewNodeDeclaredFeatureValidator(c.Reader)},
		{"PodResizeValidator", NewPodResizeValidator(c.Reader)},
	}, nil
}

// isPod tells whether a request is about pods themselves.
func isPod(a admission.Attributes) bool {
	r := a.GetResource()
	return r.Group == "" && r.Resource == "pods"
}
