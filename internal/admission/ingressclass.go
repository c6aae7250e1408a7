package admission

import (
	"context"
	"fmt"

	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/admission"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// ingressClassAnnotation is how ingresses named their class before there was a field.
const ingressClassAnnotation = "kubernetes.io/ingress.class"

// DefaultIngressClass gives ingresses that name no class the one that is marked as default.
type DefaultIngressClass struct {
	*admission.Handler
	reader client.Reader
}

var _ admission.MutationInterface = (*DefaultIngressClass)(nil)

// NewDefaultIngressClass makes the plugin.
func NewDefaultIngressClass(reader client.Reader) *DefaultIngressClass {
	return &DefaultIngressClass{Handler: admission.NewHandler(admission.Create), reader: reader}
}

// Admit implements admission.MutationInterface.
func (d *DefaultIngressClass) Admit(ctx context.Context, a admission.Attributes, _ admission.ObjectInterfaces) error {
	ingress, ok := a.GetObject().(*networkingv1.Ingress)
	if !ok || a.GetSubresource() != "" || ingress.Spec.IngressClassName != nil {
		return nil
	}
	if _, old := ingress.Annotations[ingressClassAnnotation]; old {
		return nil
	}
	var list networkingv1.IngressClassList
	if err := d.reader.List(ctx, &list); err != nil {
		return apierrors.NewInternalError(fmt.Errorf("list IngressClasses: %w", err))
	}
	classes := make([]metav1.Object, 0, len(list.Items))
	for i := range list.Items {
		classes = append(classes, &list.Items[i])
	}
	if name := newestMarked(classes, networkingv1.AnnotationIsDefaultIngressClass); name != "" {
		ingress.Spec.IngressClassName = &name
	}
	return nil
}
