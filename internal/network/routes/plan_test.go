package routes

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"
)

func TestCompute(t *testing.T) {
	peer := func(name, ip, pods string) Peer {
		return Peer{name, netip.MustParseAddr(ip), netip.MustParsePrefix(pods)}
	}
	near, far := peer("near", "192.0.2.2", "10.42.1.0/24"), peer("far", "198.51.100.2", "10.42.2.0/24")
	onLink := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}
	for _, c := range []struct {
		name  string
		mode  Mode
		peers []Peer
		want  []Via
	}{
		{name: "none"},
		{name: "near and far", peers: []Peer{far, near}, want: []Via{{near, false}, {far, true}}},
		{name: "tunnel by choice", mode: Tunnel, peers: []Peer{near}, want: []Via{{near, true}}},
		{name: "range claimed twice", peers: []Peer{peer("b", "192.0.2.3", "10.42.1.0/24"), peer("a", "192.0.2.4", "10.42.1.0/25")},
			want: []Via{{peer("a", "192.0.2.4", "10.42.1.0/25"), false}}},
	} {
		if got := Compute(c.mode, onLink, c.peers); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v; want %v", c.name, got, c.want)
		}
	}
}

// Whatever the order of the nodes: every range of a peer is routed, by it or by one that overlaps, no
// two ways overlap, and only peers off the link are tunnelled to.
func TestComputeProperties(t *testing.T) {
	onLink := []netip.Prefix{netip.MustParsePrefix("192.0.2.0/25")}
	rapid.Check(t, func(t *rapid.T) {
		var peers []Peer
		for i := range rapid.IntRange(0, 8).Draw(t, "peers") {
			peers = append(peers, Peer{
				Name: fmt.Sprint("node-", i),
				IP:   netip.AddrFrom4([4]byte{192, 0, 2, rapid.Byte().Draw(t, "ip")}),
				Pods: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 42, rapid.Byte().Draw(t, "range"), 0}), rapid.IntRange(20, 26).Draw(t, "bits")).Masked(),
			})
		}
		ways := Compute(Auto, onLink, peers)
		for i, w := range ways {
			if !slices.Contains(peers, w.Peer) {
				t.Fatalf("way to nobody: %v", w)
			}
			if w.Tunnelled == onLink[0].Contains(w.IP) {
				t.Fatalf("tunnelled %v to %s", w.Tunnelled, w.IP)
			}
			if slices.ContainsFunc(ways[i+1:], func(v Via) bool { return v.Pods.Overlaps(w.Pods) }) {
				t.Fatalf("ways overlap: %v", ways)
			}
		}
		for _, p := range peers {
			if !slices.ContainsFunc(ways, func(w Via) bool { return w.Pods.Overlaps(p.Pods) }) {
				t.Fatalf("no way to %v", p)
			}
		}
		if other := Compute(Auto, onLink, rapid.Permutation(peers).Draw(t, "order")); !slices.Equal(other, ways) {
			t.Fatalf("order matters: %v and %v", ways, other)
		}
	})
}

func TestPeerOf(t *testing.T) {
	node := func(ranges []string, addresses ...corev1.NodeAddress) *corev1.Node {
		n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}}
		n.Spec.PodCIDRs, n.Status.Addresses = ranges, addresses
		return n
	}
	internal := func(ip string) corev1.NodeAddress {
		return corev1.NodeAddress{Type: corev1.NodeInternalIP, Address: ip}
	}
	external := corev1.NodeAddress{Type: corev1.NodeExternalIP, Address: "203.0.113.1"}
	want := Peer{"n", netip.MustParseAddr("192.0.2.1"), netip.MustParsePrefix("10.42.1.0/24")}
	if got, ok := PeerOf(node([]string{"fd00::/64", "10.42.1.0/24"}, external, internal("fd00::1"), internal("192.0.2.1"))); !ok || got != want {
		t.Errorf("got %v, %v; want %v", got, ok, want)
	}
	for _, n := range []*corev1.Node{
		node(nil, internal("192.0.2.1")),
		node([]string{"nonsense"}, internal("192.0.2.1")),
		node([]string{"10.42.1.0/24"}, external),
	} {
		if got, ok := PeerOf(n); ok {
			t.Errorf("%v is a peer: %v", n, got)
		}
	}
}
