package statefulset

import (
	"maps"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/controllers/pods"
)

// ordinal is the number in a member's name; ok is false for a pod that no set could have named.
func ordinal(pod *corev1.Pod) (n int, ok bool) {
	_, n, ok = pods.Ordinal(pod.Name)
	return n, ok
}

// member tells whether a pod's name is one that set gives.
func member(set *appsv1.StatefulSet, name string) bool {
	parent, _, ok := pods.Ordinal(name)
	return ok && parent == set.Name
}

func podName(set *appsv1.StatefulSet, n int) string { return set.Name + "-" + strconv.Itoa(n) }

func claimName(set *appsv1.StatefulSet, template string, n int) string {
	return template + "-" + podName(set, n)
}

// first is the set's lowest ordinal.
func first(set *appsv1.StatefulSet) int {
	if set.Spec.Ordinals != nil {
		return int(set.Spec.Ordinals.Start)
	}
	return 0
}

// inRange tells whether the ordinal is one of those that the set should have.
func inRange(set *appsv1.StatefulSet, n int) bool {
	return n >= first(set) && n < first(set)+int(*set.Spec.Replicas)
}

func revisionOf(pod *corev1.Pod) string { return pod.Labels[appsv1.StatefulSetRevisionLabel] }

// newPod makes the pod with ordinal n of the template that revision holds.
func newPod(set *appsv1.StatefulSet, template *corev1.PodTemplateSpec, revision string, n int) *corev1.Pod {
	pod := pods.FromTemplate(template, set, metav1.NewControllerRef(set, kind), "")
	pod.Name = podName(set, n)
	setIdentity(set, pod, n)
	pod.Labels[appsv1.StatefulSetRevisionLabel] = revision
	pod.Spec.Hostname = pod.Name
	pod.Spec.Subdomain = set.Spec.ServiceName
	setStorage(set, pod, n)
	return pod
}

func setIdentity(set *appsv1.StatefulSet, pod *corev1.Pod, n int) {
	pod.Namespace = set.Namespace
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[appsv1.StatefulSetPodNameLabel] = pod.Name
	pod.Labels[appsv1.PodIndexLabel] = strconv.Itoa(n)
}

func hasIdentity(set *appsv1.StatefulSet, pod *corev1.Pod, n int) bool {
	return pod.Name == podName(set, n) && pod.Labels[appsv1.StatefulSetPodNameLabel] == pod.Name
}

// setStorage makes the pod's volumes that are named as claim templates use the pod's claims.
func setStorage(set *appsv1.StatefulSet, pod *corev1.Pod, n int) {
	templates := map[string]bool{}
	var volumes []corev1.Volume
	for i := range set.Spec.VolumeClaimTemplates {
		name := set.Spec.VolumeClaimTemplates[i].Name
		templates[name] = true
		volumes = append(volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claimName(set, name, n)},
		}})
	}
	for _, v := range pod.Spec.Volumes {
		if !templates[v.Name] {
			volumes = append(volumes, v)
		}
	}
	pod.Spec.Volumes = volumes
}

func hasStorage(set *appsv1.StatefulSet, pod *corev1.Pod, n int) bool {
	byName := map[string]*corev1.PersistentVolumeClaimVolumeSource{}
	for _, v := range pod.Spec.Volumes {
		byName[v.Name] = v.PersistentVolumeClaim
	}
	for i := range set.Spec.VolumeClaimTemplates {
		name := set.Spec.VolumeClaimTemplates[i].Name
		if byName[name] == nil || byName[name].ClaimName != claimName(set, name, n) {
			return false
		}
	}
	return true
}

// newClaims makes the claims of the pod with ordinal n.
func newClaims(set *appsv1.StatefulSet, n int) []*corev1.PersistentVolumeClaim {
	claims := make([]*corev1.PersistentVolumeClaim, len(set.Spec.VolumeClaimTemplates))
	for i := range set.Spec.VolumeClaimTemplates {
		c := set.Spec.VolumeClaimTemplates[i].DeepCopy()
		c.Name = claimName(set, c.Name, n)
		c.Namespace = set.Namespace
		if c.Labels == nil {
			c.Labels = map[string]string{}
		}
		maps.Copy(c.Labels, set.Spec.Selector.MatchLabels)
		claims[i] = c
	}
	return claims
}
