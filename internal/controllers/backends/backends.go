// Package backends finds out which pods stand behind a service, and in which state. The
// controllers of EndpointSlices and of the older Endpoints both publish what it finds.
package backends

import (
	"context"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	podutil "barque.dev/internal/controllers/pods"
)

// A Port is one of a service's, as the pod behind it serves it.
type Port struct {
	Name        string
	Protocol    corev1.Protocol
	Port        int32
	AppProtocol string
}

// A Backend is a pod behind a service.
type Backend struct {
	Pod *corev1.Pod
	// IP is the pod's address of the family asked for.
	IP netip.Addr
	// Ports are the service's, resolved for this pod; those it does not have are left out.
	Ports []Port
	// Serving: the pod passes its readiness checks, or the service does not ask for that.
	Serving bool
	// Terminating: the pod was told to stop.
	Terminating bool
	// Hostname is the pod's name in the service's DNS; empty for none.
	Hostname string
}

// Ready tells whether new connections should go to the backend.
func (b *Backend) Ready(s *corev1.Service) bool {
	return b.Serving && (!b.Terminating || s.Spec.PublishNotReadyAddresses)
}

// Of lists the pods behind a service, in an order that does not change by itself. families
// says which address families.
func Of(s *corev1.Service, pods []corev1.Pod, family corev1.IPFamily) []Backend {
	var backends []Backend
	for i := range pods {
		p := &pods[i]
		ip, ok := address(p, family)
		if !ok || p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded {
			continue
		}
		b := Backend{
			Pod: p, IP: ip, Ports: ports(s, p),
			Serving:     podutil.Ready(p) || s.Spec.PublishNotReadyAddresses,
			Terminating: p.DeletionTimestamp != nil,
		}
		if p.Spec.Hostname != "" && p.Spec.Subdomain == s.Name {
			b.Hostname = p.Spec.Hostname
		}
		backends = append(backends, b)
	}
	slices.SortFunc(backends, func(a, b Backend) int { return strings.Compare(a.Pod.Name, b.Pod.Name) })
	return backends
}

func address(p *corev1.Pod, family corev1.IPFamily) (netip.Addr, bool) {
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil && a.Is4() == (family == corev1.IPv4Protocol) {
			return a, true
		}
	}
	return netip.Addr{}, false
}

func ports(s *corev1.Service, p *corev1.Pod) []Port {
	var out []Port
	for i := range s.Spec.Ports {
		sp := &s.Spec.Ports[i]
		number, ok := resolve(sp, p)
		if !ok {
			continue
		}
		port := Port{Name: sp.Name, Protocol: sp.Protocol, Port: number}
		if sp.AppProtocol != nil {
			port.AppProtocol = *sp.AppProtocol
		}
		out = append(out, port)
	}
	return out
}

// resolve finds the number that a service port's target has in this pod.
func resolve(sp *corev1.ServicePort, p *corev1.Pod) (int32, bool) {
	if sp.TargetPort.Type == intstr.Int {
		return sp.TargetPort.IntVal, true
	}
	sidecar := func(c *corev1.Container) bool {
		return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
	}
	find := func(containers []corev1.Container, use func(*corev1.Container) bool) (int32, bool) {
		for i := range containers {
			for _, cp := range containers[i].Ports {
				if use(&containers[i]) && cp.Name == sp.TargetPort.StrVal && cp.Protocol == sp.Protocol {
					return cp.ContainerPort, true
				}
			}
		}
		return 0, false
	}
	if n, ok := find(p.Spec.Containers, func(*corev1.Container) bool { return true }); ok {
		return n, true
	}
	return find(p.Spec.InitContainers, sidecar)
}

// Pods lists the pods that a service selects.
func Pods(ctx context.Context, c client.Client, s *corev1.Service) ([]corev1.Pod, error) {
	var pods corev1.PodList
	err := c.List(ctx, &pods, client.InNamespace(s.Namespace), client.MatchingLabels(s.Spec.Selector))
	if err != nil {
		return nil, fmt.Errorf("list the pods of service %s/%s: %w", s.Namespace, s.Name, err)
	}
	return pods.Items, nil
}

// Managed tells whether the endpoints of a service follow from its selector.
func Managed(s *corev1.Service) bool {
	return len(s.Spec.Selector) > 0 && s.Spec.Type != corev1.ServiceTypeExternalName
}

// Watches wakes a controller for every service that a change concerns. output is the kind that
// it publishes, so that its own work is mended when somebody else damages it, and name finds
// the service of one.
func Watches(deps kit.Deps, output client.Object, name func(client.Object) string) []kit.Watch {
	return []kit.Watch{
		{Kind: &corev1.Service{}, Requests: kit.Self},
		{Kind: &corev1.Pod{}, Requests: func(e barqueclient.Event) []reconcile.Request { return concerned(deps, e) }},
		{Kind: output, Requests: func(e barqueclient.Event) []reconcile.Request {
			service := name(e.Object())
			if service == "" || e.Old == nil {
				return nil
			}
			return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: e.Object().GetNamespace(), Name: service}}}
		}},
	}
}

// concerned lists the services that a pod's change is about.
func concerned(deps kit.Deps, e barqueclient.Event) []reconcile.Request {
	var before, after *corev1.Pod
	if e.Old != nil {
		before = e.Old.(*corev1.Pod)
	}
	if e.New != nil {
		after = e.New.(*corev1.Pod)
	}
	if before != nil && after != nil && same(before, after) {
		return nil
	}
	return kit.Where(deps, &corev1.ServiceList{}, func(s *corev1.Service) bool {
		return Managed(s) && kit.Concerns(labels.SelectorFromSet(s.Spec.Selector), e)
	}, client.InNamespace(e.Object().GetNamespace()))
}

// same tells whether a pod's change makes no difference to any service.
func same(a, b *corev1.Pod) bool {
	return reflect.DeepEqual(a.Labels, b.Labels) && slices.Equal(a.Status.PodIPs, b.Status.PodIPs) &&
		podutil.Ready(a) == podutil.Ready(b) && a.Status.Phase == b.Status.Phase &&
		(a.DeletionTimestamp == nil) == (b.DeletionTimestamp == nil) &&
		a.Spec.NodeName == b.Spec.NodeName
}

// OwnerReference makes a published object go with its service.
func OwnerReference(s *corev1.Service) metav1.OwnerReference {
	return *metav1.NewControllerRef(s, corev1.SchemeGroupVersion.WithKind("Service"))
}
