package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Node is what a service's rules depend on besides the service itself.
type Node struct {
	// Name is the node's name, Zone its topology.kubernetes.io/zone label, empty without.
	Name, Zone string
	// IP is the node's own address. Endpoints that have it need no masquerade to reach
	// themselves.
	IP netip.Addr
	// ClusterCIDR holds all pods. Traffic from elsewhere that goes to a cluster address is masqueraded.
	ClusterCIDR netip.Prefix
	// ServiceCIDR is where cluster addresses come from; the base rules masquerade for it.
	ServiceCIDR netip.Prefix
	// ClusterDNS is answered on every node by itself and never redirected.
	ClusterDNS netip.Addr
}

// HostPort sends a port of this node to a pod on it.
type HostPort struct {
	// Pod is used in names.
	Pod      types.NamespacedName
	Protocol Protocol
	// HostIP limits it to one address of the node; the zero value means all.
	HostIP   netip.Addr
	HostPort uint16
	Target   netip.AddrPort
}

// serviceProxyName marks Services and EndpointSlices that another proxy looks after.
const serviceProxyName = "service.kubernetes.io/service-proxy-name"

// Proxied says whether the service is for this proxy to handle: not headless, no external name, and
// not given to another proxy by label.
func Proxied(svc *corev1.Service) bool {
	return svc.Spec.Type != corev1.ServiceTypeExternalName && svc.Spec.ClusterIP != corev1.ClusterIPNone &&
		svc.Spec.ClusterIP != "" && svc.Labels[serviceProxyName] == ""
}

// Compile plans a service. It is a pure function; equal input gives equal output, in the same order.
func Compile(node Node, svc *corev1.Service, endpointSlices []*discoveryv1.EndpointSlice) Rules {
	var out Rules
	if svc == nil || !Proxied(svc) {
		return out
	}
	for _, port := range svc.Spec.Ports {
		if port.Port <= 0 || port.Port >= 1<<16 {
			continue
		}
		c := compiler{
			node: node,
			svc:  svc,
			port: port,
			id: portID{
				service:  types.NamespacedName{Namespace: svc.Namespace, Name: svc.Name},
				protocol: protocolOf(port.Protocol),
				port:     uint16(port.Port),
			},
			all:   endpointsOf(node, port, endpointSlices),
			rules: &out,
		}
		c.compile()
	}
	slices.SortFunc(out.Hairpin, netip.Addr.Compare)
	out.Hairpin = slices.Compact(out.Hairpin)
	return out
}

func protocolOf(p corev1.Protocol) Protocol {
	switch p {
	case corev1.ProtocolUDP:
		return UDP
	case corev1.ProtocolSCTP:
		return SCTP
	}
	return TCP
}

// compiler plans one port of a service.
type compiler struct {
	node  Node
	svc   *corev1.Service
	port  corev1.ServicePort
	id    portID
	all   []endpoint
	rules *Rules

	anywhere []endpoint // for policy Cluster
	here     []endpoint // for policy Local
}

func (c *compiler) compile() {
	c.anywhere = near(c.node, usable(c.all))
	c.here = usable(filter(c.all, func(e endpoint) bool { return e.local }))

	internal := c.internal()
	if dst, ok := ipv4(c.svc.Spec.ClusterIP); ok && dst != c.node.ClusterDNS {
		c.element(ElementKey{Map: Addresses, Addr: dst, Port: c.id.port}, internal, false)
	}
	if c.external() {
		c.outside()
	}
	for _, e := range c.all {
		if e.local && e.addr.Addr() != c.node.IP {
			c.rules.Hairpin = append(c.rules.Hairpin, e.addr.Addr())
		}
	}
	if c.svc.Spec.HealthCheckNodePort > 0 && c.externalLocal() {
		local := len(c.here)
		if h := c.rules.Health; h != nil {
			local = max(local, h.Local)
		}
		c.rules.Health = &HealthCheck{Port: uint16(c.svc.Spec.HealthCheckNodePort), Local: local}
	}
}

func (c *compiler) externalLocal() bool {
	return c.svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
}

// internal plans the way of traffic to the cluster address and names the chain it begins in.
func (c *compiler) internal() string {
	target := c.cluster()
	if p := c.svc.Spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal && target != rejectChain {
		target = c.local()
	}
	dst, ok := ipv4(c.svc.Spec.ClusterIP)
	if !ok || c.node.ServiceCIDR.Contains(dst) || target == rejectChain || target == dropChain || !c.node.ClusterCIDR.IsValid() {
		return target
	}
	// An address of another range: the base rules do not masquerade for it.
	return c.rules.addChain(newChain("internal", c.id,
		Rule{FromPrefix: c.node.ClusterCIDR, Outside: true, Masquerade: true, Goto: target},
		Rule{Goto: target}))
}

// cluster names the chain that serves from any endpoint; reject when there is none.
func (c *compiler) cluster() string {
	if len(c.anywhere) == 0 {
		return rejectChain
	}
	return c.balance(c.anywhere)
}

// local names the chain that serves from this node's endpoints; drop when there is none, so that
// the client tries another node rather than give up.
func (c *compiler) local() string {
	if len(c.here) == 0 {
		return dropChain
	}
	return c.balance(c.here)
}

// balance adds the chain that spreads connections over endpoints.
func (c *compiler) balance(endpoints []endpoint) string {
	if c.svc.Spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return c.rules.addChain(newChain("service", c.id, Rule{Endpoints: addrs(endpoints)}))
	}
	timeout := time.Duration(corev1.DefaultClientIPServiceAffinitySeconds) * time.Second
	if s := c.svc.Spec.SessionAffinityConfig; s != nil && s.ClientIP != nil && s.ClientIP.TimeoutSeconds != nil {
		timeout = time.Duration(*s.ClientIP.TimeoutSeconds) * time.Second
	}
	var rules []Rule
	var chains []string
	for _, e := range endpoints {
		set := newAffinitySet(c.id, e.addr, timeout)
		if !slices.Contains(c.rules.Affinity, set) {
			c.rules.Affinity = append(c.rules.Affinity, set)
		}
		chain := c.rules.addChain(newChain("endpoint", c.id,
			Rule{Remember: set.Name, RememberTimeout: timeout, Endpoints: []netip.AddrPort{e.addr}}))
		rules = append(rules, Rule{FromSet: set.Name, Goto: chain})
		chains = append(chains, chain)
	}
	rules = append(rules, Rule{Chains: chains})
	return c.rules.addChain(newChain("service", c.id, rules...))
}

// external says whether the service can be reached from outside at all.
func (c *compiler) external() bool {
	return c.port.NodePort > 0 || len(c.svc.Spec.ExternalIPs) > 0 || len(c.svc.Status.LoadBalancer.Ingress) > 0
}

// outside plans node port, external addresses and load balancer addresses.
func (c *compiler) outside() {
	target := c.cluster()
	if target != rejectChain {
		target = c.rules.addChain(newChain("external", c.id, c.externalRules(target)...))
	}
	nodePorts := c.svc.Spec.Type == corev1.ServiceTypeNodePort || c.svc.Spec.Type == corev1.ServiceTypeLoadBalancer
	if nodePorts && c.port.NodePort > 0 && c.port.NodePort < 1<<16 {
		c.element(ElementKey{Map: Ports, Port: uint16(c.port.NodePort)}, target, false)
	}
	for _, s := range c.svc.Spec.ExternalIPs {
		if ip, ok := ipv4(s); ok {
			c.foreign(ip, target)
		}
	}
	if c.svc.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	guarded := target
	for _, ingress := range c.svc.Status.LoadBalancer.Ingress {
		// With mode Proxy the balancer wants to see the traffic itself (KEP-1860).
		if ingress.IPMode != nil && *ingress.IPMode == corev1.LoadBalancerIPModeProxy {
			continue
		}
		if ip, ok := ipv4(ingress.IP); ok {
			if guarded == target && len(c.svc.Spec.LoadBalancerSourceRanges) > 0 {
				guarded = c.guard(target)
			}
			c.foreign(ip, guarded)
		}
	}
}

func (c *compiler) externalRules(cluster string) []Rule {
	if !c.externalLocal() {
		return []Rule{{Masquerade: true, Goto: cluster}}
	}
	// Clients inside the cluster reach any endpoint: policy Local is about keeping the source of
	// outside clients, and theirs is kept or does not matter.
	var rules []Rule
	if c.node.ClusterCIDR.IsValid() {
		rules = append(rules, Rule{FromPrefix: c.node.ClusterCIDR, Goto: cluster})
	}
	rules = append(rules, Rule{FromNode: true, Masquerade: true, Goto: cluster})
	return append(rules, Rule{Goto: c.local()})
}

// guard adds the chain that lets only the allowed sources pass to the load balancer's address.
func (c *compiler) guard(target string) string {
	var rules []Rule
	for _, s := range c.svc.Spec.LoadBalancerSourceRanges {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() {
			rules = append(rules, Rule{FromPrefix: p.Masked(), Goto: target})
		}
	}
	return c.rules.addChain(newChain("guard", c.id, append(rules, Rule{Drop: true})...))
}

// foreign sends an address that the service names to a chain. Those of the service range are the cluster's to give: nobody
// has one by naming it, that of DNS on this node least of all.
func (c *compiler) foreign(ip netip.Addr, chain string) {
	if !c.node.ServiceCIDR.Contains(ip) {
		c.element(ElementKey{Map: Addresses, Addr: ip, Port: c.id.port}, chain, true)
	}
}

func (c *compiler) element(key ElementKey, chain string, foreign bool) {
	key.Protocol = c.id.protocol
	c.rules.Elements = append(c.rules.Elements, Element{Key: key, Chain: chain, Foreign: foreign})
	if c.id.protocol != UDP {
		return
	}
	valid := map[netip.AddrPort]bool{}
	for _, e := range c.all {
		if e.ready || e.serving {
			valid[e.addr] = true
		}
	}
	c.rules.UDP = append(c.rules.UDP, Frontend{Key: key, Endpoints: valid})
}

// CompileHostPorts plans the host ports of the pods on this node. Of two pods that claim the same
// port, the first by name has it. An address of the service range is nobody's to listen on.
func CompileHostPorts(node Node, ports []HostPort) Rules {
	var out Rules
	ports = slices.Clone(ports)
	slices.SortFunc(ports, func(a, b HostPort) int {
		if a.Pod != b.Pod {
			return strings.Compare(a.Pod.String(), b.Pod.String())
		}
		return a.Target.Compare(b.Target)
	})
	taken := map[ElementKey]bool{}
	for _, p := range ports {
		key := ElementKey{Map: HostPorts, Protocol: p.Protocol, Port: p.HostPort}
		if p.HostIP.IsValid() && !p.HostIP.IsUnspecified() {
			key.Map, key.Addr = Addresses, p.HostIP
		}
		if taken[key] || !p.Target.IsValid() || !p.Target.Addr().Is4() || node.ServiceCIDR.Contains(key.Addr) {
			continue
		}
		taken[key] = true
		id := portID{service: p.Pod, protocol: p.Protocol, port: p.HostPort}
		to := []netip.AddrPort{p.Target}
		// A client on the node that used a loopback address would make a martian of the
		// packet; with the node's address on the bridge the pod can answer.
		chain := newChain("hostport", id,
			Rule{FromPrefix: loopback, Masquerade: true, Endpoints: to},
			Rule{Endpoints: to})
		out.addChain(chain)
		out.Elements = append(out.Elements, Element{Key: key, Chain: chain.Name, Foreign: key.Map == Addresses})
		out.Hairpin = append(out.Hairpin, p.Target.Addr())
		if p.Protocol == UDP {
			out.UDP = append(out.UDP, Frontend{Key: key, Endpoints: map[netip.AddrPort]bool{p.Target: true}})
		}
	}
	slices.SortFunc(out.Hairpin, netip.Addr.Compare)
	out.Hairpin = slices.Compact(out.Hairpin)
	return out
}

// loopback is 127.0.0.0/8 (RFC 1122).
var loopback = netip.PrefixFrom(netip.AddrFrom4([4]byte{127}), 8)

func ipv4(s string) (netip.Addr, bool) {
	ip, err := netip.ParseAddr(s)
	return ip, err == nil && ip.Is4()
}
