package admission

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	storagehelpers "k8s.io/component-helpers/storage/volume"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Finalizers that keep storage objects while they are used. Controllers of package protection
// remove them.
const (
	ClaimProtection           = "kubernetes.io/pvc-protection"
	VolumeProtection          = "kubernetes.io/pv-protection"
	VolumeAttributeProtection = "kubernetes.io/vac-protection"
)

// isClaim tells whether a request is about persistent volume claims.
func isClaim(a admission.Attributes) bool {
	r := a.GetResource()
	return r.Group == "" && r.Resource == "persistentvolumeclaims"
}

// DefaultStorageClass gives claims that name no class the one that is marked as default.
type DefaultStorageClass struct {
	*admission.Handler
	reader client.Reader
}

var _ admission.MutationInterface = (*DefaultStorageClass)(nil)

// NewDefaultStorageClass makes the plugin.
func NewDefaultStorageClass(reader client.Reader) *DefaultStorageClass {
	return &DefaultStorageClass{Handler: admission.NewHandler(admission.Create), reader: reader}
}

// Admit implements admission.MutationInterface.
func (d *DefaultStorageClass) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	claim, ok := a.GetObject().(*corev1.PersistentVolumeClaim)
	if !ok || a.GetSubresource() != "" || storagehelpers.PersistentVolumeClaimHasClass(claim) {
		return nil
	}
	var list storagev1.StorageClassList
	if err := d.reader.List(ctx, &list); err != nil {
		return apierrors.NewInternalError(fmt.Errorf("list StorageClasses: %w", err))
	}
	classes := make([]metav1.Object, 0, len(list.Items))
	for i := range list.Items {
		classes = append(classes, &list.Items[i])
	}
	if name := newestMarked(classes, "storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"); name != "" {
		claim.Spec.StorageClassName = &name
	}
	return nil
}

// newestMarked names the class that carries one of the annotations as "true"; of several the
// newest, of equally old ones the first. It is empty if there is none.
func newestMarked(classes []metav1.Object, annotations ...string) string {
	var found metav1.Object
	for _, class := range classes {
		if !slices.ContainsFunc(annotations, func(key string) bool { return class.GetAnnotations()[key] == "true" }) {
			continue
		}
		if found == nil {
			found = class
			continue
		}
		age := class.GetCreationTimestamp().Compare(found.GetCreationTimestamp().Time)
		if age > 0 || (age == 0 && class.GetName() < found.GetName()) {
			found = class
		}
	}
	if found == nil {
		return ""
	}
	return found.GetName()
}

// StorageObjectInUseProtection marks new claims, volumes and classes of volume attributes so that
// they stay for as long as something uses them.
type StorageObjectInUseProtection struct{ *admission.Handler }

var _ admission.MutationInterface = StorageObjectInUseProtection{}

// NewStorageObjectInUseProtection makes the plugin.
func NewStorageObjectInUseProtection() StorageObjectInUseProtection {
	return StorageObjectInUseProtection{admission.NewHandler(admission.Create)}
}

// Admit implements admission.MutationInterface.
func (StorageObjectInUseProtection) Admit(_ context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	if a.GetSubresource() != "" {
		return nil
	}
	var finalizer string
	switch a.GetObject().(type) {
	case *corev1.PersistentVolumeClaim:
		finalizer = ClaimProtection
	case *corev1.PersistentVolume:
		finalizer = VolumeProtection
	case *storagev1.VolumeAttributesClass:
		finalizer = VolumeAttributeProtection
	default:
		return nil
	}
	if m, ok := a.GetObject().(metav1.Object); ok && !slices.Contains(m.GetFinalizers(), finalizer) {
		m.SetFinalizers(append(m.GetFinalizers(), finalizer))
	}
	return nil
}

// PersistentVolumeClaimResize lets a claim grow only if it is bound and its class allows it.
type PersistentVolumeClaimResize struct {
	*admission.Handler
	reader client.Reader
}

var _ admission.ValidationInterface = (*PersistentVolumeClaimResize)(nil)

// NewPersistentVolumeClaimResize makes the plugin.
func NewPersistentVolumeClaimResize(reader client.Reader) *PersistentVolumeClaimResize {
	return &PersistentVolumeClaimResize{Handler: admission.NewHandler(admission.Update), reader: reader}
}

// Validate implements admission.ValidationInterface.
func (p *PersistentVolumeClaimResize) Validate(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	claim, ok := a.GetObject().(*corev1.PersistentVolumeClaim)
	old, was := a.GetOldObject().(*corev1.PersistentVolumeClaim)
	if !ok || !was || a.GetSubresource() != "" {
		return nil
	}
	size, before := claim.Spec.Resources.Requests[corev1.ResourceStorage], old.Spec.Resources.Requests[corev1.ResourceStorage]
	if size.Cmp(before) <= 0 {
		return nil
	}
	if old.Status.Phase != corev1.ClaimBound {
		//lint:ignore ST1005 stock's words, which clients show
		return admission.NewForbidden(a, errors.New("Only bound persistent volume claims can be expanded"))
	}
	name := storagehelpers.GetPersistentVolumeClaimClass(claim)
	if name != "" && name == storagehelpers.GetPersistentVolumeClaimClass(old) {
		var class storagev1.StorageClass
		err := p.reader.Get(ctx, client.ObjectKey{Name: name}, &class)
		if err == nil && class.AllowVolumeExpansion != nil && *class.AllowVolumeExpansion {
			return nil
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return apierrors.NewInternalError(fmt.Errorf("read StorageClass %s: %w", name, err))
		}
	}
	return admission.NewForbidden(a, errors.New("only dynamically provisioned pvc can be resized and "+
		"the storageclass that provisions the pvc must support resize"))
}
