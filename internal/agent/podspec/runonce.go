package podspec

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// RunOnce tells whether a pod must never run on two nodes at the same time: those of StatefulSets,
// whose names are identities, those with volumes that only one node or pod may use, and those whose
// owners say so.
func RunOnce(pod *corev1.Pod) bool {
	if pod.Annotations[AnnotationRunOnce] == "true" {
		return true
	}
	for _, o := range pod.OwnerReferences {
		if o.Controller != nil && *o.Controller && o.Kind == "StatefulSet" && strings.HasPrefix(o.APIVersion, "apps/") {
			return true
		}
	}
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		// Whether a claim is shared is known to the cluster only: assume that it is not.
		if v.PersistentVolumeClaim != nil && !v.PersistentVolumeClaim.ReadOnly || v.Ephemeral != nil ||
			v.ISCSI != nil || v.RBD != nil || v.GCEPersistentDisk != nil || v.AWSElasticBlockStore != nil || v.AzureDisk != nil || v.FC != nil {
			return true
		}
	}
	return false
}

// AnnotationRunOnce, set to "true", marks a pod that must not run on two nodes at the same time.
const AnnotationRunOnce = "barque.dev/run-once"
