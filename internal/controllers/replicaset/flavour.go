package replicaset

import (
	"context"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

// A flavour reads and writes one kind of set. What get and list return must not be changed.
type flavour interface {
	kind() schema.GroupVersionKind
	sample() client.Object
	// get returns the set, seen as a ReplicaSet and as it is.
	get(ctx context.Context, key types.NamespacedName) (*appsv1.ReplicaSet, client.Object, error)
	list(ctx context.Context, namespace string) ([]*appsv1.ReplicaSet, error)
	// adopters returns the function that requests the sets that may adopt an orphan.
	adopters(deps kit.Deps) func(orphan client.Object) []reconcile.Request
	// writeStatus replaces object's status, unless it says the same already.
	writeStatus(ctx context.Context, object client.Object, old, next appsv1.ReplicaSetStatus) error
}

type replicaSets struct{ client client.Client }

func (replicaSets) kind() schema.GroupVersionKind {
	return appsv1.SchemeGroupVersion.WithKind("ReplicaSet")
}
func (replicaSets) sample() client.Object { return &appsv1.ReplicaSet{} }

func (f replicaSets) get(ctx context.Context, key types.NamespacedName) (*appsv1.ReplicaSet, client.Object, error) {
	var rs appsv1.ReplicaSet
	err := f.client.Get(ctx, key, &rs)
	return &rs, &rs, err
}

func (f replicaSets) list(ctx context.Context, namespace string) ([]*appsv1.ReplicaSet, error) {
	return kit.List[*appsv1.ReplicaSet](ctx, f.client, &appsv1.ReplicaSetList{}, client.InNamespace(namespace))
}

func (replicaSets) adopters(deps kit.Deps) func(client.Object) []reconcile.Request {
	return kit.Adopters(deps, &appsv1.ReplicaSetList{}, func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector })
}

func (f replicaSets) writeStatus(ctx context.Context, object client.Object, old, next appsv1.ReplicaSetStatus) error {
	if sameStatus(old, next) {
		return nil
	}
	rs := object.(*appsv1.ReplicaSet).DeepCopy()
	rs.Status = next
	return f.client.Status().Update(ctx, rs)
}

type replicationControllers struct{ client client.Client }

func (replicationControllers) kind() schema.GroupVersionKind {
	return corev1.SchemeGroupVersion.WithKind("ReplicationController")
}
func (replicationControllers) sample() client.Object { return &corev1.ReplicationController{} }

func (f replicationControllers) get(ctx context.Context, key types.NamespacedName) (*appsv1.ReplicaSet, client.Object, error) {
	var rc corev1.ReplicationController
	if err := f.client.Get(ctx, key, &rc); err != nil {
		return nil, nil, err
	}
	return asReplicaSet(&rc), &rc, nil
}

func (f replicationControllers) list(ctx context.Context, namespace string) ([]*appsv1.ReplicaSet, error) {
	var list corev1.ReplicationControllerList
	err := f.client.List(ctx, &list, client.InNamespace(namespace))
	sets := make([]*appsv1.ReplicaSet, len(list.Items))
	for i := range list.Items {
		sets[i] = asReplicaSet(&list.Items[i])
	}
	return sets, err
}

func (replicationControllers) adopters(deps kit.Deps) func(client.Object) []reconcile.Request {
	return kit.Adopters(deps, &corev1.ReplicationControllerList{}, func(rc *corev1.ReplicationController) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: rc.Spec.Selector}
	})
}

func (f replicationControllers) writeStatus(ctx context.Context, object client.Object, old, next appsv1.ReplicaSetStatus) error {
	next.TerminatingReplicas = nil // a ReplicationController does not report them
	if sameStatus(old, next) {
		return nil
	}
	rc := object.(*corev1.ReplicationController).DeepCopy()
	rc.Status = corev1.ReplicationControllerStatus{
		Replicas:             next.Replicas,
		FullyLabeledReplicas: next.FullyLabeledReplicas,
		ReadyReplicas:        next.ReadyReplicas,
		AvailableReplicas:    next.AvailableReplicas,
		ObservedGeneration:   next.ObservedGeneration,
	}
	for _, c := range next.Conditions {
		rc.Status.Conditions = append(rc.Status.Conditions, corev1.ReplicationControllerCondition{
			Type: corev1.ReplicationControllerConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return f.client.Status().Update(ctx, rc)
}

// asReplicaSet shares rc's parts.
func asReplicaSet(rc *corev1.ReplicationController) *appsv1.ReplicaSet {
	rs := &appsv1.ReplicaSet{
		ObjectMeta: rc.ObjectMeta,
		Spec: appsv1.ReplicaSetSpec{
			Replicas:        rc.Spec.Replicas,
			MinReadySeconds: rc.Spec.MinReadySeconds,
			Selector:        &metav1.LabelSelector{MatchLabels: rc.Spec.Selector},
		},
		Status: appsv1.ReplicaSetStatus{
			Replicas:             rc.Status.Replicas,
			FullyLabeledReplicas: rc.Status.FullyLabeledReplicas,
			ReadyReplicas:        rc.Status.ReadyReplicas,
			AvailableReplicas:    rc.Status.AvailableReplicas,
			ObservedGeneration:   rc.Status.ObservedGeneration,
		},
	}
	if rc.Spec.Template != nil {
		rs.Spec.Template = *rc.Spec.Template
	}
	for _, c := range rc.Status.Conditions {
		rs.Status.Conditions = append(rs.Status.Conditions, appsv1.ReplicaSetCondition{
			Type: appsv1.ReplicaSetConditionType(c.Type), Status: c.Status,
			LastTransitionTime: c.LastTransitionTime, Reason: c.Reason, Message: c.Message,
		})
	}
	return rs
}
