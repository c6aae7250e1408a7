package registry

import (
	"context"
	"errors"
	"fmt"
	"maps"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
)

// bind puts a pod on a node, once: pods/binding, and the older bindings resource.
func (r *Registry) bind(ctx context.Context, o operation, obj runtime.Object) (Result, error) {
	binding, ok := obj.(*corev1.Binding)
	if !ok {
		return Result{}, apierrors.NewBadRequest(fmt.Sprintf("not a Binding object: %T", obj))
	}
	if o.req.Subresource != "" && o.req.Name != binding.Name {
		return Result{}, apierrors.NewBadRequest("name in URL does not match name in Binding object")
	}
	if errs := validateBinding(binding); len(errs) > 0 {
		return Result{}, apierrors.NewInvalid(kindOf("", "Binding"), binding.Name, errs)
	}
	if err := r.validate(ctx, o, binding, nil); err != nil {
		return Result{}, err
	}
	pods, ok := r.Lookup(corev1.SchemeGroupVersion.WithResource("pods"))
	if !ok {
		return Result{}, methodNotSupported(o.req, "create")
	}
	req := Request{Resource: pods, Namespace: o.req.Namespace, Name: binding.Name}
	update := &metav1.UpdateOptions{}
	c := change{
		op:  operation{req: req, op: admission.Update, options: update, dryRun: o.dryRun, name: binding.Name},
		uid: binding.UID, skipRules: true, direct: true, view: versionView{req: req},
		make: func(_ context.Context, live runtime.Object) (runtime.Object, error) {
			pod, ok := live.(*corev1.Pod)
			if !ok {
				return nil, apierrors.NewInternalError(fmt.Errorf("pod %s is a %T", binding.Name, live))
			}
			return bound(pod, binding)
		},
	}
	if _, _, err := r.modify(ctx, c); err != nil {
		return Result{}, bindError(err, binding.Name)
	}
	return Result{Object: created()}, nil
}

// bindError makes the conflict that schedulers expect of a pod that cannot be bound.
func bindError(err error, name string) error {
	if status := apierrors.APIStatus(nil); errors.As(err, &status) {
		return err
	}
	return apierrors.NewConflict(schema.GroupResource{Resource: "pods/binding"}, name, err)
}

func validateBinding(binding *corev1.Binding) field.ErrorList {
	var errs field.ErrorList
	target := field.NewPath("target")
	node := binding.Target.Kind == "" || binding.Target.Kind == "Node"
	if !node {
		errs = append(errs, field.NotSupported(target.Child("kind"), binding.Target.Kind, []string{"Node", "<empty>"}))
	}
	switch {
	case binding.Target.Name == "":
		errs = append(errs, field.Required(target.Child("name"), ""))
	case node:
		for _, fault := range apivalidation.NameIsDNSSubdomain(binding.Target.Name, false) {
			errs = append(errs, field.Invalid(target.Child("name"), binding.Target.Name, fault))
		}
	}
	return errs
}

// bound returns the pod on the binding's node, or says why it cannot be.
func bound(pod *corev1.Pod, binding *corev1.Binding) (*corev1.Pod, error) {
	switch {
	case binding.ResourceVersion != "" && binding.ResourceVersion != pod.ResourceVersion:
		return nil, apierrors.NewConflict(schema.GroupResource{Resource: "pods"}, pod.Name, errModified)
	case pod.DeletionTimestamp != nil:
		return nil, fmt.Errorf("pod %s is being deleted, cannot be assigned to a host", pod.Name)
	case pod.Spec.NodeName != "":
		return nil, fmt.Errorf("pod %v is already assigned to node %q", pod.Name, pod.Spec.NodeName)
	case len(pod.Spec.SchedulingGates) > 0:
		return nil, fmt.Errorf("pod %v has non-empty .spec.schedulingGates", pod.Name)
	}
	out := pod.DeepCopy()
	out.Spec.NodeName = binding.Target.Name
	out.Status.NominatedNodeName = ""
	if len(binding.Annotations) > 0 || out.Annotations == nil {
		out.Annotations = mergeMaps(out.Annotations, binding.Annotations)
	}
	if len(binding.Labels) > 0 {
		out.Labels = mergeMaps(out.Labels, binding.Labels)
	}
	setCondition(&out.Status, corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionTrue})
	return out, nil
}

// mergeMaps adds to a map that the caller owns.
func mergeMaps(into, from map[string]string) map[string]string {
	if into == nil {
		into = make(map[string]string, len(from))
	}
	maps.Copy(into, from)
	return into
}

// setCondition sets a pod's condition; its transition time moves when its status does.
func setCondition(status *corev1.PodStatus, condition corev1.PodCondition) {
	condition.LastTransitionTime = metav1.Now()
	for i := range status.Conditions {
		have := &status.Conditions[i]
		if have.Type != condition.Type {
			continue
		}
		if have.Status == condition.Status {
			condition.LastTransitionTime = have.LastTransitionTime
		}
		*have = condition
		return
	}
	status.Conditions = append(status.Conditions, condition)
}
