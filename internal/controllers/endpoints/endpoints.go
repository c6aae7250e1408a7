// Package endpoints publishes the pods behind each service as Endpoints, the older kind that
// some programs still read. EndpointSlices are what proxies and DNS use.
//
//lint:file-ignore SA1019 Endpoints is deprecated by upstream, and served all the same.
package endpoints

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/backends"
	"barque.dev/internal/controllers/kit"
)

const (
	// capacity is how many addresses an object holds; what is over is cut (stock's bound).
	capacity = 1000
	// managedBy keeps others from mirroring the object into slices.
	managedBy      = "endpoint-controller"
	managedByLabel = "endpoints.kubernetes.io/managed-by"
)

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	return kit.Controller{
		Name: "endpoint",
		Watches: backends.Watches(deps, &corev1.Endpoints{}, func(obj client.Object) string {
			if obj.GetLabels()[managedByLabel] != managedBy {
				return ""
			}
			return obj.GetName()
		}),
		Reconcile: func(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
			return reconcile.Result{}, ensure(ctx, deps, req)
		},
	}
}

func ensure(ctx context.Context, deps kit.Deps, req reconcile.Request) error {
	c := deps.Client
	var s corev1.Service
	err := c.Get(ctx, req.NamespacedName, &s)
	if apierrors.IsNotFound(err) {
		if err := deps.CatchUp(ctx); err != nil {
			return fmt.Errorf("make sure that service %s is gone: %w", req.NamespacedName, err)
		}
		err = c.Get(ctx, req.NamespacedName, &s)
	}
	if apierrors.IsNotFound(err) {
		// Also what somebody wrote by hand: as with stock, a service's endpoints go with it.
		gone := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: req.Namespace, Name: req.Name}}
		return client.IgnoreNotFound(c.Delete(ctx, gone))
	} else if err != nil {
		return err
	}
	if !backends.Managed(&s) || s.DeletionTimestamp != nil {
		return nil
	}
	pods, err := backends.Pods(ctx, c, &s)
	if err != nil {
		return err
	}
	family := corev1.IPv4Protocol
	if len(s.Spec.IPFamilies) > 0 {
		family = s.Spec.IPFamilies[0]
	}
	want := desired(&s, backends.Of(&s, pods, family))
	var have corev1.Endpoints
	err = c.Get(ctx, req.NamespacedName, &have)
	switch {
	case apierrors.IsNotFound(err):
		err = c.Create(ctx, want)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
	case err == nil && !(equality.Semantic.DeepEqual(have.Subsets, want.Subsets) && equality.Semantic.DeepEqual(have.Labels, want.Labels)):
		changed := have.DeepCopy()
		changed.Subsets, changed.Labels, changed.Annotations = want.Subsets, want.Labels, want.Annotations
		err = c.Update(ctx, changed)
	}
	if err != nil {
		return fmt.Errorf("publish the endpoints of service %s/%s: %w", s.Namespace, s.Name, err)
	}
	return nil
}

// desired is a service's object: a subset for each set of ports.
func desired(s *corev1.Service, all []backends.Backend) *corev1.Endpoints {
	e := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{Namespace: s.Namespace, Name: s.Name, Labels: map[string]string{}}}
	for k, v := range s.Labels {
		e.Labels[k] = v
	}
	e.Labels[managedByLabel] = managedBy
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		e.Labels[corev1.IsHeadlessService] = ""
	}
	if len(all) > capacity {
		all = all[:capacity]
		e.Annotations = map[string]string{corev1.EndpointsOverCapacity: "truncated"}
	}
	for i := range all {
		b := &all[i]
		if b.Terminating && !s.Spec.PublishNotReadyAddresses {
			continue
		}
		addAddress(e, s, b)
	}
	for i := range e.Subsets {
		for _, list := range [][]corev1.EndpointAddress{e.Subsets[i].Addresses, e.Subsets[i].NotReadyAddresses} {
			slices.SortFunc(list, func(a, b corev1.EndpointAddress) int { return cmp.Compare(a.IP, b.IP) })
		}
	}
	return e
}

func addAddress(e *corev1.Endpoints, s *corev1.Service, b *backends.Backend) {
	var ports []corev1.EndpointPort
	for _, p := range b.Ports {
		ep := corev1.EndpointPort{Name: p.Name, Port: p.Port, Protocol: p.Protocol}
		if p.AppProtocol != "" {
			ep.AppProtocol = ptr.To(p.AppProtocol)
		}
		ports = append(ports, ep)
	}
	slices.SortFunc(ports, func(a, b corev1.EndpointPort) int {
		return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.Port, b.Port), cmp.Compare(a.Protocol, b.Protocol))
	})
	if len(ports) == 0 && len(s.Spec.Ports) > 0 {
		return // the pod serves none of the ports
	}
	i := slices.IndexFunc(e.Subsets, func(sub corev1.EndpointSubset) bool { return equality.Semantic.DeepEqual(sub.Ports, ports) })
	if i < 0 {
		i = len(e.Subsets)
		e.Subsets = append(e.Subsets, corev1.EndpointSubset{Ports: ports})
	}
	address := corev1.EndpointAddress{
		IP: b.IP.String(), Hostname: b.Hostname,
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: b.Pod.Namespace, Name: b.Pod.Name, UID: b.Pod.UID},
	}
	if b.Pod.Spec.NodeName != "" {
		address.NodeName = ptr.To(b.Pod.Spec.NodeName)
	}
	sub := &e.Subsets[i]
	if b.Ready(s) {
		sub.Addresses = append(sub.Addresses, address)
	} else {
		sub.NotReadyAddresses = append(sub.NotReadyAddresses, address)
	}
}
