package admission

import (
	"context"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
)

// TaintNodesByCondition has every node start out as not ready, so that no pod is put on it before
// it says that it is; the node lifecycle controller takes the taint away.
type TaintNodesByCondition struct{ *admission.Handler }

var _ admission.MutationInterface = TaintNodesByCondition{}

// NewTaintNodesByCondition makes the plugin.
func NewTaintNodesByCondition() TaintNodesByCondition {
	return TaintNodesByCondition{admission.NewHandler(admission.Create)}
}

// Admit implements admission.MutationInterface.
func (TaintNodesByCondition) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	node, ok := a.GetObject().(*corev1.Node)
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	notReady := corev1.Taint{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoSchedule}
	if !slices.ContainsFunc(node.Spec.Taints, func(t corev1.Taint) bool { return t.MatchTaint(&notReady) }) {
		node.Spec.Taints = append(node.Spec.Taints, notReady)
	}
	return nil
}
