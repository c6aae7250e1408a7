package admission

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/admission"
)

// defaultTolerationSeconds is how long pods stay on a node that is merely suspect.
const defaultTolerationSeconds = 300

// DefaultTolerationSeconds has pods that say nothing of it tolerate the taints not-ready and
// unreachable for 300 seconds, as the stock plugin does.
type DefaultTolerationSeconds struct{}

var _ admission.MutationInterface = DefaultTolerationSeconds{}

// NewDefaultTolerationSeconds makes the plugin.
func NewDefaultTolerationSeconds() DefaultTolerationSeconds { return DefaultTolerationSeconds{} }

// Handles implements admission.Interface.
func (DefaultTolerationSeconds) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Admit implements admission.MutationInterface.
func (DefaultTolerationSeconds) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || !isPod(a) || a.GetSubresource() != "" {
		return nil
	}
	for _, taint := range []string{corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable} {
		if !tolerates(pod.Spec.Tolerations, taint) {
			seconds := int64(defaultTolerationSeconds)
			pod.Spec.Tolerations = append(pod.Spec.Tolerations, corev1.Toleration{
				Key: taint, Operator: corev1.TolerationOpExists, Effect: corev1.TaintEffectNoExecute, TolerationSeconds: &seconds,
			})
		}
	}
	return nil
}

// tolerates tells whether a pod says anything about being evicted for the taint.
func tolerates(list []corev1.Toleration, taint string) bool {
	for i := range list {
		t := &list[i]
		if (t.Key == taint || t.Key == "") && (t.Effect == corev1.TaintEffectNoExecute || t.Effect == "") {
			return true
		}
	}
	return false
}
