package api

import (
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// TestClaimTemplatesHaveKinds: the stored form drops them, readers of a stock server see them.
func TestClaimTemplatesHaveKinds(t *testing.T) {
	var sets *Resource
	for _, r := range Resources() {
		if r.GroupResource == (schema.GroupResource{Group: "apps", Resource: "statefulsets"}) {
			sets = r
		}
	}
	value, err := sets.Codec().Encode(&appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "db"},
		Spec:       appsv1.StatefulSetSpec{VolumeClaimTemplates: []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	obj, err := sets.Codec().Decode(value, 1)
	if err != nil {
		t.Fatal(err)
	}
	claim := obj.(*appsv1.StatefulSet).Spec.VolumeClaimTemplates[0]
	if claim.Kind != "PersistentVolumeClaim" || claim.APIVersion != "v1" {
		t.Errorf("a claim template is read as %q of %q", claim.Kind, claim.APIVersion)
	}
}
