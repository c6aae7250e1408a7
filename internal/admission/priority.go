package admission

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Names and values of the priority classes that every cluster has.
const (
	systemClusterCritical = "system-cluster-critical"
	systemNodeCritical    = "system-node-critical"
	clusterCriticalValue  = 2_000_000_000
	nodeCriticalValue     = clusterCriticalValue + 1000
)

// SystemPriorityClasses returns the priority classes that every cluster has, to be created at
// the start unless they exist.
func SystemPriorityClasses() []*schedulingv1.PriorityClass {
	return []*schedulingv1.PriorityClass{
		systemClass(systemNodeCritical, nodeCriticalValue,
			"Used for system critical pods that must not be moved from their current node."),
		systemClass(systemClusterCritical, clusterCriticalValue,
			"Used for system critical pods that must run in the cluster, but can be moved to another node if necessary."),
	}
}

func systemClass(name string, value int32, description string) *schedulingv1.PriorityClass {
	policy := corev1.PreemptLowerPriority
	return &schedulingv1.PriorityClass{
		ObjectMeta: metav1.ObjectMeta{Name: name}, Value: value, Description: description, PreemptionPolicy: &policy,
	}
}

// Priority turns a pod's priority class into its priority, as the stock plugin does.
type Priority struct {
	reader client.Reader
}

var (
	_ admission.MutationInterface   = (*Priority)(nil)
	_ admission.ValidationInterface = (*Priority)(nil)
)

// NewPriority makes the plugin.
func NewPriority(reader client.Reader) *Priority { return &Priority{reader: reader} }

// Handles implements admission.Interface.
func (*Priority) Handles(op admission.Operation) bool {
	return op == admission.Create || op == admission.Update
}

// Admit implements admission.MutationInterface.
func (p *Priority) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	pod, ok := a.GetObject().(*corev1.Pod)
	if !ok || !isPod(a) || a.GetSubresource() != "" {
		return nil
	}
	if a.GetOperation() == admission.Update {
		// Clients that do not know the fields send pods without them.
		if old, ok := a.GetOldObject().(*corev1.Pod); ok {
			if pod.Spec.Priority == nil {
				pod.Spec.Priority = old.Spec.Priority
			}
			if pod.Spec.PreemptionPolicy == nil {
				pod.Spec.PreemptionPolicy = old.Spec.PreemptionPolicy
			}
		}
		return nil
	}
	class, err := p.class(ctx, a, pod.Spec.PriorityClassName)
	if err != nil {
		return err
	}
	pod.Spec.PriorityClassName = class.Name
	if pod.Spec.Priority != nil && *pod.Spec.Priority != class.Value {
		return admission.NewForbidden(a, fmt.Errorf("the integer value of priority (%d) must not be provided in pod spec; "+
			"priority admission controller computed %d from the given PriorityClass name", *pod.Spec.Priority, class.Value))
	}
	value := class.Value
	pod.Spec.Priority = &value
	if class.PreemptionPolicy == nil {
		return nil
	}
	if pod.Spec.PreemptionPolicy != nil && *pod.Spec.PreemptionPolicy != *class.PreemptionPolicy {
		return admission.NewForbidden(a, fmt.Errorf("the string value of PreemptionPolicy (%s) must not be provided in pod spec; "+
			"priority admission controller computed %s from the given PriorityClass name", *pod.Spec.PreemptionPolicy, *class.PreemptionPolicy))
	}
	policy := *class.PreemptionPolicy
	pod.Spec.PreemptionPolicy = &policy
	return nil
}

// class finds the class that a pod names, or the default one; without either, priority 0 and
// preemption are what pods have.
func (p *Priority) class(ctx context.Context, a admission.Attributes, name string) (*schedulingv1.PriorityClass, error) {
	if name == "" {
		class, err := p.defaultClass(ctx)
		if err != nil {
			return nil, apierrors.NewInternalError(err)
		}
		if class == nil {
			policy := corev1.PreemptLowerPriority
			class = &schedulingv1.PriorityClass{PreemptionPolicy: &policy}
		}
		return class, nil
	}
	// Its own pods a cluster can start before it has anything else.
	for _, class := range SystemPriorityClasses() {
		if class.Name == name {
			return class, nil
		}
	}
	var class schedulingv1.PriorityClass
	err := p.reader.Get(ctx, client.ObjectKey{Name: name}, &class)
	if apierrors.IsNotFound(err) {
		return nil, admission.NewForbidden(a, fmt.Errorf("no PriorityClass with name %v was found", name))
	}
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("read PriorityClass %s: %w", name, err))
	}
	return &class, nil
}

// defaultClass returns the class marked as default, nil when none is. Should two have been
// marked at the same moment, the lower one counts.
func (p *Priority) defaultClass(ctx context.Context) (*schedulingv1.PriorityClass, error) {
	var list schedulingv1.PriorityClassList
	if err := p.reader.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list PriorityClasses: %w", err)
	}
	var found *schedulingv1.PriorityClass
	for i := range list.Items {
		if c := &list.Items[i]; c.GlobalDefault && (found == nil || c.Value < found.Value) {
			found = c
		}
	}
	return found, nil
}

// Validate implements admission.ValidationInterface: one class at most is the default.
func (p *Priority) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	class, ok := a.GetObject().(*schedulingv1.PriorityClass)
	if !ok || a.GetSubresource() != "" || !class.GlobalDefault {
		return nil
	}
	current, err := p.defaultClass(ctx)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	if current != nil && (a.GetOperation() == admission.Create || current.Name != class.Name) {
		return admission.NewForbidden(a, fmt.Errorf("PriorityClass %v is already marked as default. Only one default can exist", current.Name))
	}
	return nil
}
