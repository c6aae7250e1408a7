// Package routes carries packets between the pods of different nodes, and sets up the node's kernel to
// route at all.
//
// A peer on the same link gets a plain route: its pods through its address. Others get a route through
// a VXLAN device (RFC 7348), whose forwarding entries are all fixed in advance: the tunnel's hardware
// address of a node follows from the node's IP, so nodes need to know of each other nothing but what
// is in the Node object, and there is neither learning nor flooding.
//
// [Compute] is pure; [Router] brings the kernel in line. The kernel holds the state: routes carry a
// protocol number of ours, so that a restarted process finds what it made and changes only what differs, and
// no packet is lost on the way.
package routes

import (
	"cmp"
	"net"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Mode says how packets reach other nodes.
type Mode string

const (
	// Auto uses plain routes to nodes on the same link and VXLAN to others.
	Auto Mode = ""
	// Tunnel uses VXLAN to all, for links that drop addresses they do not know, as those of
	// most clouds do.
	Tunnel Mode = "vxlan"
)

// VXLAN parameters, which all nodes must share, and what the encapsulation takes of an MTU: outer
// Ethernet, IPv4, UDP and VXLAN headers.
const (
	VXLANID       = 1
	VXLANPort     = 8472
	VXLANOverhead = 50
)

// Peer is another node with a range of pods.
type Peer struct {
	Name string
	IP   netip.Addr
	Pods netip.Prefix
}

// Via is the way to a peer's pods.
type Via struct {
	Peer
	// Tunnelled means VXLAN; otherwise a plain route through Peer.IP.
	Tunnelled bool
}

// Gateway is the peer's address inside the tunnel: the first of its range, which no pod has.
func (v Via) Gateway() netip.Addr { return v.Pods.Masked().Addr() }

// HardwareAddr is the address of a node's tunnel device.
func HardwareAddr(node netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x59}, node.AsSlice()...)
}

// Compute chooses the way to each peer, in order of the peers' ranges. onLink are the prefixes of
// the link that has the node's own address. Of peers that claim overlapping ranges, which is somebody's
// mistake or a node that was replaced, the first by name has the range.
func Compute(mode Mode, onLink []netip.Prefix, peers []Peer) []Via {
	peers = slices.Clone(peers)
	slices.SortFunc(peers, func(a, b Peer) int {
		return cmp.Or(strings.Compare(a.Name, b.Name), a.Pods.Compare(b.Pods))
	})
	var ways []Via
	for _, p := range peers {
		if slices.ContainsFunc(ways, func(v Via) bool { return v.Pods.Overlaps(p.Pods) }) {
			continue
		}
		near := slices.ContainsFunc(onLink, func(l netip.Prefix) bool { return l.Contains(p.IP) })
		ways = append(ways, Via{Peer: p, Tunnelled: mode == Tunnel || !near})
	}
	slices.SortFunc(ways, func(a, b Via) int { return a.Pods.Compare(b.Pods) })
	return ways
}

// PodCIDR is the node's IPv4 range of pods; ok is false when it has none yet.
func PodCIDR(node *corev1.Node) (pods netip.Prefix, ok bool) {
	ranges := node.Spec.PodCIDRs
	if len(ranges) == 0 {
		ranges = []string{node.Spec.PodCIDR}
	}
	for _, s := range ranges {
		if p, err := netip.ParsePrefix(s); err == nil && p.Addr().Is4() {
			return p.Masked(), true
		}
	}
	return netip.Prefix{}, false
}

// PeerOf reads a peer from a node; ok is false for a node without a range or an internal IPv4
// address.
func PeerOf(node *corev1.Node) (peer Peer, ok bool) {
	pods, ok := PodCIDR(node)
	if !ok {
		return Peer{}, false
	}
	for _, a := range node.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); a.Type == corev1.NodeInternalIP && err == nil && ip.Is4() {
			return Peer{Name: node.Name, IP: ip, Pods: pods}, true
		}
	}
	return Peer{}, false
}
