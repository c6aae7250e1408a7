// Package podspec translates a pod's definition into what a container runtime is asked for: the
// environment, the security context, resource limits, DNS and hosts, and the CRI messages that
// carry them. It reads no clock and no disk, and talks to nobody; what it needs from elsewhere is
// handed in as [Facts] and [Sources].
package podspec

import (
	corev1 "k8s.io/api/core/v1"
)

// Facts are what a pod's definition refers to, but does not contain.
type Facts struct {
	NodeName string
	// Allocatable stands in for limits a container does not set.
	Allocatable     corev1.ResourceList
	PodIPs, HostIPs []string
}

// Sources give the objects that environment variables and volumes refer to. Errors for objects
// that do not exist satisfy apierrors.IsNotFound.
type Sources interface {
	ConfigMap(namespace, name string) (*corev1.ConfigMap, error)
	Secret(namespace, name string) (*corev1.Secret, error)
}

// EachContainer calls f for every init, main and ephemeral container of the pod until f says stop.
func EachContainer(pod *corev1.Pod, f func(c *corev1.Container) bool) {
	for i := range pod.Spec.InitContainers {
		if !f(&pod.Spec.InitContainers[i]) {
			return
		}
	}
	for i := range pod.Spec.Containers {
		if !f(&pod.Spec.Containers[i]) {
			return
		}
	}
	for i := range pod.Spec.EphemeralContainers {
		if !f((*corev1.Container)(&pod.Spec.EphemeralContainers[i].EphemeralContainerCommon)) {
			return
		}
	}
}

// Container returns the pod's container of that name, or nil.
func Container(pod *corev1.Pod, name string) *corev1.Container {
	var found *corev1.Container
	EachContainer(pod, func(c *corev1.Container) bool {
		if c.Name == name {
			found = c
		}
		return found == nil
	})
	return found
}

// FullName is the name under which events and logs mention a pod.
func FullName(pod *corev1.Pod) string { return pod.Namespace + "/" + pod.Name }
