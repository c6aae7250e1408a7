package admission

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apiserver/pkg/admission"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// RuntimeClass gives a pod what its runtime class says of overhead and of the nodes that have
// the runtime, and refuses pods whose class does not exist (KEP-585, KEP-688).
type RuntimeClass struct {
	*admission.Handler
	reader client.Reader
}

var (
	_ admission.MutationInterface   = (*RuntimeClass)(nil)
	_ admission.ValidationInterface = (*RuntimeClass)(nil)
)

// NewRuntimeClass makes the plugin.
func NewRuntimeClass(reader client.Reader) *RuntimeClass {
	return &RuntimeClass{Handler: admission.NewHandler(admission.Create), reader: reader}
}

// Admit implements admission.MutationInterface.
func (r *RuntimeClass) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	class, err := r.class(ctx, a, pod)
	if err != nil || class == nil {
		return err
	}
	if class.Overhead != nil {
		if len(pod.Spec.Overhead) > 0 && !sameOverhead(pod, class) {
			return overheadDiffers(a)
		}
		pod.Spec.Overhead = class.Overhead.PodFixed.DeepCopy()
	}
	if class.Scheduling == nil {
		return nil
	}
	return place(a, pod, class.Scheduling.DeepCopy())
}

// Validate implements admission.ValidationInterface: a pod's overhead is what its class says.
func (r *RuntimeClass) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || a.GetSubresource() != "" {
		return nil
	}
	class, err := r.class(ctx, a, pod)
	if err != nil {
		return err
	}
	if class == nil || class.Overhead == nil {
		if pod.Spec.Overhead != nil {
			return admission.NewForbidden(a, errors.New("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead"))
		}
		return nil
	}
	if !sameOverhead(pod, class) {
		return overheadDiffers(a)
	}
	return nil
}

// class finds the class that a pod names; nil if it names none.
func (r *RuntimeClass) class(ctx context.Context, a admission.Attributes, pod *corev1.Pod) (*nodev1.RuntimeClass, error) {
	if pod.Spec.RuntimeClassName == nil {
		return nil, nil
	}
	name := *pod.Spec.RuntimeClassName
	var class nodev1.RuntimeClass
	err := r.reader.Get(ctx, client.ObjectKey{Name: name}, &class)
	if apierrors.IsNotFound(err) {
		return nil, admission.NewForbidden(a, fmt.Errorf("pod rejected: RuntimeClass %q not found", name))
	}
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("read RuntimeClass %s: %w", name, err))
	}
	return &class, nil
}

func sameOverhead(pod *corev1.Pod, class *nodev1.RuntimeClass) bool {
	return apiequality.Semantic.DeepEqual(class.Overhead.PodFixed, pod.Spec.Overhead)
}

func overheadDiffers(a admission.Attributes) error {
	return admission.NewForbidden(a, errors.New("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead"))
}

// place confines a pod to the nodes that its class is for.
func place(a admission.Attributes, pod *corev1.Pod, where *nodev1.Scheduling) error {
	for key, value := range where.NodeSelector {
		if own, ok := pod.Spec.NodeSelector[key]; ok && own != value {
			return admission.NewForbidden(a, fmt.Errorf("conflict: runtimeClass.scheduling.nodeSelector[%s] = %s; pod.spec.nodeSelector[%s] = %s", key, value, key, own))
		}
	}
	if pod.Spec.NodeSelector == nil {
		pod.Spec.NodeSelector = where.NodeSelector
	} else {
		maps.Copy(pod.Spec.NodeSelector, where.NodeSelector)
	}
	pod.Spec.Tolerations = mergeTolerations(pod.Spec.Tolerations, where.Tolerations)
	return nil
}

// mergeTolerations joins two lists, less those that another one covers; of equal ones the first
// stays.
func mergeTolerations(first, second []corev1.Toleration) []corev1.Toleration {
	all := append(append([]corev1.Toleration(nil), first...), second...)
	var kept []corev1.Toleration
next:
	for i := range all {
		for j := range kept {
			if covers(&kept[j], &all[i]) {
				continue next
			}
		}
		for j := i + 1; j < len(all); j++ {
			if !apiequality.Semantic.DeepEqual(all[i], all[j]) && covers(&all[j], &all[i]) {
				continue next
			}
		}
		kept = append(kept, all[i])
	}
	return kept
}

// covers tells whether wide tolerates all that narrow does.
func covers(wide, narrow *corev1.Toleration) bool {
	switch {
	case apiequality.Semantic.DeepEqual(wide, narrow):
		return true
	case wide.Key != narrow.Key && (wide.Key != "" || wide.Operator != corev1.TolerationOpExists):
		return false
	case wide.Effect != narrow.Effect && wide.Effect != "":
		return false
	case wide.Effect == corev1.TaintEffectNoExecute && wide.TolerationSeconds != nil &&
		(narrow.TolerationSeconds == nil || *narrow.TolerationSeconds > *wide.TolerationSeconds):
		return false
	case wide.Operator == corev1.TolerationOpExists:
		return true
	case wide.Operator == corev1.TolerationOpEqual, wide.Operator == "":
		return narrow.Operator == corev1.TolerationOpEqual && narrow.Value == wide.Value
	}
	return false
}
