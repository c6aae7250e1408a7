//lint:file-ignore SA1019 Endpoints is deprecated, but stock still publishes this one.

// Package kubernetes keeps the endpoints of the service default/kubernetes, through which pods
// reach the API: the servers that live.
//
// A server lives while it holds its identity Lease in kube-system, which lasts for seconds after
// its death. So the leader also knocks at every server's door twice a second: one that refuses,
// or stays silent three times, leaves the service at once, and returns when it has renewed its
// lease since and answers again. A server that is merely busy keeps its place, since the
// kernel accepts connections for it.
//
// A server that listens on a loopback address alone, as one that is being measured does, has nothing
// that pods could reach: the service then has no endpoints.
package kubernetes

import (
	"cmp"
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
	"barque.dev/internal/cluster/liveness"
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

// Prober tries servers; *liveness.Tracker is one.
type Prober interface {
	// Knock tells what becomes of a connection attempt, within a bound of its own.
	Knock(ctx context.Context, addr netip.AddrPort) liveness.Reply
}

type controller struct {
	deps   kit.Deps
	prober Prober
	watch  lookout
	// withdrawn says that no server has an address to publish, which is said once.
	withdrawn bool
}

// New makes the controller.
func New(deps kit.Deps, prober Prober) kit.Controller {
	c := &controller{deps: deps, prober: prober}
	return kit.Controller{
		Name:      "kubernetes-service",
		Account:   "endpointslice-controller",
		Watches:   []kit.Watch{{Kind: &coordinationv1.Lease{}, Requests: fromLease}},
		Source:    c.probe,
		Workers:   1,
		Reconcile: func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) { return c.ensure(ctx) },
	}
}

// fromLease is woken by servers' leases. Of one that stays as it is but for its renewal, only
// the return of a server that was seen dead can change anything, and probe sees to that.
func fromLease(e barqueclient.Event) []reconcile.Request {
	if e.Object().GetLabels()[IdentityLabel] != IdentityValue {
		return nil
	}
	before, _ := e.Old.(*coordinationv1.Lease)
	after, _ := e.New.(*coordinationv1.Lease)
	if before != nil && after != nil && before.Annotations[AddressAnnotation] == after.Annotations[AddressAnnotation] && holds(before, after) {
		return nil
	}
	return []reconcile.Request{{}}
}

// holds tells whether a lease was renewed before it ran out.
func holds(before, after *coordinationv1.Lease) bool {
	end, ok := expiry(before)
	return ok && after.Spec.RenewTime != nil && after.Spec.RenewTime.Time.Before(end)
}

func (c *controller) leases(ctx context.Context) ([]coordinationv1.Lease, error) {
	var leases coordinationv1.LeaseList
	err := c.deps.Client.List(ctx, &leases, client.InNamespace(metav1.NamespaceSystem), client.MatchingLabels{IdentityLabel: IdentityValue})
	if err != nil {
		return nil, fmt.Errorf("list the servers' leases: %w", err)
	}
	return leases.Items, nil
}

func (c *controller) ensure(ctx context.Context) (reconcile.Result, error) {
	leases, err := c.leases(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	living, next := alive(leases, c.deps.Clock.Now())
	public := publishable(living)
	if len(living) > 0 && len(public) == 0 {
		return reconcile.Result{RequeueAfter: next}, c.withdraw(ctx, living)
	}
	c.withdrawn = false
	servers := c.watch.present(public)
	if len(servers) == 0 {
		// This one lives, so the leases lag: emptying the service would cut everybody off.
		return reconcile.Result{RequeueAfter: time.Second}, nil
	}
	err = errors.Join(ensureSlice(ctx, c.deps.Client, servers), ensureEndpoints(ctx, c.deps.Client, servers))
	return reconcile.Result{RequeueAfter: next}, err
}

// server is one that holds its lease.
type server struct {
	addr    netip.AddrPort
	renewed time.Time
}

func expiry(l *coordinationv1.Lease) (time.Time, bool) {
	if l.Spec.RenewTime == nil || l.Spec.LeaseDurationSeconds == nil {
		return time.Time{}, false
	}
	return l.Spec.RenewTime.Add(time.Duration(*l.Spec.LeaseDurationSeconds) * time.Second), true
}

// alive returns the servers whose lease holds, sorted, and how long until the next lease runs
// out.
func alive(leases []coordinationv1.Lease, now time.Time) ([]server, time.Duration) {
	var servers []server
	next := time.Minute
	for i := range leases {
		l := &leases[i]
		addr, err := netip.ParseAddrPort(l.Annotations[AddressAnnotation])
		end, ok := expiry(l)
		if err != nil || !ok || !end.After(now) {
			continue
		}
		servers = append(servers, server{addr, l.Spec.RenewTime.Time})
		next = min(next, end.Sub(now)+100*time.Millisecond)
	}
	slices.SortFunc(servers, func(a, b server) int {
		return cmp.Or(strings.Compare(a.addr.String(), b.addr.String()), b.renewed.Compare(a.renewed))
	})
	return slices.CompactFunc(servers, func(a, b server) bool { return a.addr == b.addr }), next
}

// publishable returns the servers at addresses that endpoints may have.
func publishable(servers []server) []server {
	var out []server
	for _, s := range servers {
		if a := s.addr.Addr(); !a.IsLoopback() && !a.IsUnspecified() && !a.IsLinkLocalUnicast() && !a.IsLinkLocalMulticast() {
			out = append(out, s)
		}
	}
	return out
}

// withdraw removes what was published before the servers had only addresses that can't be.
func (c *controller) withdraw(ctx context.Context, servers []server) error {
	if c.withdrawn {
		return nil
	}
	meta := metav1.ObjectMeta{Namespace: metav1.NamespaceDefault, Name: service}
	for _, obj := range []client.Object{&discoveryv1.EndpointSlice{ObjectMeta: meta}, &corev1.Endpoints{ObjectMeta: meta}} {
		if err := client.IgnoreNotFound(c.deps.Client.Delete(ctx, obj)); err != nil {
			return fmt.Errorf("withdraw %T %s: %w", obj, service, err)
		}
	}
	c.withdrawn = true
	c.deps.Log.Info("no server has an address that pods can reach: the service default/kubernetes has no endpoints",
		"address", servers[0].addr.String())
	return nil
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
	want := &corev1.Endpoints{ObjectMeta: metav1.ObjectMeta{
		Namespace: metav1.NamespaceDefault, Name: service,
		// The slice is written beside it: nobody shall mirror this object into another.
		Labels: map[string]string{discoveryv1.LabelSkipMirror: strconv.FormatBool(true)},
	}}
	subset := corev1.EndpointSubset{Ports: []corev1.EndpointPort{{Name: "https", Port: int32(servers[0].Port()), Protocol: corev1.ProtocolTCP}}}
	for _, s := range servers {
		subset.Addresses = append(subset.Addresses, corev1.EndpointAddress{IP: s.Addr().String()})
	}
	want.Subsets = append(want.Subsets, subset)

	var have corev1.Endpoints
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
