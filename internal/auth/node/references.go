package node

import (
	corev1 "k8s.io/api/core/v1"
)

// containers calls f for the environment of every container until it returns true.
func containers(spec *corev1.PodSpec, f func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool) bool {
	for i := range spec.InitContainers {
		if f(spec.InitContainers[i].Env, spec.InitContainers[i].EnvFrom) {
			return true
		}
	}
	for i := range spec.Containers {
		if f(spec.Containers[i].Env, spec.Containers[i].EnvFrom) {
			return true
		}
	}
	for i := range spec.EphemeralContainers {
		if f(spec.EphemeralContainers[i].Env, spec.EphemeralContainers[i].EnvFrom) {
			return true
		}
	}
	return false
}

func refersToConfigMap(spec *corev1.PodSpec, name string) bool {
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		if v.ConfigMap != nil && v.ConfigMap.Name == name {
			return true
		}
		if v.Projected == nil {
			continue
		}
		for j := range v.Projected.Sources {
			if c := v.Projected.Sources[j].ConfigMap; c != nil && c.Name == name {
				return true
			}
		}
	}
	return containers(spec, func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
		for i := range env {
			if s := env[i].ValueFrom; s != nil && s.ConfigMapKeyRef != nil && s.ConfigMapKeyRef.Name == name {
				return true
			}
		}
		for i := range from {
			if from[i].ConfigMapRef != nil && from[i].ConfigMapRef.Name == name {
				return true
			}
		}
		return false
	})
}

// RefersToSecret tells whether a pod needs a secret of its namespace.
func RefersToSecret(spec *corev1.PodSpec, name string) bool {
	for i := range spec.ImagePullSecrets {
		if spec.ImagePullSecrets[i].Name == name {
			return true
		}
	}
	for i := range spec.Volumes {
		if sourceRefersToSecret(&spec.Volumes[i].VolumeSource, name) {
			return true
		}
	}
	return containers(spec, func(env []corev1.EnvVar, from []corev1.EnvFromSource) bool {
		for i := range env {
			if s := env[i].ValueFrom; s != nil && s.SecretKeyRef != nil && s.SecretKeyRef.Name == name {
				return true
			}
		}
		for i := range from {
			if from[i].SecretRef != nil && from[i].SecretRef.Name == name {
				return true
			}
		}
		return false
	})
}

func sourceRefersToSecret(s *corev1.VolumeSource, name string) bool {
	local := func(ref *corev1.LocalObjectReference) bool { return ref != nil && ref.Name == name }
	switch {
	case s.Secret != nil:
		return s.Secret.SecretName == name
	case s.Projected != nil:
		for i := range s.Projected.Sources {
			if p := s.Projected.Sources[i].Secret; p != nil && p.Name == name {
				return true
			}
		}
		return false
	case s.CSI != nil:
		return local(s.CSI.NodePublishSecretRef)
	case s.AzureFile != nil:
		return s.AzureFile.SecretName == name
	case s.CephFS != nil:
		return local(s.CephFS.SecretRef)
	case s.Cinder != nil:
		return local(s.Cinder.SecretRef)
	case s.FlexVolume != nil:
		return local(s.FlexVolume.SecretRef)
	case s.RBD != nil:
		return local(s.RBD.SecretRef)
	case s.ScaleIO != nil:
		return local(s.ScaleIO.SecretRef)
	case s.ISCSI != nil:
		return local(s.ISCSI.SecretRef)
	case s.StorageOS != nil:
		return local(s.StorageOS.SecretRef)
	}
	return false
}

// volumeRefersToSecret tells whether a node needs the secret to use the volume. Drivers whose
// references name no namespace mean that of the volume's claim.
func volumeRefersToSecret(v *corev1.PersistentVolume, namespace, name string) bool {
	claim := ""
	if v.Spec.ClaimRef != nil {
		claim = v.Spec.ClaimRef.Namespace
	}
	refers := func(ref *corev1.SecretReference) bool {
		if ref == nil || ref.Name != name {
			return false
		}
		if ref.Namespace == "" {
			return namespace == claim
		}
		return ref.Namespace == namespace
	}
	s := &v.Spec.PersistentVolumeSource
	switch {
	case s.CSI != nil:
		return refers(s.CSI.NodePublishSecretRef) || refers(s.CSI.NodeStageSecretRef) || refers(s.CSI.NodeExpandSecretRef)
	case s.AzureFile != nil:
		ref := &corev1.SecretReference{Name: s.AzureFile.SecretName}
		if s.AzureFile.SecretNamespace != nil {
			ref.Namespace = *s.AzureFile.SecretNamespace
		}
		return refers(ref)
	case s.CephFS != nil:
		return refers(s.CephFS.SecretRef)
	case s.Cinder != nil:
		return refers(s.Cinder.SecretRef)
	case s.FlexVolume != nil:
		return refers(s.FlexVolume.SecretRef)
	case s.RBD != nil:
		return refers(s.RBD.SecretRef)
	case s.ScaleIO != nil:
		return refers(s.ScaleIO.SecretRef)
	case s.ISCSI != nil:
		return refers(s.ISCSI.SecretRef)
	case s.StorageOS != nil && s.StorageOS.SecretRef != nil:
		return s.StorageOS.SecretRef.Name == name && s.StorageOS.SecretRef.Namespace == namespace
	}
	return false
}

// claimOf returns the claim that a pod's volume mounts; a generic ephemeral volume has one of
// the pod's and volume's name.
func claimOf(p *corev1.Pod, v *corev1.Volume) string {
	switch {
	case v.PersistentVolumeClaim != nil:
		return v.PersistentVolumeClaim.ClaimName
	case v.Ephemeral != nil:
		return p.Name + "-" + v.Name
	}
	return ""
}

func refersToClaim(p *corev1.Pod, name string) bool {
	for i := range p.Spec.Volumes {
		if claimOf(p, &p.Spec.Volumes[i]) == name {
			return true
		}
	}
	return false
}

// refersToResourceClaim looks for claims named in the spec and for those that were made from
// a template, whose names stand in the status.
func refersToResourceClaim(p *corev1.Pod, name string) bool {
	for i := range p.Spec.ResourceClaims {
		if n := p.Spec.ResourceClaims[i].ResourceClaimName; n != nil && *n == name {
			return true
		}
	}
	for i := range p.Status.ResourceClaimStatuses {
		if n := p.Status.ResourceClaimStatuses[i].ResourceClaimName; n != nil && *n == name {
			return true
		}
	}
	if s := p.Status.ExtendedResourceClaimStatus; s != nil && s.ResourceClaimName == name {
		return true
	}
	return false
}
