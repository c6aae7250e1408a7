package agent

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// TestWhoseClaim: a pod gets the volume of a claim only if volume, claim and, where it is the pod's own, pod belong together.
func TestWhoseClaim(t *testing.T) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "new"}}
	before := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "web", Namespace: "shop", UID: "old"}}
	for name, tt := range map[string]struct {
		ephemeral bool
		owner     *corev1.Pod // of the claim
		volumeOf  *corev1.ObjectReference
		want      error
	}{
		"bound":                              {volumeOf: &corev1.ObjectReference{UID: "claim"}},
		"to another claim":                   {volumeOf: &corev1.ObjectReference{Namespace: "shop", Name: "web-data", UID: "another"}, want: errUnbound},
		"to none":                            {want: errUnbound},
		"ephemeral":                          {ephemeral: true, owner: pod, volumeOf: &corev1.ObjectReference{UID: "claim"}},
		"ephemeral, of the pod before":       {ephemeral: true, owner: before, volumeOf: &corev1.ObjectReference{UID: "claim"}, want: errForeign},
		"ephemeral, only named like the pod": {ephemeral: true, volumeOf: &corev1.ObjectReference{UID: "claim"}, want: errForeign},
	} {
		t.Run(name, func(t *testing.T) {
			claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "web-data", Namespace: "shop", UID: "claim"}}
			claim.Spec.VolumeName, claim.Status.Phase = "disk", corev1.ClaimBound
			if tt.owner != nil {
				claim.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(tt.owner, corev1.SchemeGroupVersion.WithKind("Pod"))}
			}
			volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "disk"}, Spec: corev1.PersistentVolumeSpec{ClaimRef: tt.volumeOf}}
			got, err := claims{fake.NewClientset(claim, volume)}.PersistentVolume(t.Context(), pod, "web-data", tt.ephemeral)
			if !errors.Is(err, tt.want) || (got != nil) != (tt.want == nil) {
				t.Errorf("%v, %v; want %v", got, err, tt.want)
			}
		})
	}
}
