package proxy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// endpoint is one address and port behind a service port.
type endpoint struct {
	addr        netip.AddrPort
	local       bool // on this node
	ready       bool
	serving     bool
	terminating bool
	zones       []string // hints; empty without
	nodes       []string // hints; empty without
}

func (e endpoint) lastResort() bool { return e.serving && e.terminating }

// endpointsOf collects the endpoints of a service port from the service's slices, ordered by
// address, each once. An endpoint that stands in two slices, as happens while one is moved, counts
// as ready if either says so.
func endpointsOf(node Node, port corev1.ServicePort, slicesOf []*discoveryv1.EndpointSlice) []endpoint {
	found := map[netip.AddrPort]endpoint{}
	for _, slice := range slicesOf {
		if slice.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		number, ok := slicePort(slice, port)
		if !ok {
			continue
		}
		for _, e := range slice.Endpoints {
			next, ok := fromSlice(node, e, number)
			if !ok {
				continue
			}
			if have, twice := found[next.addr]; !twice || rank(next) > rank(have) {
				found[next.addr] = next
			}
		}
	}
	all := make([]endpoint, 0, len(found))
	for _, e := range found {
		all = append(all, e)
	}
	slices.SortFunc(all, func(a, b endpoint) int { return a.addr.Compare(b.addr) })
	return all
}

func rank(e endpoint) int {
	switch {
	case e.ready:
		return 2
	case e.serving:
		return 1
	}
	return 0
}

// slicePort finds the number that the slice gives to the service's port, which is matched by
// name and protocol.
func slicePort(slice *discoveryv1.EndpointSlice, port corev1.ServicePort) (uint16, bool) {
	want := port.Protocol
	if want == "" {
		want = corev1.ProtocolTCP
	}
	for _, p := range slice.Ports {
		name, protocol := "", corev1.ProtocolTCP
		if p.Name != nil {
			name = *p.Name
		}
		if p.Protocol != nil {
			protocol = *p.Protocol
		}
		if name == port.Name && protocol == want && p.Port != nil && *p.Port > 0 && *p.Port < 1<<16 {
			return uint16(*p.Port), true
		}
	}
	return 0, false
}

func fromSlice(node Node, e discoveryv1.Endpoint, port uint16) (endpoint, bool) {
	// All addresses of an endpoint are equivalent; consumers use the first (discovery/v1).
	if len(e.Addresses) == 0 {
		return endpoint{}, false
	}
	addr, err := netip.ParseAddr(e.Addresses[0])
	if err != nil || !addr.Is4() || addr.IsUnspecified() || addr.IsLoopback() {
		return endpoint{}, false
	}
	ep := endpoint{
		addr:        netip.AddrPortFrom(addr, port),
		local:       e.NodeName != nil && *e.NodeName == node.Name,
		ready:       e.Conditions.Ready == nil || *e.Conditions.Ready,
		terminating: e.Conditions.Terminating != nil && *e.Conditions.Terminating,
	}
	ep.serving = ep.ready
	if e.Conditions.Serving != nil {
		ep.serving = *e.Conditions.Serving
	}
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			ep.zones = append(ep.zones, z.Name)
		}
		for _, n := range e.Hints.ForNodes {
			ep.nodes = append(ep.nodes, n.Name)
		}
	}
	return ep, true
}

// usable picks among the endpoints: the ready ones, or, when there are none, those that terminate
// but still serve, so that a rollout or a drain loses no request (KEP-1669).
func usable(all []endpoint) []endpoint {
	if ready := filter(all, func(e endpoint) bool { return e.ready }); len(ready) > 0 {
		return ready
	}
	return filter(all, endpoint.lastResort)
}

// near narrows ready endpoints to those hinted for this node, or else for its zone. Hints count
// only when every ready endpoint has them and at least one is meant for us, since a partial set would
// overload or starve somebody (KEP-2433, KEP-4444).
func near(node Node, usable []endpoint) []endpoint {
	if len(usable) == 0 || !usable[0].ready {
		return usable
	}
	if every(usable, func(e endpoint) bool { return len(e.nodes) > 0 }) {
		if here := filter(usable, func(e endpoint) bool { return slices.Contains(e.nodes, node.Name) }); len(here) > 0 {
			return here
		}
	}
	if node.Zone != "" && every(usable, func(e endpoint) bool { return len(e.zones) > 0 }) {
		if here := filter(usable, func(e endpoint) bool { return slices.Contains(e.zones, node.Zone) }); len(here) > 0 {
			return here
		}
	}
	return usable
}

func filter(all []endpoint, keep func(endpoint) bool) []endpoint {
	var kept []endpoint
	for _, e := range all {
		if keep(e) {
			kept = append(kept, e)
		}
	}
	return kept
}

func every(all []endpoint, is func(endpoint) bool) bool {
	return !slices.ContainsFunc(all, func(e endpoint) bool { return !is(e) })
}

func addrs(all []endpoint) []netip.AddrPort {
	out := make([]netip.AddrPort, len(all))
	for i, e := range all {
		out[i] = e.addr
	}
	return out
}
