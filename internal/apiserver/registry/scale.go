package registry

import (
	"context"
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// scaleView shows a workload as its scale. The managed fields that it shows are those of the
// number of replicas.
type scaleView struct{ req Request }

// replicas are the parts of a workload that its scale is made of.
type replicas struct {
	meta     *metav1.ObjectMeta
	wanted   **int32
	current  int32
	selector labels.Selector
}

func replicasOf(obj runtime.Object) (replicas, error) {
	switch w := obj.(type) {
	case *appsv1.Deployment:
		s, err := metav1.LabelSelectorAsSelector(w.Spec.Selector)
		return replicas{&w.ObjectMeta, &w.Spec.Replicas, w.Status.Replicas, s}, err
	case *appsv1.ReplicaSet:
		s, err := metav1.LabelSelectorAsSelector(w.Spec.Selector)
		return replicas{&w.ObjectMeta, &w.Spec.Replicas, w.Status.Replicas, s}, err
	case *appsv1.StatefulSet:
		s, err := metav1.LabelSelectorAsSelector(w.Spec.Selector)
		return replicas{&w.ObjectMeta, &w.Spec.Replicas, w.Status.Replicas, s}, err
	case *corev1.ReplicationController:
		return replicas{&w.ObjectMeta, &w.Spec.Replicas, w.Status.Replicas, labels.Set(w.Spec.Selector).AsSelector()}, nil
	default:
		return replicas{}, fmt.Errorf("%T has no scale", obj)
	}
}

func (v scaleView) empty() (runtime.Object, error) {
	return nil, notFound(v.req.groupResource(), v.req.Name)
}

func (v scaleView) show(obj runtime.Object) (runtime.Object, error) {
	out, rs, err := scaleOf(obj)
	if err != nil {
		return nil, err
	}
	if out.ManagedFields, err = scaleFields(v.req, rs.meta.ManagedFields).ToSubresource(); err != nil {
		return nil, fmt.Errorf("managed fields of the scale: %w", err)
	}
	return out, nil
}

// scaleOf returns a workload's scale without managed fields.
func scaleOf(obj runtime.Object) (*autoscalingv1.Scale, replicas, error) {
	rs, err := replicasOf(obj)
	if err != nil {
		return nil, rs, apierrors.NewBadRequest(err.Error())
	}
	out := &autoscalingv1.Scale{
		ObjectMeta: metav1.ObjectMeta{
			Name: rs.meta.Name, Namespace: rs.meta.Namespace, UID: rs.meta.UID,
			ResourceVersion: rs.meta.ResourceVersion, CreationTimestamp: rs.meta.CreationTimestamp,
		},
		Status: autoscalingv1.ScaleStatus{Replicas: rs.current, Selector: rs.selector.String()},
	}
	if *rs.wanted != nil {
		out.Spec.Replicas = **rs.wanted
	}
	out.SetGroupVersionKind(scaleKind())
	return out, rs, nil
}

func (v scaleView) merge(live, seen runtime.Object) (runtime.Object, error) {
	scale, ok := seen.(*autoscalingv1.Scale)
	if !ok {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("expected a Scale, got %T", seen))
	}
	if scale.Spec.Replicas < 0 {
		return nil, apierrors.NewInvalid(scaleKind().GroupKind(), v.req.Name, field.ErrorList{
			field.Invalid(field.NewPath("spec", "replicas"), scale.Spec.Replicas, "must be greater than or equal to 0")})
	}
	out := live.DeepCopyObject()
	rs, err := replicasOf(out)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if scale.UID != "" && scale.UID != rs.meta.UID {
		return nil, uidConflict(v.req, scale.UID, rs.meta.UID)
	}
	fields, err := scaleFields(v.req, rs.meta.ManagedFields).ToParent(scale.ManagedFields)
	if err != nil {
		return nil, apierrors.NewInternalError(fmt.Errorf("managed fields of %s: %w", v.req.Name, err))
	}
	wanted := scale.Spec.Replicas
	*rs.wanted = &wanted
	rs.meta.ResourceVersion = scale.ResourceVersion
	rs.meta.ManagedFields = fields
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
	out, _, err := scaleOf(obj)
	if err != nil {
		return Result{}, err
	}
	return Result{Object: out}, nil
}
