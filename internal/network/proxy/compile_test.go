package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

var testNode = Node{
	Name: "here", Zone: "z1", IP: netip.MustParseAddr("192.0.2.1"),
	ClusterCIDR: netip.MustParsePrefix("10.42.0.0/16"),
	ServiceCIDR: netip.MustParsePrefix("10.43.0.0/16"),
	ClusterDNS:  netip.MustParseAddr("10.43.0.10"),
}

func testService(change func(*corev1.ServiceSpec)) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"}}
	svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: "10.43.0.1",
		Ports: []corev1.ServicePort{{Protocol: corev1.ProtocolTCP, Port: 80}}}
	if change != nil {
		change(&svc.Spec)
	}
	return svc
}

// testEndpoint reads "10.42.0.1 here ready" and the like: an address, a node's name, and words
// about its state.
func testEndpoint(s string) discoveryv1.Endpoint {
	f := strings.Fields(s)
	e := discoveryv1.Endpoint{Addresses: f[:1], NodeName: ptr.To(f[1])}
	has := func(word string) bool { return slices.Contains(f[2:], word) }
	e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(has("ready")), Serving: ptr.To(has("ready") || has("serving")),
		Terminating: ptr.To(has("terminating"))}
	for _, word := range f[2:] {
		if zone, ok := strings.CutPrefix(word, "zone="); ok {
			e.Hints = &discoveryv1.EndpointHints{ForZones: []discoveryv1.ForZone{{Name: zone}}}
		}
		if node, ok := strings.CutPrefix(word, "node="); ok {
			e.Hints = &discoveryv1.EndpointHints{ForNodes: []discoveryv1.ForNode{{Name: node}}}
		}
	}
	return e
}

func testSlice(endpoints ...string) *discoveryv1.EndpointSlice {
	s := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "ns", Name: "web-1", Labels: map[string]string{discoveryv1.LabelServiceName: "web"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Port: ptr.To(int32(8080)), Protocol: ptr.To(corev1.ProtocolTCP)}},
	}
	for _, e := range endpoints {
		s.Endpoints = append(s.Endpoints, testEndpoint(e))
	}
	return s
}

// render writes rules with chains' hashes cut off.
func render(rules Rules) string {
	set := NewRuleset()
	set.Set("x", rules)
	var out []string
	for line := range strings.Lines(set.String()) {
		words := strings.Fields(line)
		for i, w := range words {
			if strings.Count(w, "/") >= 4 {
				colon := strings.HasSuffix(w, ":")
				w = strings.ReplaceAll(w[:strings.LastIndex(w, "/")], "/ns/web/", " ")
				w = strings.ReplaceAll(w, " ", "-")
				w = strings.ReplaceAll(w, "/", "-")
				if colon {
					w += ":"
				}
				words[i] = w
			}
		}
		out = append(out, strings.Join(words, " "))
	}
	return strings.Join(out, "\n")
}

func TestCompile(t *testing.T) {
	local := ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	for _, c := range []struct {
		name      string
		svc       *corev1.Service
		endpoints []string
		want      string
	}{
		{
			name: "cluster address", svc: testService(nil),
			endpoints: []string{"10.42.1.2 there ready", "10.42.0.2 here ready", "10.42.1.3 there"},
			want: `service-tcp-80: dnat to 10.42.0.2:8080 10.42.1.2:8080
addresses { 10.43.0.1 . tcp . 80 } : goto service-tcp-80`,
		},
		{
			name: "no endpoints", svc: testService(nil), endpoints: []string{"10.42.1.3 there"},
			want: `addresses { 10.43.0.1 . tcp . 80 } : goto reject`,
		},
		{
			name: "headless", svc: testService(func(s *corev1.ServiceSpec) { s.ClusterIP = corev1.ClusterIPNone }),
			endpoints: []string{"10.42.0.2 here ready"},
		},
		{
			name: "cluster DNS is left alone", svc: testService(func(s *corev1.ServiceSpec) { s.ClusterIP = "10.43.0.10" }),
		},
		{
			name: "terminating endpoints are the last resort", svc: testService(nil),
			endpoints: []string{"10.42.1.2 there serving terminating", "10.42.1.3 there terminating"},
			want: `service-tcp-80: dnat to 10.42.1.2:8080
addresses { 10.43.0.1 . tcp . 80 } : goto service-tcp-80`,
		},
		{
			name: "internal policy without local endpoints", svc: testService(func(s *corev1.ServiceSpec) { s.InternalTrafficPolicy = local }),
			endpoints: []string{"10.42.1.2 there ready"},
			want: `service-tcp-80: dnat to 10.42.1.2:8080
addresses { 10.43.0.1 . tcp . 80 } : goto drop`,
		},
		{
			name: "node port", svc: testService(func(s *corev1.ServiceSpec) {
				s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
			}),
			endpoints: []string{"10.42.1.2 there ready"},
			want: `service-tcp-80: dnat to 10.42.1.2:8080
external-tcp-80: masquerade goto service-tcp-80
addresses { 10.43.0.1 . tcp . 80 } : goto service-tcp-80
ports { tcp . 30080 } : goto external-tcp-80`,
		},
		{
			name: "external policy local", svc: testService(func(s *corev1.ServiceSpec) {
				s.Type, s.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
				s.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}),
			endpoints: []string{"10.42.1.2 there ready"},
			want: `service-tcp-80: dnat to 10.42.1.2:8080
external-tcp-80: ip saddr 10.42.0.0/16 goto service-tcp-80
external-tcp-80: fib saddr type local masquerade goto service-tcp-80
external-tcp-80: goto drop
addresses { 10.43.0.1 . tcp . 80 } : goto service-tcp-80
ports { tcp . 30080 } : goto external-tcp-80`,
		},
		{
			name: "zone hints", svc: testService(nil),
			endpoints: []string{"10.42.1.2 there ready zone=z2", "10.42.1.3 there ready zone=z1"},
			want: `service-tcp-80: dnat to 10.42.1.3:8080
addresses { 10.43.0.1 . tcp . 80 } : goto service-tcp-80`,
		},
		{
			name: "zone hints that are not complete", svc: testService(nil),
			endpoints: []string{"10.42.1.2 there ready", "10.42.1.3 there ready zone=z1"},
			want: `service-tcp-80: dnat to 10.42.1.2:8080 10.42.1.3:8080
addresses { 10.43.0.1 . tcp . 80 } : goto service-tcp-80`,
		},
		{
			name: "node hints", svc: testService(nil),
			endpoints: []string{"10.42.1.2 there ready node=there", "10.42.0.3 here ready node=here"},
			want: `service-tcp-80: dnat to 10.42.0.3:8080
addresses { 10.43.0.1 . tcp . 80 } : goto service-tcp-80`,
		},
		{
			name: "an address of another range", svc: testService(func(s *corev1.ServiceSpec) { s.ClusterIP = "10.99.0.1" }),
			endpoints: []string{"10.42.1.2 there ready"},
			want: `service-tcp-80: dnat to 10.42.1.2:8080
internal-tcp-80: ip saddr != 10.42.0.0/16 masquerade goto service-tcp-80
internal-tcp-80: goto service-tcp-80
addresses { 10.99.0.1 . tcp . 80 } : goto internal-tcp-80`,
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			got := render(Compile(testNode, c.svc, []*discoveryv1.EndpointSlice{testSlice(c.endpoints...)}))
			if got != c.want {
				t.Errorf("got\n%s\nwant\n%s", got, c.want)
			}
		})
	}
}

func TestCompileLeavesOthersServices(t *testing.T) {
	svc := testService(nil)
	svc.Labels = map[string]string{serviceProxyName: "mesh"}
	if got := render(Compile(testNode, svc, nil)); got != "" {
		t.Errorf("service of another proxy compiled to\n%s", got)
	}
	if got := render(Compile(testNode, nil, nil)); got != "" {
		t.Errorf("no service compiled to\n%s", got)
	}
}

func TestAffinityIsKeptWhenOthersLeave(t *testing.T) {
	svc := testService(func(s *corev1.ServiceSpec) { s.SessionAffinity = corev1.ServiceAffinityClientIP })
	compile := func(endpoints ...string) Rules {
		return Compile(testNode, svc, []*discoveryv1.EndpointSlice{testSlice(endpoints...)})
	}
	two := compile("10.42.0.2 here ready", "10.42.0.3 here ready")
	one := compile("10.42.0.3 here ready")
	if len(two.Affinity) != 2 || len(one.Affinity) != 1 || !slices.Contains(two.Affinity, one.Affinity[0]) {
		t.Errorf("affinity sets %v, then %v; want the second's among the first's", two.Affinity, one.Affinity)
	}
	if one.Affinity[0].Timeout.Hours() != 3 {
		t.Errorf("timeout %s; want the API's default of 3 hours", one.Affinity[0].Timeout)
	}
}

func TestNamesFitTheKernel(t *testing.T) {
	long := strings.Repeat("a", 63)
	svc := testService(func(s *corev1.ServiceSpec) {
		s.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Type, s.Ports[0].NodePort, s.Ports[0].Port = corev1.ServiceTypeNodePort, 30080, 65535
	})
	svc.Namespace, svc.Name = long, long
	rules := Compile(testNode, svc, []*discoveryv1.EndpointSlice{testSlice("10.42.0.2 here ready")})
	hostPorts := CompileHostPorts(testNode, []HostPort{{Pod: types.NamespacedName{Namespace: long, Name: strings.Repeat("p", 253)}, Protocol: SCTP,
		HostPort: 65535, Target: netip.MustParseAddrPort("10.42.0.2:1")}})
	const limit = 255 // NFT_NAME_MAXLEN, less the final zero
	for _, c := range append(rules.Chains, hostPorts.Chains...) {
		if len(c.Name) > limit {
			t.Errorf("chain name of %d bytes: %s", len(c.Name), c.Name)
		}
	}
	for _, a := range rules.Affinity {
		if len(a.Name) > limit {
			t.Errorf("set name of %d bytes: %s", len(a.Name), a.Name)
		}
	}
}

func TestHostPortConflict(t *testing.T) {
	port := func(pod, ip string) HostPort {
		return HostPort{Pod: types.NamespacedName{Namespace: "ns", Name: pod}, Protocol: TCP, HostPort: 80,
			Target: netip.MustParseAddrPort(ip + ":8080")}
	}
	a, b := port("a", "10.42.0.2"), port("b", "10.42.0.3")
	for _, ports := range [][]HostPort{{a, b}, {b, a}} {
		rules := CompileHostPorts(testNode, ports)
		if len(rules.Elements) != 1 || !strings.HasPrefix(rules.Elements[0].Chain, "hostport/ns/a/") {
			t.Errorf("elements %v; want pod a's alone", rules.Elements)
		}
	}
}

func ExampleRule_String() {
	fmt.Println(Rule{FromPrefix: netip.MustParsePrefix("10.42.0.0/16"), Outside: true, Masquerade: true, Goto: "service/ns/web/tcp/80/0011"})
	// Output: ip saddr != 10.42.0.0/16 masquerade goto service/ns/web/tcp/80/0011
}
