package registry

import (
	"context"
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// defaultServiceCIDR is the ServiceCIDR of the configured ranges.
const defaultServiceCIDR = "kubernetes"

// Bootstrap creates what every cluster has: the system namespaces, the ServiceCIDR of the
// configured ranges, and the Service "kubernetes", whose address is the first of the primary
// range. What exists is left as it is, so that every server may call it at every start.
func (r *Registry) Bootstrap(ctx context.Context) error {
	ctx = asServer(ctx)
	for _, name := range []string{metav1.NamespaceSystem, metav1.NamespacePublic, corev1.NamespaceNodeLease, metav1.NamespaceDefault} {
		ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}
		if err := r.ensure(ctx, corev1.SchemeGroupVersion.WithResource("namespaces"), "", ns, nil); err != nil {
			return err
		}
	}
	cidrs := &networkingv1.ServiceCIDR{ObjectMeta: metav1.ObjectMeta{Name: defaultServiceCIDR}}
	for _, p := range r.ips.ranges {
		cidrs.Spec.CIDRs = append(cidrs.Spec.CIDRs, p.Masked().String())
	}
	if err := r.ensure(ctx, networkingv1.SchemeGroupVersion.WithResource("servicecidrs"), "", cidrs, r.readyCIDR); err != nil {
		return err
	}
	return r.ensure(ctx, corev1.SchemeGroupVersion.WithResource("services"), metav1.NamespaceDefault, r.kubernetesService(), nil)
}

// ensure creates an object unless it exists; then, if given, is called with what was created.
func (r *Registry) ensure(ctx context.Context, gvr schema.GroupVersionResource, namespace string, obj runtime.Object, then func(context.Context, Result) error) error {
	res, ok := r.Lookup(gvr)
	if !ok {
		return fmt.Errorf("bootstrap: %s are not served", gvr)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return fmt.Errorf("bootstrap %s: %w", gvr.Resource, err)
	}
	req := Request{Resource: res, Version: gvr.Version, Namespace: namespace, Name: m.GetName()}
	if _, ok := r.Table(res.GroupResource).Get(req.key()); ok {
		return nil
	}
	obj.GetObjectKind().SetGroupVersionKind(req.kind())
	res.Codec().Default(obj)
	result, err := r.Create(ctx, req, obj, nil)
	if err != nil {
		// Another server may have made it, of which this one has seen a part, such as the address that it holds.
		if r.CatchUp(ctx) == nil {
			if _, ok := r.Table(res.GroupResource).Get(req.key()); ok {
				return nil
			}
		}
		return fmt.Errorf("bootstrap %s %s: %w", gvr.Resource, req.Name, err)
	}
	if then == nil {
		return nil
	}
	return then(ctx, result)
}

// readyCIDR tells that addresses may be allocated from the configured ranges.
func (r *Registry) readyCIDR(ctx context.Context, result Result) error {
	obj, err := result.Get()
	if err != nil {
		return fmt.Errorf("bootstrap service CIDR: %w", err)
	}
	cidr, ok := obj.DeepCopyObject().(*networkingv1.ServiceCIDR)
	if !ok {
		return fmt.Errorf("bootstrap service CIDR: it is a %T", obj)
	}
	meta.SetStatusCondition(&cidr.Status.Conditions, metav1.Condition{
		Type: networkingv1.ServiceCIDRConditionReady, Status: metav1.ConditionTrue,
		Message: "Kubernetes default Service CIDR is ready",
	})
	res, _ := r.Lookup(networkingv1.SchemeGroupVersion.WithResource("servicecidrs"))
	req := Request{Resource: res, Version: "v1", Subresource: "status", Name: defaultServiceCIDR}
	if _, _, err := r.Update(ctx, req, cidr, nil); err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("bootstrap service CIDR: %w", err)
	}
	return nil
}

// kubernetesService is the API servers' own Service. Its endpoints are the servers' business.
func (r *Registry) kubernetesService() *corev1.Service {
	ip := firstServiceIP(r.ips.ranges[0])
	port := r.cfg.ServerPort
	if port == 0 {
		port = 6443
	}
	return &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{
			Name: "kubernetes", Namespace: metav1.NamespaceDefault,
			Labels: map[string]string{"provider": "kubernetes", "component": "apiserver"},
		},
		Spec: corev1.ServiceSpec{
			Type: corev1.ServiceTypeClusterIP, ClusterIP: ip.String(), ClusterIPs: []string{ip.String()},
			SessionAffinity: corev1.ServiceAffinityNone,
			Ports: []corev1.ServicePort{{
				Name: "https", Protocol: corev1.ProtocolTCP, Port: 443, TargetPort: intstr.FromInt32(port),
			}},
		},
	}
}

// firstServiceIP is the address of the Service "kubernetes".
func firstServiceIP(p netip.Prefix) netip.Addr {
	first, _ := usable(p)
	return first
}
