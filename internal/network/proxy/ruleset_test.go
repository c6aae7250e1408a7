package proxy

import (
	"fmt"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

// model is a table that refuses what the kernel refuses.
type model struct {
	chains   map[string][]Rule
	affinity map[string]bool
	elements map[ElementKey]string
	hairpin  map[netip.Addr]bool
}

func newModel() *model {
	return &model{map[string][]Rule{rejectChain: nil, dropChain: nil}, map[string]bool{}, map[ElementKey]string{}, map[netip.Addr]bool{}}
}

// apply changes the model in the order in which Table.encode does.
func (m *model) apply(b Batch) error {
	for _, a := range b.AddAffinity {
		if m.affinity[a.Name] {
			return fmt.Errorf("set %s exists", a.Name)
		}
		m.affinity[a.Name] = true
	}
	for _, c := range b.AddChains {
		if _, ok := m.chains[c.Name]; ok {
			return fmt.Errorf("chain %s exists", c.Name)
		}
		m.chains[c.Name] = c.Rules
		if err := m.resolve(c); err != nil {
			return err
		}
	}
	for _, k := range b.DeleteElements {
		if _, ok := m.elements[k]; !ok {
			return fmt.Errorf("element %s does not exist", k)
		}
		delete(m.elements, k)
	}
	for _, e := range b.AddElements {
		if _, ok := m.elements[e.Key]; ok {
			return fmt.Errorf("element %s exists", e.Key)
		}
		if _, ok := m.chains[e.Chain]; !ok {
			return fmt.Errorf("element %s leads to no chain", e.Key)
		}
		m.elements[e.Key] = e.Chain
	}
	for _, a := range b.DeleteHairpin {
		if !m.hairpin[a] {
			return fmt.Errorf("hairpin %s does not exist", a)
		}
		delete(m.hairpin, a)
	}
	for _, a := range b.AddHairpin {
		if m.hairpin[a] {
			return fmt.Errorf("hairpin %s exists", a)
		}
		m.hairpin[a] = true
	}
	for _, name := range b.DeleteChains {
		if err := m.deleteChain(name); err != nil {
			return err
		}
	}
	for _, name := range b.DeleteAffinity {
		if !m.affinity[name] {
			return fmt.Errorf("set %s does not exist", name)
		}
		delete(m.affinity, name)
	}
	for name, rules := range m.chains {
		if err := m.resolve(Chain{name, rules}); err != nil {
			return err
		}
	}
	return nil
}

func (m *model) resolve(c Chain) error {
	for _, r := range c.Rules {
		for _, to := range append(slices.Clone(r.Chains), r.Goto) {
			if _, ok := m.chains[to]; !ok && to != "" {
				return fmt.Errorf("chain %s leads to chain %s, which does not exist", c.Name, to)
			}
		}
		for _, set := range []string{r.FromSet, r.Remember} {
			if set != "" && !m.affinity[set] {
				return fmt.Errorf("chain %s uses set %s, which does not exist", c.Name, set)
			}
		}
	}
	return nil
}

func (m *model) deleteChain(name string) error {
	if _, ok := m.chains[name]; !ok {
		return fmt.Errorf("chain %s does not exist", name)
	}
	for key, chain := range m.elements {
		if chain == name {
			return fmt.Errorf("chain %s is in use by element %s", name, key)
		}
	}
	for other, rules := range m.chains {
		for _, r := range rules {
			if other != name && (r.Goto == name || slices.Contains(r.Chains, name)) {
				return fmt.Errorf("chain %s is in use by chain %s", name, other)
			}
		}
	}
	delete(m.chains, name)
	return nil
}

func (m *model) state() *State {
	s := NewState()
	for name := range m.chains {
		if name != rejectChain && name != dropChain {
			s.Chains[name] = true
		}
	}
	maps.Copy(s.Affinity, m.affinity)
	maps.Copy(s.Elements, m.elements)
	maps.Copy(s.Hairpin, m.hairpin)
	return s
}

func drawSlice(t *rapid.T, service string) *discoveryv1.EndpointSlice {
	s := testSlice()
	s.Labels[discoveryv1.LabelServiceName] = service
	s.Ports[0].Protocol = ptr.To(drawProtocol(t))
	for range rapid.IntRange(0, 5).Draw(t, "endpoints") {
		node := rapid.SampledFrom([]string{"here", "there"}).Draw(t, "node")
		state := rapid.SampledFrom([]string{"ready", "ready", "serving terminating", "terminating", "", "ready zone=z1", "ready zone=z2"}).Draw(t, "state")
		ip := fmt.Sprintf("10.42.0.%d", rapid.IntRange(2, 6).Draw(t, "ip"))
		s.Endpoints = append(s.Endpoints, testEndpoint(ip+" "+node+" "+state))
	}
	return s
}

func drawProtocol(t *rapid.T) corev1.Protocol {
	return rapid.SampledFrom([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP}).Draw(t, "protocol")
}

func drawService(t *rapid.T, name string) *corev1.Service {
	svc := testService(func(s *corev1.ServiceSpec) {
		s.Type = rapid.SampledFrom([]corev1.ServiceType{corev1.ServiceTypeClusterIP, corev1.ServiceTypeNodePort, corev1.ServiceTypeLoadBalancer}).Draw(t, "type")
		s.ClusterIP = rapid.SampledFrom([]string{"10.43.0.1", "10.43.0.2", "10.99.0.1", "None"}).Draw(t, "address")
		s.Ports[0].Protocol = drawProtocol(t)
		s.Ports[0].NodePort = rapid.SampledFrom([]int32{0, 30001, 30002}).Draw(t, "node port")
		if rapid.Bool().Draw(t, "external local") {
			s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		}
		if rapid.Bool().Draw(t, "internal local") {
			s.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		}
		if rapid.Bool().Draw(t, "affinity") {
			s.SessionAffinity = corev1.ServiceAffinityClientIP
		}
		s.ExternalIPs = rapid.SampledFrom([][]string{nil, {"203.0.113.1"}}).Draw(t, "external")
		s.LoadBalancerSourceRanges = rapid.SampledFrom([][]string{nil, {"198.51.100.0/24"}}).Draw(t, "ranges")
	})
	svc.Name = name
	svc.Status.LoadBalancer.Ingress = rapid.SampledFrom([][]corev1.LoadBalancerIngress{nil, {{IP: "203.0.113.2"}}}).Draw(t, "balancer")
	return svc
}

// TestChangesLeadToTheRuleset changes services at random. What Changes plans must be acceptable to the
// kernel, cut or not, and lead where a fresh start would; so must Diff from any former state.
func TestChangesLeadToTheRuleset(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		kernel, have := newModel(), NewState()
		rules := NewRuleset()
		compiled := map[string]Rules{}
		var states []*model
		for range rapid.IntRange(1, 6).Draw(t, "rounds") {
			for range rapid.IntRange(1, 3).Draw(t, "changes") {
				name := rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "service")
				var next Rules
				if rapid.IntRange(0, 4).Draw(t, "delete") > 0 {
					next = Compile(testNode, drawService(t, name), []*discoveryv1.EndpointSlice{drawSlice(t, name)})
				}
				rules.Set(name, next)
				compiled[name] = next
			}
			batch := rules.Changes(have)
			for !batch.Empty() {
				part := cut(&batch)
				if err := kernel.apply(part); err != nil {
					t.Fatalf("kernel: %v", err)
				}
				have.Apply(part)
			}
			rules.Clean()
			if !reflect.DeepEqual(have, kernel.state()) {
				t.Fatalf("state\n%v\nbut kernel\n%v", have, kernel.state())
			}
			if rest := rules.Diff(have); !rest.Empty() {
				t.Fatalf("left to do after the changes: %+v", rest)
			}
			fresh := NewRuleset()
			for _, name := range slices.Sorted(maps.Keys(compiled)) {
				fresh.Set(name, compiled[name])
			}
			if rest := fresh.Diff(have); !rest.Empty() {
				t.Fatalf("a fresh start would change: %+v", rest)
			}
			states = append(states, &model{maps.Clone(kernel.chains), maps.Clone(kernel.affinity), maps.Clone(kernel.elements), maps.Clone(kernel.hairpin)})
		}
		// A process that starts on what an earlier one left.
		left := rapid.SampledFrom(states).Draw(t, "left")
		if err := left.apply(rules.Diff(left.state())); err != nil {
			t.Fatalf("kernel at restart: %v", err)
		}
		if !reflect.DeepEqual(left.state(), have) {
			t.Fatalf("restart leads to\n%v\nwant\n%v", left.state(), have)
		}
	})
}

// packet is the first packet of a connection, and outcome what may become of it.
type packet struct {
	source   netip.Addr
	fromNode bool
}

type outcome struct {
	endpoints  string // sorted, or "reject" or "drop"
	masquerade bool
}

// walk follows a packet through the chains, as the kernel would, and collects all endpoints that chance
// could choose.
func walk(rules Rules, chain string, p packet) outcome {
	if chain == rejectChain || chain == dropChain {
		return outcome{endpoints: chain}
	}
	i := slices.IndexFunc(rules.Chains, func(c Chain) bool { return c.Name == chain })
	var all []string
	masquerade := false
	for _, r := range rules.Chains[i].Rules {
		if r.FromPrefix.IsValid() && r.FromPrefix.Contains(p.source) == r.Outside || r.FromNode && !p.fromNode || r.FromSet != "" {
			continue // a client that no set knows
		}
		masquerade = masquerade || r.Masquerade
		switch {
		case r.Drop:
			return outcome{endpoints: dropChain}
		case r.Goto != "":
			next := walk(rules, r.Goto, p)
			next.masquerade = next.masquerade || masquerade
			return next
		case len(r.Chains) > 0:
			for _, c := range r.Chains {
				all = append(all, strings.Trim(walk(rules, c, p).endpoints, "[]"))
			}
		default:
			for _, e := range r.Endpoints {
				all = append(all, e.String())
			}
		}
		break
	}
	slices.Sort(all)
	return outcome{endpoints: fmt.Sprint(all), masquerade: masquerade}
}

// expected states the policies in words of the API, without chains.
func expected(svc *corev1.Service, slice *discoveryv1.EndpointSlice, external bool, p packet) outcome {
	type state struct{ ready, lastResort, local bool }
	found := map[string]state{}
	hinted, mine := true, false
	if *slice.Ports[0].Protocol != svc.Spec.Ports[0].Protocol {
		return outcome{endpoints: rejectChain}
	}
	best := map[string]discoveryv1.Endpoint{}
	for _, e := range slice.Endpoints {
		old, twice := best[e.Addresses[0]]
		score := func(e discoveryv1.Endpoint) int {
			n := 0
			if *e.Conditions.Ready {
				n += 2
			}
			if *e.Conditions.Serving {
				n++
			}
			return n
		}
		if !twice || score(e) > score(old) {
			best[e.Addresses[0]] = e
		}
	}
	for ip, e := range best {
		s := state{*e.Conditions.Ready, *e.Conditions.Serving && *e.Conditions.Terminating, *e.NodeName == "here"}
		found[ip] = s
		if s.ready {
			hinted = hinted && e.Hints != nil
			mine = mine || e.Hints != nil && e.Hints.ForZones[0].Name == "z1"
		}
	}
	pick := func(want func(ip string, s state) bool) string {
		var ips []string
		for ip, s := range found {
			if want(ip, s) {
				ips = append(ips, ip+":8080")
			}
		}
		slices.Sort(ips)
		if len(ips) == 0 {
			return ""
		}
		return fmt.Sprint(ips)
	}
	anywhere := pick(func(ip string, s state) bool {
		return s.ready && (!hinted || !mine || best[ip].Hints.ForZones[0].Name == "z1")
	})
	if anywhere == "" {
		anywhere = pick(func(_ string, s state) bool { return s.lastResort })
	}
	here := pick(func(_ string, s state) bool { return s.ready && s.local })
	if here == "" {
		here = pick(func(_ string, s state) bool { return s.lastResort && s.local })
	}
	if anywhere == "" {
		return outcome{endpoints: rejectChain}
	}
	local := svc.Spec.InternalTrafficPolicy != nil && *svc.Spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	masquerade := false
	if external {
		local = svc.Spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
		masquerade = !local || p.fromNode
		local = local && !p.fromNode && !testNode.ClusterCIDR.Contains(p.source)
	}
	if !local {
		return outcome{endpoints: anywhere, masquerade: masquerade}
	}
	if here == "" {
		return outcome{endpoints: dropChain}
	}
	return outcome{endpoints: here, masquerade: masquerade}
}

func TestCompileFollowsPolicies(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		svc, slice := drawService(t, "web"), drawSlice(t, "web")
		svc.Spec.ClusterIP = "10.43.0.1"
		rules := Compile(testNode, svc, []*discoveryv1.EndpointSlice{slice})
		for _, p := range []packet{
			{source: netip.MustParseAddr("10.42.0.9")}, {source: netip.MustParseAddr("198.51.100.1")},
			{source: netip.MustParseAddr("203.0.113.99")}, {source: testNode.IP, fromNode: true},
		} {
			for _, e := range rules.Elements {
				external := e.Key.Addr.String() != svc.Spec.ClusterIP
				want := expected(svc, slice, external, p)
				allowed := netip.MustParsePrefix("198.51.100.0/24").Contains(p.source)
				if e.Key.Addr.String() == "203.0.113.2" && len(svc.Spec.LoadBalancerSourceRanges) > 0 && !allowed {
					want = outcome{endpoints: dropChain}
				}
				if got := walk(rules, e.Chain, p); got.endpoints != want.endpoints ||
					(got.masquerade != want.masquerade && want.endpoints != dropChain) {
					t.Fatalf("%s from %v: %+v; want %+v\n%s", e.Key, p, got, want, render(rules))
				}
			}
		}
	})
}

func TestClaimsGoToTheFirstOwner(t *testing.T) {
	compile := func(name, ip string) Rules {
		svc := testService(func(s *corev1.ServiceSpec) { s.ClusterIP, s.ExternalIPs = ip, []string{"203.0.113.1"} })
		svc.ObjectMeta = metav1.ObjectMeta{Namespace: "ns", Name: name}
		return Compile(testNode, svc, []*discoveryv1.EndpointSlice{testSlice("10.42.0.2 here ready")})
	}
	key := ElementKey{Map: Addresses, Addr: netip.MustParseAddr("203.0.113.1"), Protocol: TCP, Port: 80}
	rules := NewRuleset()
	owner := func() string { return rules.claims[key][0].owner }
	rules.Set("ns/b", compile("b", "10.43.0.2"))
	rules.Set("ns/a", compile("a", "10.43.0.1"))
	if owner() != "ns/a" {
		t.Errorf("owner %s; want ns/a", owner())
	}
	rules.Set("ns/a", Rules{})
	if owner() != "ns/b" {
		t.Errorf("owner %s after ns/a left; want ns/b", owner())
	}
}

// TestNobodyTakesAClusterAddress: who may write a Service or a pod gets no traffic of others' by naming their address, of
// the API's and of DNS least of all.
func TestNobodyTakesAClusterAddress(t *testing.T) {
	key := func(address string) ElementKey {
		return ElementKey{Map: Addresses, Addr: netip.MustParseAddr(address), Protocol: TCP, Port: 80}
	}
	compile := func(name, own string, external ...string) Rules {
		svc := testService(func(s *corev1.ServiceSpec) { s.ClusterIP, s.ExternalIPs = own, external })
		svc.ObjectMeta = metav1.ObjectMeta{Namespace: "ns", Name: name}
		return Compile(testNode, svc, []*discoveryv1.EndpointSlice{testSlice("10.42.0.2 here ready")})
	}
	dns := testNode.ClusterDNS.String()
	rules := NewRuleset()
	rules.Set("ns/a", compile("a", "10.43.0.9", "10.43.0.1", dns, "10.44.0.1", "203.0.113.1"))
	for _, address := range []string{"10.43.0.1", dns} {
		if claims := rules.claims[key(address)]; len(claims) > 0 {
			t.Errorf("%s, which nobody has yet, is %s's", address, claims[0].owner)
		}
	}
	rules.Set("ns/api", compile("api", "10.43.0.1"))
	rules.Set("ns/other-range", compile("other-range", "10.44.0.1"))
	var ports []HostPort
	for _, address := range []string{"10.43.0.1", dns, "10.44.0.1", "203.0.113.1", "192.0.2.1"} {
		ports = append(ports, HostPort{Pod: types.NamespacedName{Namespace: "a", Name: "a"}, Protocol: TCP,
			HostIP: netip.MustParseAddr(address), HostPort: 80, Target: netip.MustParseAddrPort("10.42.0.3:80")})
	}
	rules.Set(hostPortsOwner, CompileHostPorts(testNode, ports))
	for address, want := range map[string]string{
		"10.43.0.9": "ns/a", "10.43.0.1": "ns/api", "10.44.0.1": "ns/other-range", "203.0.113.1": hostPortsOwner, "192.0.2.1": hostPortsOwner,
	} {
		if claims := rules.claims[key(address)]; len(claims) == 0 || claims[0].owner != want {
			t.Errorf("%s: %+v, want it to be %s's", address, claims, want)
		}
	}
	if claims := rules.claims[key(dns)]; len(claims) > 0 {
		t.Errorf("DNS is %s's", claims[0].owner)
	}
	rules.Set("ns/other-range", Rules{})
	if claims := rules.claims[key("10.44.0.1")]; len(claims) != 2 {
		t.Errorf("without the one who had it, 10.44.0.1 is claimed by %+v", claims)
	}
}

func TestKeysRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		k := ElementKey{Map: rapid.SampledFrom([]MapName{Addresses, Ports, HostPorts}).Draw(t, "map"),
			Protocol: rapid.SampledFrom([]Protocol{TCP, UDP, SCTP}).Draw(t, "protocol"), Port: rapid.Uint16().Draw(t, "port")}
		if k.Map == Addresses {
			k.Addr = netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, "address")))
		}
		if got, err := parseKey(k.Map, keyBytes(k)); err != nil || got != k {
			t.Fatalf("%v became %v, %v", k, got, err)
		}
	})
}

// TestCutKeepsOrder cuts batches that exceed a transaction by far.
func TestCutKeepsOrder(t *testing.T) {
	rules, kernel, have := NewRuleset(), newModel(), NewState()
	fill := func(target string) {
		for i := range 1100 {
			id := portID{types.NamespacedName{Namespace: "ns", Name: fmt.Sprint(i)}, TCP, 80}
			service := newChain("service", id, Rule{Endpoints: []netip.AddrPort{netip.MustParseAddrPort(target)}})
			external := newChain("external", id, Rule{Goto: service.Name})
			r := Rules{Chains: []Chain{service, external}}
			for port := range 20 {
				r.Elements = append(r.Elements, Element{Chain: external.Name, Key: ElementKey{Map: Addresses,
					Addr: netip.AddrFrom4([4]byte{10, 43, byte(i / 256), byte(i)}), Protocol: TCP, Port: uint16(port)}})
			}
			rules.Set(fmt.Sprint(i), r)
		}
	}
	for _, target := range []string{"10.42.0.2:80", "10.42.0.3:80"} {
		fill(target)
		batch, parts := rules.Changes(have), 0
		for !batch.Empty() {
			part := cut(&batch)
			if part.Empty() {
				t.Fatal("an empty part: no progress")
			}
			if len(part.AddChains) > transactionChains || len(part.AddElements) > transactionElements || len(part.DeleteElements) > transactionElements {
				t.Fatalf("part too large: %d chains, %d and %d elements", len(part.AddChains), len(part.AddElements), len(part.DeleteElements))
			}
			moved := map[ElementKey]bool{}
			for _, e := range part.AddElements {
				moved[e.Key] = true
			}
			for _, k := range part.DeleteElements {
				if !moved[k] {
					t.Fatalf("element %s is away between two transactions", k)
				}
			}
			if err := kernel.apply(part); err != nil {
				t.Fatal(err)
			}
			have.Apply(part)
			parts++
		}
		rules.Clean()
		if parts < 3 {
			t.Errorf("%d parts; the test means more", parts)
		}
	}
}
