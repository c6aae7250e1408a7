package endpointslice

import (
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"barque.dev/internal/controllers/backends"
)

// maxEndpoints is how many endpoints a slice holds (stock's default).
const maxEndpoints = 100

// plan is what to write for a service.
type plan struct {
	create, update, remove []*discoveryv1.EndpointSlice
}

func (p *plan) add(o plan) {
	p.create = append(p.create, o.create...)
	p.update = append(p.update, o.update...)
	p.remove = append(p.remove, o.remove...)
}

// group is the endpoints of one service that serve the same ports, by pod.
type group struct {
	ports     []discoveryv1.EndpointPort
	endpoints map[string]discoveryv1.Endpoint
	order     []string
	placed    bool // a slice of the group exists
}

// decide plans a service's slices of one address family. It is a pure function: zones maps
// nodes to zones, have is every slice of the service that the controller manages.
func decide(s *corev1.Service, family corev1.IPFamily, all []backends.Backend, zones map[string]string, have []discoveryv1.EndpointSlice) plan {
	kind := discoveryv1.AddressType(family)
	groups := grouped(s, all, zones)
	var p plan
	for i := range have {
		old := &have[i]
		if old.AddressType != kind || old.DeletionTimestamp != nil {
			continue
		}
		g := groups[portsKey(old.Ports)]
		if g == nil {
			p.remove = append(p.remove, old)
			continue
		}
		p.refresh(s, old, g)
	}
	for _, key := range slices.Sorted(maps.Keys(groups)) {
		p.place(s, kind, groups[key])
	}
	return p
}

// grouped sorts the backends into groups. A service without any has one empty group, so that
// it has a slice.
func grouped(s *corev1.Service, all []backends.Backend, zones map[string]string) map[string]*group {
	groups := map[string]*group{}
	for i := range all {
		b := &all[i]
		ports := endpointPorts(b.Ports)
		key := portsKey(ports)
		if groups[key] == nil {
			groups[key] = &group{ports: ports, endpoints: map[string]discoveryv1.Endpoint{}}
		}
		groups[key].endpoints[b.Pod.Name] = endpoint(s, b, zones)
		groups[key].order = append(groups[key].order, b.Pod.Name)
	}
	if len(groups) == 0 {
		groups[""] = &group{ports: []discoveryv1.EndpointPort{}}
	}
	return groups
}

// refresh updates a slice: what it holds and is still wanted stays in it. What it keeps is
// taken out of the group.
func (p *plan) refresh(s *corev1.Service, old *discoveryv1.EndpointSlice, g *group) {
	fresh := old.DeepCopy()
	fresh.Endpoints = nil
	for i := range old.Endpoints {
		ref := old.Endpoints[i].TargetRef
		if ref == nil {
			continue
		}
		if e, ok := g.endpoints[ref.Name]; ok {
			fresh.Endpoints = append(fresh.Endpoints, e)
			delete(g.endpoints, ref.Name)
		}
	}
	for _, name := range g.order {
		if len(fresh.Endpoints) == maxEndpoints {
			break
		}
		if e, ok := g.endpoints[name]; ok {
			fresh.Endpoints = append(fresh.Endpoints, e)
			delete(g.endpoints, name)
		}
	}
	if len(fresh.Endpoints) == 0 && len(g.order) > 0 {
		p.remove = append(p.remove, old)
		return
	}
	g.placed = true
	fresh.Labels = labelsFor(s)
	if !reflect.DeepEqual(fresh.Labels, old.Labels) || !equality.Semantic.DeepEqual(fresh.Endpoints, old.Endpoints) {
		p.update = append(p.update, fresh)
	}
}

// place makes slices for what no slice holds yet.
func (p *plan) place(s *corev1.Service, kind discoveryv1.AddressType, g *group) {
	var left []discoveryv1.Endpoint
	for _, name := range g.order {
		if e, ok := g.endpoints[name]; ok {
			left = append(left, e)
		}
	}
	for len(left) > 0 || !g.placed {
		n := min(len(left), maxEndpoints)
		p.create = append(p.create, &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: s.Namespace, GenerateName: s.Name + "-", Labels: labelsFor(s),
				OwnerReferences: []metav1.OwnerReference{backends.OwnerReference(s)},
			},
			AddressType: kind, Ports: g.ports, Endpoints: left[:n:n],
		})
		left = left[n:]
		g.placed = true
	}
}

func labelsFor(s *corev1.Service) map[string]string {
	l := map[string]string{}
	for k, v := range s.Labels {
		if k != corev1.IsHeadlessService && k != discoveryv1.LabelServiceName && k != discoveryv1.LabelManagedBy {
			l[k] = v
		}
	}
	if s.Spec.ClusterIP == corev1.ClusterIPNone {
		l[corev1.IsHeadlessService] = ""
	}
	l[discoveryv1.LabelServiceName] = s.Name
	l[discoveryv1.LabelManagedBy] = managedBy
	return l
}

func endpointPorts(ports []backends.Port) []discoveryv1.EndpointPort {
	out := make([]discoveryv1.EndpointPort, 0, len(ports))
	for _, p := range ports {
		ep := discoveryv1.EndpointPort{Name: ptr.To(p.Name), Protocol: ptr.To(p.Protocol), Port: ptr.To(p.Port)}
		if p.AppProtocol != "" {
			ep.AppProtocol = ptr.To(p.AppProtocol)
		}
		out = append(out, ep)
	}
	return out
}

func portsKey(ports []discoveryv1.EndpointPort) string {
	keys := make([]string, 0, len(ports))
	for _, p := range ports {
		keys = append(keys, fmt.Sprintf("%s/%s/%d/%s", ptr.Deref(p.Name, ""), ptr.Deref(p.Protocol, ""), ptr.Deref(p.Port, 0), ptr.Deref(p.AppProtocol, "")))
	}
	slices.Sort(keys)
	return strings.Join(keys, ",")
}

func endpoint(s *corev1.Service, b *backends.Backend, zones map[string]string) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{
		Addresses: []string{b.IP.String()},
		Conditions: discoveryv1.EndpointConditions{
			Ready: ptr.To(b.Ready(s)), Serving: ptr.To(b.Serving), Terminating: ptr.To(b.Terminating),
		},
		TargetRef: &corev1.ObjectReference{Kind: "Pod", Namespace: b.Pod.Namespace, Name: b.Pod.Name, UID: b.Pod.UID},
	}
	if b.Hostname != "" {
		e.Hostname = ptr.To(b.Hostname)
	}
	if b.Pod.Spec.NodeName == "" {
		return e
	}
	e.NodeName = ptr.To(b.Pod.Spec.NodeName)
	zone := zones[b.Pod.Spec.NodeName]
	if zone != "" {
		e.Zone = ptr.To(zone)
	}
	e.Hints = hints(s, b.Pod.Spec.NodeName, zone)
	return e
}

// hints say for whom an endpoint is, where the service wants traffic to stay close (KEP-3015).
func hints(s *corev1.Service, node, zone string) *discoveryv1.EndpointHints {
	var h discoveryv1.EndpointHints
	switch ptr.Deref(s.Spec.TrafficDistribution, "") {
	case corev1.ServiceTrafficDistributionPreferSameNode:
		h.ForNodes = []discoveryv1.ForNode{{Name: node}}
		fallthrough
	case corev1.ServiceTrafficDistributionPreferClose, corev1.ServiceTrafficDistributionPreferSameZone:
		if zone != "" {
			h.ForZones = []discoveryv1.ForZone{{Name: zone}}
		}
	}
	if h.ForNodes == nil && h.ForZones == nil {
		return nil
	}
	return &h
}
