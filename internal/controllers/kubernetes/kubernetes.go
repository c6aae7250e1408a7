// Package kubernetes keeps the endpoints of the service default/kubernetes, through which pods
// reach the API: the servers that live, as their identity Leases in kube-system tell.
package kubernetes

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// How servers announce themselves, in Leases in kube-system.
const (
	// IdentityLabel and IdentityValue mark a server's identity Lease.
	IdentityLabel = "apiserver.kubernetes.io/identity"
	IdentityValue = "barque"
	// AddressAnnotation holds the host and port that the server is reached at.
	AddressAnnotation = "barque.dev/address"

	service = "kubernetes"
)

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	one := func(e barqueclient.Event) []reconcile.Request {
		lease := e.Object().(*coordinationv1.Lease)
		if lease.Labels[IdentityLabel] != IdentityValue {
			return nil
		}
		return []reconcile.Request{{}}
	}
	return kit.Controller{
		Name:    "kubernetes-service",
		Account: "endpointslice-controller",
		Watches: []kit.Watch{{Kind: &coordinationv1.Lease{}, Requests: one}},
		Workers: 1,
		Reconcile: func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
			return ensure(ctx, deps.Client, deps.Clock.Now())
		},
	}
}

func ensure(ctx context.Context, c client.Client, now time.Time) (reconcile.Result, error) {
	var leases coordinationv1.LeaseList
	err := c.List(ctx, &leases, client.InNamespace(metav1.NamespaceSystem), client.MatchingLabels{IdentityLabel: IdentityValue})
	if err != nil {
		return reconcile.Result{}, err
	}
	servers, next := alive(leases.Items, now)
	if len(servers) == 0 {
		// This one lives, so the leases lag: emptying the service would cut everybody off.
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	err = errors.Join(ensureSlice(ctx, c, servers), ensureEndpoints(ctx, c, servers))
	return reconcile.Result{RequeueAfter: next}, err
}

// alive returns the addresses of the servers whose lease holds, sorted, and how long until the
// next one runs out.
func alive(leases []coordinationv1.Lease, now time.Time) ([]netip.AddrPort, time.Duration) {
	var servers []netip.AddrPort
	next := time.Minute
	for i := range leases {
		l := &leases[i]
		addr, err := netip.ParseAddrPort(l.Annotations[AddressAnnotation])
		if err != nil || l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil {
			continue
		}
		left := l.Spec.RenewTime.Add(time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second).Sub(now)
		if left <= 0 {
			continue
		}
		servers = append(servers, addr)
		next = min(next, left+100*time.Millisecond)
	}
	slices.SortFunc(servers, func(a, b netip.AddrPort) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(servers), next
}

func ensureSlice(ctx context.Context, c client.Client, servers []netip.AddrPort) error {
	want := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: service, Labels: map[string]string{
			discoveryv1.LabelServiceName: service,
		}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports: []discoveryv1.EndpointPort{{
			Name: ptr.To("https"), Port: ptr.To(int32(servers[0].Port())), Protocol: ptr.To(corev1.ProtocolTCP),
		}},
	}
	if servers[0].Addr().Is6() {
		want.AddressType = discoveryv1.AddressTypeIPv6
	}
	for _, s := range servers {
		want.Endpoints = append(want.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{s.Addr().String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)},
		})
	}
	var have discoveryv1.EndpointSlice
	err := c.Get(ctx, client.ObjectKeyFromObject(want), &have)
	switch {
	case apierrors.IsNotFound(err):
		err = c.Create(ctx, want)
	case err == nil && !(equality.Semantic.DeepEqual(have.Endpoints, want.Endpoints) && equality.Semantic.DeepEqual(have.Ports, want.Ports)):
		changed := have.DeepCopy()
		changed.Endpoints, changed.Ports = want.Endpoints, want.Ports
		err = c.Update(ctx, changed)
	}
	if err != nil {
		return fmt.Errorf("publish the servers in EndpointSlice %s: %w", service, err)
	}
	return nil
}

// ensureEndpoints serves those who still read the older kind.
func ensureEndpoints(ctx context.Context, c client.Client, servers []netip.AddrPort) error {
	//nolint:staticcheck // Endpoints is deprecated, but stock still publishes this one.
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Namespace: metav1.NamespaceDefault, Name: service,
		// The slice is written beside it: nobody shall mirror this object into another.
		Labels: map[string]string{discoveryv1.LabelSkipMirror: strconv.FormatBool(true)},
	}}
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: int32(servers[0].Port()), Protocol: corev1.ProtocolTCP}}} //nolint:staticcheck // as above
	for _, s := range servers {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: s.Addr().String()})
	}
	want.Subsets = append(want.Subsets, subset)

	var have corev1.Endpoints //nolint:staticcheck // as above
	err := c.Get(ctx, client.ObjectKeyFromObject(want), &have)
	switch {
	case apierrors.IsNotFound(err):
		err = c.Create(ctx, want)
	case err == nil && !equality.Semantic.DeepEqual(have.Subsets, want.Subsets):
		changed := have.DeepCopy()
		changed.Subsets = want.Subsets
		err = c.Update(ctx, changed)
	}
	if err != nil {
		return fmt.Errorf("publish the servers in Endpoints %s: %w", service, err)
	}
	return nil
}
