package registry

import (
	"context"
	"fmt"
	"math"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// scaleView shows a workload as its scale. The managed fields that it shows are those of the
// number of replicas.
type scaleView struct{ req Request }

// replicas are the parts of a workload that its scale is made of.
type replicas struct {
	meta     metav1.Object
	wanted   *int32 // nil if the workload does not say
	current  int32
	selector string
	// set changes the number that is wanted.
	set func(int32) error
}

// builtinReplicas are the parts of a built-in workload.
func builtinReplicas(m metav1.Object, wanted **int32, current int32, selector labels.Selector) replicas {
	return replicas{meta: m, wanted: *wanted, current: current, selector: selector.String(), set: func(n int32) error {
		*wanted = &n
		return nil
	}}
}

func replicasOf(req Request, obj runtime.Object) (replicas, error) {
	var selector *metav1.LabelSelector
	var build func(labels.Selector) replicas
	switch w := obj.(type) {
	case *appsv1.Deployment:
		selector = w.Spec.Selector
		build = func(s labels.Selector) replicas { return builtinReplicas(w, &w.Spec.Replicas, w.Status.Replicas, s) }
	case *appsv1.ReplicaSet:
		selector = w.Spec.Selector
		build = func(s labels.Selector) replicas { return builtinReplicas(w, &w.Spec.Replicas, w.Status.Replicas, s) }
	case *appsv1.StatefulSet:
		selector = w.Spec.Selector
		build = func(s labels.Selector) replicas { return builtinReplicas(w, &w.Spec.Replicas, w.Status.Replicas, s) }
	case *corev1.ReplicationController:
		return builtinReplicas(w, &w.Spec.Replicas, w.Status.Replicas, labels.Set(w.Spec.Selector).AsSelector()), nil
	case *unstructured.Unstructured:
		return customReplicas(req, w)
	default:
		return replicas{}, fmt.Errorf("%T has no scale", obj)
	}
	s, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return replicas{}, err
	}
	return build(s), nil
}

// customReplicas are the parts of a custom resource, which are where its definition says.
func customReplicas(req Request, u *unstructured.Unstructured) (replicas, error) {
	if req.Resource.Custom == nil || req.Resource.Custom.Scale == nil {
		return replicas{}, fmt.Errorf("%s has no scale", req.Resource.Kind)
	}
	at := req.Resource.Custom.Scale
	out := replicas{meta: u, set: func(n int32) error {
		return unstructured.SetNestedField(u.Object, int64(n), fieldsOf(at.Replicas)...)
	}}
	wanted, found, err := unstructured.NestedInt64(u.Object, fieldsOf(at.Replicas)...)
	if err != nil {
		return out, err
	}
	if found {
		n := int32(wanted)
		out.wanted = &n
	}
	current, _, err := unstructured.NestedInt64(u.Object, fieldsOf(at.StatusReplicas)...)
	if err != nil {
		return out, err
	}
	out.current = int32(current)
	if at.Selector != "" {
		out.selector, _, err = unstructured.NestedString(u.Object, fieldsOf(at.Selector)...)
	}
	return out, err
}

// fieldsOf splits a simple JSON path such as ".spec.replicas".
func fieldsOf(path string) []string { return strings.Split(strings.TrimPrefix(path, "."), ".") }

func (v scaleView) empty() (runtime.Object, error) {
	return nil, notFound(v.req.groupResource(), v.req.Name)
}

// unset is the number of replicas that a change of a scale sees where a custom resource has none.
const unset = math.MinInt32

func (v scaleView) show(obj runtime.Object) (runtime.Object, error) {
	out, rs, err := scaleOf(v.req, obj)
	if err != nil {
		return nil, err
	}
	if rs.wanted == nil && v.req.Resource.Custom != nil {
		out.Spec.Replicas = unset
	}
	if out.ManagedFields, err = scaleFields(v.req, rs.meta.GetManagedFields()).ToSubresource(); err != nil {
		return nil, fmt.Errorf("managed fields of the scale: %w", err)
	}
	return out, nil
}

// scaleOf returns a workload's scale without managed fields.
func scaleOf(req Request, obj runtime.Object) (*autoscalingv1.Scale, replicas, error) {
	obj, err := req.Resource.Codec().Convert(obj, req.Resource.Storage)
	if err != nil {
		return nil, replicas{}, apierrors.NewInternalError(err)
	}
	rs, err := replicasOf(req, obj)
	if err != nil {
		return nil, rs, apierrors.NewBadRequest(err.Error())
	}
	out := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: rs.meta.GetName(), Namespace: rs.meta.GetNamespace(), UID: rs.meta.GetUID(),
			ResourceVersion: rs.meta.GetResourceVersion(), CreationTimestamp: rs.meta.GetCreationTimestamp(),
		},
		Status: autoscalingv1.ScaleStatus{Replicas: rs.current, Selector: rs.selector},
	}
	if rs.wanted != nil {
		out.Spec.Replicas = *rs.wanted
	}
	out.SetGroupVersionKind(scaleKind())
	return out, rs, nil
}

func (v scaleView) merge(live, seen runtime.Object) (runtime.Object, error) {
	scale, ok := seen.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Scale, got %T", seen))
	}
	if v.req.Resource.Custom != nil && scale.Spec.Replicas == unset {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("the spec replicas field %q cannot be empty", v.req.Resource.Custom.Scale.Replicas))
	}
	if scale.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(scaleKind().GroupKind(), v.req.Name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), scale.Spec.Replicas, "must be greater than or equal to 0")})
	}
	out := live.DeepCopyObject()
	rs, err := replicasOf(v.req, out)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if scale.UID != "" && scale.UID != rs.meta.GetUID() {
		return nil, uidConflict(v.req, scale.UID, rs.meta.GetUID())
	}
	fields, err := scaleFields(v.req, rs.meta.GetManagedFields()).ToParent(scale.ManagedFields)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("managed fields of %s: %w", v.req.Name, err))
	}
	if err := rs.set(scale.Spec.Replicas); err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	// Custom resources can't be changed unconditionally; through their scale they can.
	if scale.ResourceVersion != "" || v.req.Resource.Custom == nil {
		rs.meta.SetResourceVersion(scale.ResourceVersion)
	}
	rs.meta.SetManagedFields(fields)
	return out, nil
}

func (r *Registry) getScale(ctx context.Context, req Request, opts *metav1.GetOptions) (Result, error) {
	parent := req
	parent.Subresource = ""
	found, err := r.Get(ctx, parent, opts)
	if err != nil {
		return Result{}, err
	}
	obj, err := found.Get()
	if err != nil {
		return Result{}, statusError(err, req.groupResource(), req.Name, "read")
	}
	out, rs, err := scaleOf(req, obj)
	if err != nil {
		return Result{}, err
	}
	if rs.wanted == nil && req.Resource.Custom != nil {
		return Result{}, apierrors.NewInternalError(fmt.Errorf("the spec replicas field %q does not exist", req.Resource.Custom.Scale.Replicas))
	}
	return Result{Object: out}, nil
}
