package cri

import (
	"encoding/json"
	"hash/fnv"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	kubelettypes "k8s.io/kubelet/pkg/types"
)

// Annotations on containers. The first group is the stock kubelet's, so that tools that read a
// node's runtime (crictl, log collectors) understand Barque's containers too.
const (
	AnnotationHash                     = "io.kubernetes.container.hash"
	AnnotationRestartCount             = "io.kubernetes.container.restartCount"
	AnnotationTerminationMessagePath   = "io.kubernetes.container.terminationMessagePath"
	AnnotationTerminationMessagePolicy = "io.kubernetes.container.terminationMessagePolicy"
	AnnotationTerminationGrace         = "io.kubernetes.pod.terminationGracePeriod"
	AnnotationPreStop                  = "io.kubernetes.container.preStopHandler"
	AnnotationPorts                    = "io.kubernetes.container.ports"

	// AnnotationBackoff is the delay that has to pass, after this container's end, before its
	// successor starts: a Go duration. Keeping it with the container makes the back-off
	// survive a restart of the agent.
	AnnotationBackoff = "barque.dev/restart-backoff"

	// AnnotationResources are the resources that the container was made with, in JSON. A resize
	// in place does not change them.
	AnnotationResources = "barque.dev/resources"

	// AnnotationMessageFile is the file on the node that is mounted at the container's
	// termination message path.
	AnnotationMessageFile = "barque.dev/termination-message-file"
)

// PodLabels returns the labels of a pod's sandbox.
func PodLabels(pod *corev1.Pod) map[string]string {
	labels := make(map[string]string, len(pod.Labels)+3)
	for k, v := range pod.Labels {
		labels[k] = v
	}
	labels[kubelettypes.KubernetesPodNameLabel] = pod.Name
	labels[kubelettypes.KubernetesPodNamespaceLabel] = pod.Namespace
	labels[kubelettypes.KubernetesPodUIDLabel] = string(pod.UID)
	return labels
}

// LabelledPod returns the pod that the labels of a sandbox or a container name: its name, namespace
// and UID, which is empty if the labels are not an agent's.
func LabelledPod(labels map[string]string) *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
		Name:      labels[kubelettypes.KubernetesPodNameLabel],
		Namespace: labels[kubelettypes.KubernetesPodNamespaceLabel],
		UID:       types.UID(labels[kubelettypes.KubernetesPodUIDLabel]),
	}}
}

// ContainerLabels returns the labels of one of a pod's containers.
func ContainerLabels(pod *corev1.Pod, container string) map[string]string {
	return map[string]string{
		kubelettypes.KubernetesPodNameLabel:       pod.Name,
		kubelettypes.KubernetesPodNamespaceLabel:  pod.Namespace,
		kubelettypes.KubernetesPodUIDLabel:        string(pod.UID),
		kubelettypes.KubernetesContainerNameLabel: container,
	}
}

// ContainerAnnotations returns the annotations of a container that is about to be created as
// the attempt-th of its name.
func ContainerAnnotations(pod *corev1.Pod, c *corev1.Container, attempt int, backoff time.Duration, messageFile string) (map[string]string, error) {
	annotations := map[string]string{
		AnnotationHash:                     Hash(c),
		AnnotationRestartCount:             strconv.Itoa(attempt),
		AnnotationTerminationMessagePath:   c.TerminationMessagePath,
		AnnotationTerminationMessagePolicy: string(c.TerminationMessagePolicy),
		AnnotationBackoff:                  backoff.String(),
	}
	resources, err := json.Marshal(c.Resources)
	if err != nil {
		return nil, err
	}
	annotations[AnnotationResources] = string(resources)
	if messageFile != "" {
		annotations[AnnotationMessageFile] = messageFile
	}
	if grace := pod.Spec.TerminationGracePeriodSeconds; grace != nil {
		annotations[AnnotationTerminationGrace] = strconv.FormatInt(*grace, 10)
	}
	if c.Lifecycle != nil && c.Lifecycle.PreStop != nil {
		raw, err := json.Marshal(c.Lifecycle.PreStop)
		if err != nil {
			return nil, err
		}
		annotations[AnnotationPreStop] = string(raw)
	}
	if len(c.Ports) > 0 {
		raw, err := json.Marshal(c.Ports)
		if err != nil {
			return nil, err
		}
		annotations[AnnotationPorts] = string(raw)
	}
	return annotations, nil
}

// Hash identifies what of a container's definition makes a running container obsolete when it
// changes: its name and its image, the only two that the API lets anybody change.
func Hash(c *corev1.Container) string {
	h := fnv.New64a()
	h.Write([]byte(c.Name))
	h.Write([]byte{0})
	h.Write([]byte(c.Image))
	return strconv.FormatUint(h.Sum64(), 16)
}
