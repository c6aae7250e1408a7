//lint:file-ignore SA1019 What the deprecated configSource names is related to the node, as in stock.

package node

import (
	certificatesv1 "k8s.io/api/certificates/v1"
	certificatesv1beta1 "k8s.io/api/certificates/v1beta1"
	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/auth/image"
)

// core names a resource of the core group.
func core(name string) schema.GroupResource { return schema.GroupResource{Resource: name} }

// pods calls f for the node's pods until it returns true, and tells whether it did. Mirror
// pods are left out when references count: a node makes them itself, and could name any
// secret in them.
func (a *Authorizer) pods(node string, references bool, f func(*corev1.Pod) bool) bool {
	found := false
	a.image.ByIndex(core("pods"), PodIndex, node, func(obj runtime.Object) bool {
		pod, ok := obj.(*corev1.Pod)
		if !ok {
			return true
		}
		if _, mirror := pod.Annotations[corev1.MirrorPodAnnotationKey]; mirror && references {
			return true
		}
		found = f(pod)
		return !found
	})
	return found
}

func (a *Authorizer) runs(node, namespace, name string) bool {
	pod, ok := image.Get[*corev1.Pod](a.image, core("pods"), namespace, name)
	return ok && pod.Spec.NodeName == node
}

func (a *Authorizer) usesServiceAccount(node, namespace, name string) bool {
	return a.pods(node, true, func(p *corev1.Pod) bool {
		return p.Namespace == namespace && p.Spec.ServiceAccountName == name
	})
}

func (a *Authorizer) usesConfigMap(node, namespace, name string) bool {
	if n, ok := image.Get[*corev1.Node](a.image, core("nodes"), "", node); ok && n.Spec.ConfigSource != nil {
		if c := n.Spec.ConfigSource.ConfigMap; c != nil && c.Namespace == namespace && c.Name == name {
			return true
		}
	}
	return a.pods(node, true, func(p *corev1.Pod) bool {
		return p.Namespace == namespace && refersToConfigMap(&p.Spec, name)
	})
}

// usesSecret looks at the pods themselves first, then at the volumes that their claims are
// bound to, whose drivers may name secrets in any namespace.
func (a *Authorizer) usesSecret(node, namespace, name string) bool {
	return a.pods(node, true, func(p *corev1.Pod) bool {
		return p.Namespace == namespace && RefersToSecret(&p.Spec, name)
	}) || a.pods(node, true, func(p *corev1.Pod) bool {
		return a.volumesOf(p, func(v *corev1.PersistentVolume) bool {
			return volumeRefersToSecret(v, namespace, name)
		})
	})
}

func (a *Authorizer) usesClaim(node, namespace, name string) bool {
	return a.pods(node, true, func(p *corev1.Pod) bool {
		return p.Namespace == namespace && refersToClaim(p, name)
	})
}

func (a *Authorizer) usesVolume(node, _, name string) bool {
	v, ok := image.Get[*corev1.PersistentVolume](a.image, core("persistentvolumes"), "", name)
	return ok && v.Spec.ClaimRef != nil && a.usesClaim(node, v.Spec.ClaimRef.Namespace, v.Spec.ClaimRef.Name)
}

// volumesOf calls f for the volumes bound to the pod's claims until it returns true.
func (a *Authorizer) volumesOf(p *corev1.Pod, f func(*corev1.PersistentVolume) bool) bool {
	for i := range p.Spec.Volumes {
		claim := claimOf(p, &p.Spec.Volumes[i])
		if claim == "" {
			continue
		}
		c, ok := image.Get[*corev1.PersistentVolumeClaim](a.image, core("persistentvolumeclaims"), p.Namespace, claim)
		if !ok || c.Spec.VolumeName == "" {
			continue
		}
		v, ok := image.Get[*corev1.PersistentVolume](a.image, core("persistentvolumes"), "", c.Spec.VolumeName)
		if !ok || v.Spec.ClaimRef == nil || v.Spec.ClaimRef.Namespace != c.Namespace || v.Spec.ClaimRef.Name != c.Name {
			continue
		}
		if f(v) {
			return true
		}
	}
	return false
}

func (a *Authorizer) usesResourceClaim(node, namespace, name string) bool {
	return a.pods(node, true, func(p *corev1.Pod) bool {
		return p.Namespace == namespace && refersToResourceClaim(p, name)
	})
}

func (a *Authorizer) attached(node, _, name string) bool {
	v, ok := image.Get[*storagev1.VolumeAttachment](a.image, schema.GroupResource{Group: storagev1.GroupName, Resource: "volumeattachments"}, "", name)
	return ok && v.Spec.NodeName == node
}

func (a *Authorizer) ownsSlice(node, _, name string) bool {
	s, ok := image.Get[*resourcev1.ResourceSlice](a.image, schema.GroupResource{Group: resourcev1.GroupName, Resource: "resourceslices"}, "", name)
	return ok && s.Spec.NodeName != nil && *s.Spec.NodeName == node
}

func (a *Authorizer) ownsCertificate(node, namespace, name string) bool {
	switch r := a.image.Get(schema.GroupResource{Group: certificatesv1.GroupName, Resource: "podcertificaterequests"}, namespace, name).(type) {
	case *certificatesv1.PodCertificateRequest:
		return string(r.Spec.NodeName) == node
	case *certificatesv1beta1.PodCertificateRequest:
		return string(r.Spec.NodeName) == node
	}
	return false
}
