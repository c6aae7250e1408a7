package proxy

import (
	"net"
	"net/netip"
	"testing"

	"github.com/vishvananda/netlink"
)

func TestStaleFlows(t *testing.T) {
	good := netip.MustParseAddrPort("10.42.0.2:53")
	stale := staleFlows{}
	stale.add(Frontend{ElementKey{Addresses, netip.MustParseAddr("10.43.0.1"), UDP, 53}, map[netip.AddrPort]bool{good: true}}, true)
	stale.add(Frontend{ElementKey{Map: Ports, Protocol: UDP, Port: 30053}, map[netip.AddrPort]bool{good: true}}, true)
	stale.add(Frontend{ElementKey{Addresses, netip.MustParseAddr("10.43.0.9"), UDP, 53}, map[netip.AddrPort]bool{good: true}}, false)
	for _, c := range []struct {
		name           string
		protocol       uint8
		dst, answering string
		want           bool
	}{
		{"to an endpoint", 17, "10.43.0.1:53", "10.42.0.2:53", false},
		{"to a former endpoint", 17, "10.43.0.1:53", "10.42.0.3:53", true},
		{"to another port of an endpoint", 17, "10.43.0.1:53", "10.42.0.2:54", true},
		{"never redirected", 17, "10.43.0.1:53", "10.43.0.1:53", true},
		{"TCP", 6, "10.43.0.1:53", "10.42.0.3:53", false},
		{"another port", 17, "10.43.0.1:54", "10.42.0.3:53", false},
		{"of a service that is gone", 17, "10.43.0.9:53", "10.42.0.2:53", true},
		{"node port to an endpoint", 17, "192.0.2.1:30053", "10.42.0.2:53", false},
		{"node port to a former endpoint", 17, "192.0.2.1:30053", "10.42.0.3:53", true},
		{"the same port of somebody else", 17, "198.51.100.1:30053", "198.51.100.1:30053", false},
	} {
		dst, answering := netip.MustParseAddrPort(c.dst), netip.MustParseAddrPort(c.answering)
		flow := &netlink.ConntrackFlow{
			Forward: netlink.IPTuple{Protocol: c.protocol, DstIP: net.IP(dst.Addr().AsSlice()), DstPort: dst.Port()},
			Reverse: netlink.IPTuple{Protocol: c.protocol, SrcIP: net.IP(answering.Addr().AsSlice()), SrcPort: answering.Port()},
		}
		if got := stale.MatchConntrackFlow(flow); got != c.want {
			t.Errorf("%s: stale %v; want %v", c.name, got, c.want)
		}
	}
}
