package nodestatus

import (
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// Extended resources that an administrator gave the node stay; what the agent measures is its own word.
func TestOthersResourcesStay(t *testing.T) {
	s := corev1.NodeStatus{}
	s.Capacity, s.Allocatable = Resources(Facts{CPUs: 2}, Reserved{}, 110)
	keepOthers(&s, corev1.ResourceList{"example.com/foo": resource.MustParse("5"), corev1.ResourceCPU: resource.MustParse("64")})
	for name, want := range map[corev1.ResourceName]string{"example.com/foo": "5", corev1.ResourceCPU: "2"} {
		capacity, allocatable := s.Capacity[name], s.Allocatable[name]
		if capacity.String() != want || allocatable.String() != want {
			t.Errorf("%s: %s in all, %s for pods, want %s", name, capacity.String(), allocatable.String(), want)
		}
	}
}
