package statefulset

import (
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The retention policy of claims (KEP-1847) works by owner references: a claim that the set
// owns goes with the set; one that a surplus pod owns goes with the pod.

var podKind = schema.GroupVersionKind{Version: "v1", Kind: "Pod"}

func retention(set *appsv1.StatefulSet) (deleteWithSet, deleteWhenScaled bool) {
	p := set.Spec.PersistentVolumeClaimRetentionPolicy
	if p == nil {
		return false, false
	}
	return p.WhenDeleted == appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
		p.WhenScaled == appsv1.DeletePersistentVolumeClaimRetentionPolicyType
}

// names tells whether ref is to an object of that kind and name, of whatever UID.
func names(ref metav1.OwnerReference, obj metav1.Object, kind schema.GroupVersionKind) bool {
	return ref.APIVersion == kind.GroupVersion().String() && ref.Kind == kind.Kind && ref.Name == obj.GetName()
}

// stale tells whether claim belongs to an earlier object of the same kind and name.
func stale(claim *corev1.PersistentVolumeClaim, obj metav1.Object, kind schema.GroupVersionKind) bool {
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		return names(ref, obj, kind) && ref.UID != obj.GetUID()
	})
}

// contested tells whether the policy would delete a claim that somebody else controls.
func contested(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	withSet, whenScaled := retention(set)
	if !withSet && !whenScaled {
		return false
	}
	return slices.ContainsFunc(claim.OwnerReferences, func(ref metav1.OwnerReference) bool {
		switch {
		case names(ref, set, kind):
			return ref.UID != set.UID
		case names(ref, pod, podKind):
			return ref.UID != pod.UID
		}
		return ref.Controller != nil && *ref.Controller
	})
}

// wantedOwners is the claim's owner references as the policy has them: with the set as
// controller, the pod, or neither, besides those of others. ok is false if the claim is to be
// left alone, because an earlier set or pod of the name owns it: the garbage collector decides.
func wantedOwners(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod) (refs []metav1.OwnerReference, ok bool) {
	if stale(claim, set, kind) || stale(claim, pod, podKind) {
		return nil, false
	}
	for _, ref := range claim.OwnerReferences {
		if !names(ref, set, kind) && !names(ref, pod, podKind) {
			refs = append(refs, ref)
		}
	}
	if contested(claim, set, pod) {
		return refs, true
	}
	n, _ := ordinal(pod)
	withSet, whenScaled := retention(set)
	surplus := !inRange(set, n)
	switch {
	case whenScaled && surplus:
		refs = append(refs, *metav1.NewControllerRef(pod, podKind))
	case withSet:
		refs = append(refs, *metav1.NewControllerRef(set, kind))
	}
	return refs, true
}

// ownersSettled tells whether the claim's owners are as the policy has them, in any order.
func ownersSettled(claim *corev1.PersistentVolumeClaim, set *appsv1.StatefulSet, pod *corev1.Pod) bool {
	want, ok := wantedOwners(claim, set, pod)
	if !ok {
		return true
	}
	if len(want) != len(claim.OwnerReferences) {
		return false
	}
	for _, w := range want {
		if !slices.ContainsFunc(claim.OwnerReferences, func(have metav1.OwnerReference) bool {
			return have.UID == w.UID && metav1.GetControllerOf(&metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{have}}) != nil ==
				(w.Controller != nil && *w.Controller)
		}) {
			return false
		}
	}
	return true
}
