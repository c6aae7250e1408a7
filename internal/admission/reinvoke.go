package admission

import (
	"context"

	"k8s.io/apiserver/pkg/admission"
)

// Reinvoking is a chain with plugins that may have to look twice: when a webhook or policy changed an
// object, the plugins that may alter it are asked once more, so that each has seen what the others made
// of it. Those with a reinvocation policy skip the second time if they are not to be asked again.
type Reinvoking struct{ Chain }

var _ admission.MutationInterface = Reinvoking{}

// Admit implements admission.MutationInterface.
func (r Reinvoking) Admit(ctx context.Context, a admission.Attributes, o admission.ObjectInterfaces) error {
	if err := r.Chain.Admit(ctx, a, o); err != nil {
		return err
	}
	again := a.GetReinvocationContext()
	if !again.ShouldReinvoke() {
		return nil
	}
	again.SetIsReinvoke()
	return r.Chain.Admit(ctx, a, o)
}
