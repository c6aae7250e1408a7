package proxy

import (
	"fmt"
	"net"
	"net/netip"

	"barque.dev/internal/network/namespace"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// staleFlows matches tracked UDP connections to a frontend whose endpoint is no longer one of
// the frontend's. UDP has no end of connection: without this, a client that keeps its port would
// be sent to the dead endpoint for ever, or past an endpoint that has come only now.
type staleFlows map[ElementKey]map[netip.AddrPort]bool

func (s staleFlows) add(f Frontend, exists bool) {
	if !exists {
		f.Endpoints = nil
	}
	s[f.Key] = f.Endpoints
}

// MatchConntrackFlow implements netlink.CustomConntrackFilter.
func (s staleFlows) MatchConntrackFlow(flow *netlink.ConntrackFlow) bool {
	if flow.Forward.Protocol != unix.IPPROTO_UDP {
		return false
	}
	dst, endpoint := addr(flow.Forward.DstIP), netip.AddrPortFrom(addr(flow.Reverse.SrcIP), flow.Reverse.SrcPort)
	key := ElementKey{Map: Addresses, Addr: dst, Protocol: UDP, Port: flow.Forward.DstPort}
	if valid, ok := s[key]; ok {
		return !valid[endpoint]
	}
	if endpoint.Addr() == dst {
		return false // not redirected: somebody else's port of the same number
	}
	for _, m := range []MapName{Ports, HostPorts} {
		if valid, ok := s[ElementKey{Map: m, Protocol: UDP, Port: flow.Forward.DstPort}]; ok {
			return !valid[endpoint]
		}
	}
	return false
}

func addr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// forget deletes the stale flows from the kernel's table.
func (s staleFlows) forget(ns namespace.Namespace) error {
	if len(s) == 0 {
		return nil
	}
	h, err := ns.Netfilter()
	if err != nil {
		return err
	}
	defer h.Close()
	if _, err := h.ConntrackDeleteFilters(netlink.ConntrackTable, unix.AF_INET, s); err != nil {
		return fmt.Errorf("delete stale connections: %w", err)
	}
	return nil
}
