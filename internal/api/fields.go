package api

import (
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
)

// selectableFields makes a Resource's FillFields: name, namespace, and what add adds.
func selectableFields(namespaced bool, add func(runtime.Object, fields.Set)) func(runtime.Object, fields.Set) {
	return func(obj runtime.Object, set fields.Set) {
		if m, err := meta.Accessor(obj); err == nil {
			set["metadata.name"] = m.GetName()
			if namespaced {
				set["metadata.namespace"] = m.GetNamespace()
			}
		}
		if add != nil {
			add(obj, set)
		}
	}
}

// nameField is an old spelling of metadata.name that some clients still use.
func nameField(_ runtime.Object, set fields.Set) { set["name"] = set["metadata.name"] }

func podFields(obj runtime.Object, set fields.Set) {
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return
	}
	set["spec.nodeName"] = pod.Spec.NodeName
	set["spec.restartPolicy"] = string(pod.Spec.RestartPolicy)
	set["spec.schedulerName"] = pod.Spec.SchedulerName
	set["spec.serviceAccountName"] = pod.Spec.ServiceAccountName
	set["spec.hostNetwork"] = strconv.FormatBool(pod.Spec.HostNetwork)
	set["status.phase"] = string(pod.Status.Phase)
	set["status.podIP"] = pod.Status.PodIP
	if len(pod.Status.PodIPs) > 0 {
		set["status.podIP"] = pod.Status.PodIPs[0].IP
	}
	set["status.nominatedNodeName"] = pod.Status.NominatedNodeName
}

func podIndexes() map[string]func(runtime.Object) []string {
	return map[string]func(runtime.Object) []string{
		"spec.nodeName": func(obj runtime.Object) []string {
			if pod, ok := obj.(*corev1.Pod); ok {
				return []string{pod.Spec.NodeName}
			}
			return nil
		},
	}
}

func serviceFields(obj runtime.Object, set fields.Set) {
	if service, ok := obj.(*corev1.Service); ok {
		set["spec.clusterIP"] = service.Spec.ClusterIP
		set["spec.type"] = string(service.Spec.Type)
	}
}

func secretFields(obj runtime.Object, set fields.Set) {
	if secret, ok := obj.(*corev1.Secret); ok {
		set["type"] = string(secret.Type)
	}
}

func secretIndexes() map[string]func(runtime.Object) []string {
	return map[string]func(runtime.Object) []string{
		"type": func(obj runtime.Object) []string {
			if secret, ok := obj.(*corev1.Secret); ok {
				return []string{string(secret.Type)}
			}
			return nil
		},
	}
}

func namespaceFields(obj runtime.Object, set fields.Set) {
	if namespace, ok := obj.(*corev1.Namespace); ok {
		set["status.phase"] = string(namespace.Status.Phase)
		set["name"] = namespace.Name
	}
}

func nodeFields(obj runtime.Object, set fields.Set) {
	if node, ok := obj.(*corev1.Node); ok {
		set["spec.unschedulable"] = strconv.FormatBool(node.Spec.Unschedulable)
	}
}

func replicationControllerFields(obj runtime.Object, set fields.Set) {
	if rc, ok := obj.(*corev1.ReplicationController); ok {
		set["status.replicas"] = strconv.Itoa(int(rc.Status.Replicas))
	}
}

func replicaSetFields(obj runtime.Object, set fields.Set) {
	if rs, ok := obj.(*appsv1.ReplicaSet); ok {
		set["status.replicas"] = strconv.Itoa(int(rs.Status.Replicas))
	}
}

func jobFields(obj runtime.Object, set fields.Set) {
	if job, ok := obj.(*batchv1.Job); ok {
		set["status.successful"] = strconv.Itoa(int(job.Status.Succeeded))
	}
}

func eventFields(obj runtime.Object, set fields.Set) {
	event, ok := obj.(*corev1.Event)
	if !ok {
		return
	}
	source := event.Source.Component
	if source == "" {
		source = event.ReportingController
	}
	set["involvedObject.kind"] = event.InvolvedObject.Kind
	set["involvedObject.namespace"] = event.InvolvedObject.Namespace
	set["involvedObject.name"] = event.InvolvedObject.Name
	set["involvedObject.uid"] = string(event.InvolvedObject.UID)
	set["involvedObject.apiVersion"] = event.InvolvedObject.APIVersion
	set["involvedObject.resourceVersion"] = event.InvolvedObject.ResourceVersion
	set["involvedObject.fieldPath"] = event.InvolvedObject.FieldPath
	set["reason"] = event.Reason
	set["reportingComponent"] = event.ReportingController
	set["source"] = source
	set["type"] = event.Type
}

// eventIndexes serve kubectl describe, which asks for the events of one object.
func eventIndexes() map[string]func(runtime.Object) []string {
	return map[string]func(runtime.Object) []string{
		"involvedObject.uid": func(obj runtime.Object) []string {
			if event, ok := obj.(*corev1.Event); ok {
				return []string{string(event.InvolvedObject.UID)}
			}
			return nil
		},
	}
}

func signingRequestFields(obj runtime.Object, set fields.Set) {
	if csr, ok := obj.(*certificatesv1.CertificateSigningRequest); ok {
		set["spec.signerName"] = csr.Spec.SignerName
	}
}

func trustBundleFields(obj runtime.Object, set fields.Set) {
	if bundle, ok := obj.(*certificatesv1beta1.ClusterTrustBundle); ok {
		set["spec.signerName"] = bundle.Spec.SignerName
	}
}

func podCertificateFields(obj runtime.Object, set fields.Set) {
	if request, ok := obj.(*certificatesv1beta1.PodCertificateRequest); ok {
		set["spec.signerName"] = request.Spec.SignerName
		set["spec.podName"] = request.Spec.PodName
		set["spec.nodeName"] = string(request.Spec.NodeName)
	}
}

func sliceFields(obj runtime.Object, set fields.Set) {
	slice, ok := obj.(*resourcev1.ResourceSlice)
	if !ok {
		return
	}
	set[resourcev1.ResourceSliceSelectorNodeName] = sliceNode(slice)
	set[resourcev1.ResourceSliceSelectorDriver] = slice.Spec.Driver
	set["spec.pool.name"] = slice.Spec.Pool.Name
}

func sliceNode(slice *resourcev1.ResourceSlice) string {
	if slice.Spec.NodeName == nil {
		return ""
	}
	return *slice.Spec.NodeName
}

func sliceIndexes() map[string]func(runtime.Object) []string {
	return map[string]func(runtime.Object) []string{
		resourcev1.ResourceSliceSelectorNodeName: func(obj runtime.Object) []string {
			if slice, ok := obj.(*resourcev1.ResourceSlice); ok {
				return []string{sliceNode(slice)}
			}
			return nil
		},
	}
}
