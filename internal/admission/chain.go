// Package admission decides what is let into the store: a [Chain] of plugins sees every change
// after authorization and before it is stored, first those that may alter it, then those that
// may only refuse it.
//
// Plugins see objects of the versioned types (*corev1.Pod), not of Kubernetes' internal ones.
// [Default] lists the ones that pods need to work as users expect; webhooks and policies take
// their place in the same chain.
package admission

import (
	"context"

	"k8s.io/apiserver/pkg/admission"
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

// Default returns the built-in plugins in their order. reader reads the shared image. Plugins
// of other packages are appended to it.
func Default(reader client.Reader) Chain {
	return Chain{
		{"ServiceAccount", NewServiceAccount(reader)},
		{"NodeRestriction", NewNodeRestriction(reader)},
		{"Priority", NewPriority(reader)},
		{"DefaultTolerationSeconds", NewDefaultTolerationSeconds()},
	}
}

// isPod tells whether a request is about pods themselves.
func isPod(a admission.Attributes) bool {
	r := a.GetResource()
	return r.Group == "" && r.Resource == "pods"
}
