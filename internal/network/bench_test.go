package network

import (
	"fmt"
	"net/netip"
	"testing"

	"barque.dev/internal/network/proxy"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/utils/ptr"
)

// benchServices compiles n services of two ports and four endpoints each.
func benchServices(n int) map[string]proxy.Rules {
	node := proxy.Node{Name: "here", IP: netip.MustParseAddr("192.0.2.1"), ClusterCIDR: clusterCIDR, ServiceCIDR: serviceCIDR, ClusterDNS: clusterDNS}
	all := map[string]proxy.Rules{}
	for i := range n {
		name := fmt.Sprintf("service-%d", i)
		svc := service(name, fmt.Sprintf("10.43.%d.%d", 1+i/250, 1+i%250), nil)
		all[name] = proxy.Compile(node, svc, []*discoveryv1.EndpointSlice{benchSlice(name, i, 4)})
	}
	return all
}

func benchSlice(name string, i, endpoints int) *discoveryv1.EndpointSlice {
	s := slice(name)
	for e := range endpoints {
		s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{Addresses: []string{fmt.Sprintf("10.42.%d.%d", i%250, 2+(i/250)*10+e)},
			NodeName: ptr.To("there")})
	}
	return s
}

func installed(b *testing.B, services int) (*proxy.Table, *proxy.Ruleset, *proxy.State) {
	b.Helper()
	h := newHost(b)
	table := proxy.NewTable(h.Namespace, proxy.Base{ClusterCIDR: clusterCIDR, ServiceCIDR: serviceCIDR, Bridge: DefaultBridge})
	have, err := table.Install()
	if err != nil {
		b.Fatal(err)
	}
	rules := proxy.NewRuleset()
	for name, r := range benchServices(services) {
		rules.Set(name, r)
	}
	return table, rules, have
}

// BenchmarkFirstSync fills an empty kernel table with 1000 services of two ports and four endpoints,
// compiling not included.
func BenchmarkFirstSync(b *testing.B) {
	for b.Loop() {
		b.StopTimer()
		table, rules, have := installed(b, 1000)
		b.StartTimer()
		if err := table.Apply(have, rules.Changes(have)); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkRestart reads the kernel's table of 1000 services and finds nothing to do.
func BenchmarkRestart(b *testing.B) {
	table, rules, have := installed(b, 1000)
	if err := table.Apply(have, rules.Changes(have)); err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		again, err := table.Install()
		if err != nil {
			b.Fatal(err)
		}
		if !rules.Diff(again).Empty() {
			b.Fatal("something to do")
		}
	}
}

// BenchmarkOneChange compiles and applies a change of one service's endpoints among many services.
func BenchmarkOneChange(b *testing.B) {
	node := proxy.Node{Name: "here", IP: netip.MustParseAddr("192.0.2.1"), ClusterCIDR: clusterCIDR, ServiceCIDR: serviceCIDR}
	for _, services := range []int{10, 1000, 10000} {
		b.Run(fmt.Sprintf("of-%d", services), func(b *testing.B) {
			table, rules, have := installed(b, services)
			if err := table.Apply(have, rules.Changes(have)); err != nil {
				b.Fatal(err)
			}
			rules.Clean()
			svc := service("service-1", "10.43.1.2", func(s *corev1.Service) {})
			n := 0
			for b.Loop() {
				n++
				rules.Set("service-1", proxy.Compile(node, svc, []*discoveryv1.EndpointSlice{benchSlice("service-1", 1, 3+n%2)}))
				if err := table.Apply(have, rules.Changes(have)); err != nil {
					b.Fatal(err)
				}
				rules.Clean()
			}
		})
	}
}
