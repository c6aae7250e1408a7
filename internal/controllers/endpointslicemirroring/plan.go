//lint:file-ignore SA1019 Endpoints is deprecated by upstream, and served all the same.

package endpointslicemirroring

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// capacity is how many addresses of a subset are mirrored, and how many endpoints a slice may
// hold (stock's bounds).
const capacity = 1000

// plan is what to write.
type plan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

// decide compares the slices that Endpoints need with those that there are. A slice is found
// again by its ports and address type.
func decide(want []*discoveryv1.EndpointSlice, have []discoveryv1.EndpointSlice) plan {
	var p plan
	old := map[string][]*discoveryv1.EndpointSlice{}
	for i := range have {
		key := keyOf(have[i].AddressType, have[i].Ports)
		old[key] = append(old[key], &have[i])
	}
	for _, w := range want {
		key := keyOf(w.AddressType, w.Ports)
		if len(old[key]) == 0 {
			p.create = append(p.create, w)
			continue
		}
		h := old[key][0]
		old[key] = old[key][1:]
		if equality.Semantic.DeepEqual(h.Endpoints, w.Endpoints) && equality.Semantic.DeepEqual(h.Labels, w.Labels) &&
			equality.Semantic.DeepEqual(h.Annotations, w.Annotations) {
			continue
		}
		fresh := h.DeepCopy()
		fresh.Endpoints, fresh.Labels, fresh.Annotations, fresh.OwnerReferences = w.Endpoints, w.Labels, w.Annotations, w.OwnerReferences
		p.update = append(p.update, fresh)
	}
	for _, left := range old {
		p.remove = append(p.remove, left...)
	}
	slices.SortFunc(p.remove, func(a, b *discoveryv1.EndpointSlice) int { return strings.Compare(a.Name, b.Name) })
	return p
}

// desired lists the slices for Endpoints: one or more for each set of ports and address family.
func desired(e *corev1.Endpoints) []*discoveryv1.EndpointSlice {
	var order []string
	groups := map[string]*discoveryv1.EndpointSlice{}
	for i := range e.Subsets {
		sub := &e.Subsets[i]
		ports := portsOf(sub)
		left := capacity
		add := func(list []corev1.EndpointAddress, ready bool) {
			for j := range list {
				endpoint, kind, ok := endpointOf(&list[j], ready)
				if !ok || left == 0 {
					continue
				}
				left--
				key := keyOf(kind, ports)
				if groups[key] == nil {
					order = append(order, key)
					groups[key] = newSlice(e, kind, ports)
				}
				groups[key].Endpoints = append(groups[key].Endpoints, endpoint)
			}
		}
		add(sub.Addresses, true)
		add(sub.NotReadyAddresses, false)
	}
	var out []*discoveryv1.EndpointSlice
	for _, key := range order {
		g := groups[key]
		for part := range slices.Chunk(g.Endpoints, capacity) {
			s := g.DeepCopy()
			s.Endpoints = slices.Clone(part)
			out = append(out, s)
		}
	}
	return out
}

func newSlice(e *corev1.Endpoints, kind discoveryv1.AddressType, ports []discoveryv1.EndpointPort) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: e.Namespace, GenerateName: e.Name + "-", Labels: map[string]string{},
			OwnerReferences: []metav1.OwnerReference{*metav1.NewControllerRef(e, corev1.SchemeGroupVersion.WithKind("Endpoints"))},
		},
		AddressType: kind, Ports: ports,
	}
	for k, v := range e.Labels {
		s.Labels[k] = v
	}
	s.Labels[discoveryv1.LabelServiceName] = e.Name
	s.Labels[discoveryv1.LabelManagedBy] = managedBy
	for k, v := range e.Annotations {
		if k != corev1.EndpointsLastChangeTriggerTime && k != corev1.LastAppliedConfigAnnotation {
			metav1.SetMetaDataAnnotation(&s.ObjectMeta, k, v)
		}
	}
	return s
}

func endpointOf(a *corev1.EndpointAddress, ready bool) (discoveryv1.Endpoint, discoveryv1.AddressType, bool) {
	ip, err := netip.ParseAddr(a.IP)
	if err != nil {
		return discoveryv1.Endpoint{}, "", false
	}
	kind := discoveryv1.AddressTypeIPv6
	if ip = ip.Unmap(); ip.Is4() {
		kind = discoveryv1.AddressTypeIPv4
	}
	e := discoveryv1.Endpoint{
		Addresses: []string{ip.String()}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(ready)},
		TargetRef: a.TargetRef, NodeName: a.NodeName,
	}
	if a.Hostname != "" {
		e.Hostname = ptr.To(a.Hostname)
	}
	return e, kind, true
}

func portsOf(sub *corev1.EndpointSubset) []discoveryv1.EndpointPort {
	ports := make([]discoveryv1.EndpointPort, 0, len(sub.Ports))
	for _, p := range sub.Ports {
		ports = append(ports, discoveryv1.EndpointPort{
			Name: ptr.To(p.Name), Port: ptr.To(p.Port), Protocol: ptr.To(cmp.Or(p.Protocol, corev1.ProtocolTCP)), AppProtocol: p.AppProtocol,
		})
	}
	return ports
}

func keyOf(kind discoveryv1.AddressType, ports []discoveryv1.EndpointPort) string {
	keys := make([]string, 0, len(ports))
	for _, p := range ports {
		keys = append(keys, fmt.Sprintf("%s/%s/%d/%s", ptr.Deref(p.Name, ""), ptr.Deref(p.Protocol, ""), ptr.Deref(p.Port, 0), ptr.Deref(p.AppProtocol, "")))
	}
	slices.Sort(keys)
	return string(kind) + " " + strings.Join(keys, ",")
}
