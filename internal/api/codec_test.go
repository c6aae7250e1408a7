package api

import (
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// A decoded object is shared by all who encode it: the race detector sees to it that writing it
// as protobuf changes nothing inside.
func TestDecodedObjectCanBeEncodedByMany(t *testing.T) {
	pods, ok := find(schema.GroupResource{Resource: "pods"})
	if !ok {
		t.Fatal("no pods")
	}
	limit := resource.MustParse("1024Mi")
	value, err := pods.Codec().Encode(&corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p"},
		Spec: corev1.PodSpec{
			Volumes: []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{SizeLimit: &limit}}}},
			Containers: []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{
				Limits: corev1.ResourceList{"cpu": resource.MustParse("0.5"), "memory": resource.MustParse("2048Ki")}}}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	obj, err := pods.Codec().Decode(value, 7)
	if err != nil {
		t.Fatal(err)
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		t.Fatalf("a pod is a %T", obj)
	}
	encoded := make([][]byte, 8)
	var group sync.WaitGroup
	for i := range encoded {
		group.Go(func() {
			var err error
			if encoded[i], err = pod.Marshal(); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	for _, e := range encoded[1:] {
		if string(e) != string(encoded[0]) {
			t.Fatal("the same object was encoded in two ways")
		}
	}
}

func find(gr schema.GroupResource) (*Resource, bool) {
	for _, r := range Resources() {
		if r.GroupResource == gr {
			return r, true
		}
	}
	return nil, false
}
