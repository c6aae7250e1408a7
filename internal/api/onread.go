package api

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	netutils "k8s.io/utils/net"
)

// completeService fills in what Services kept by old releases lack: the plural of clusterIP,
// and the IP families. It drops an internal traffic policy from external names, where one was
// once defaulted by mistake.
func completeService(obj runtime.Object) {
	service, ok := obj.(*corev1.Service)
	if !ok {
		return
	}
	spec := &service.Spec
	if spec.ClusterIP != "" && len(spec.ClusterIPs) == 0 {
		spec.ClusterIPs = []string{spec.ClusterIP}
	}
	if spec.Type == corev1.ServiceTypeExternalName {
		spec.InternalTrafficPolicy = nil
		return
	}
	if len(spec.IPFamilies) > 0 || len(spec.ClusterIPs) == 0 {
		return
	}
	single, dual := corev1.IPFamilyPolicySingleStack, corev1.IPFamilyPolicyRequireDualStack
	switch {
	case spec.ClusterIP == corev1.ClusterIPNone && len(spec.Selector) == 0:
		// Nobody can tell what its endpoints will be.
		spec.IPFamilyPolicy = &dual
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	case spec.ClusterIP == corev1.ClusterIPNone:
		spec.IPFamilyPolicy = &single
		spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol}
	default:
		for _, ip := range spec.ClusterIPs {
			family := corev1.IPv4Protocol
			if netutils.IsIPv6String(ip) {
				family = corev1.IPv6Protocol
			}
			spec.IPFamilies = append(spec.IPFamilies, family)
		}
		spec.IPFamilyPolicy = &single
		if len(spec.IPFamilies) > 1 {
			spec.IPFamilyPolicy = &dual
		}
	}
}

// completeClaim gives claims kept by old releases both spellings of their data source.
func completeClaim(obj runtime.Object) {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return
	}
	spec := &claim.Spec
	switch {
	case spec.DataSource != nil && spec.DataSourceRef == nil:
		spec.DataSourceRef = &corev1.TypedObjectReference{
			APIGroup: spec.DataSource.APIGroup, Kind: spec.DataSource.Kind, Name: spec.DataSource.Name,
		}
	case spec.DataSourceRef != nil && spec.DataSource == nil && spec.DataSourceRef.Namespace == nil:
		spec.DataSource = &corev1.TypedLocalObjectReference{
			APIGroup: spec.DataSourceRef.APIGroup, Kind: spec.DataSourceRef.Kind, Name: spec.DataSourceRef.Name,
		}
	}
}

// completeStatefulSet says of each claim template what it is. The stored form has no place for
// that, and a stock API server shows it.
func completeStatefulSet(obj runtime.Object) {
	set, ok := obj.(*appsv1.StatefulSet)
	if !ok {
		return
	}
	for i := range set.Spec.VolumeClaimTemplates {
		set.Spec.VolumeClaimTemplates[i].SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("PersistentVolumeClaim"))
	}
}
