package routes

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"barque.dev/internal/network/namespace"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Protocol marks our routes in the kernel's table (rtnetlink's rtm_protocol).
const Protocol = netlink.RouteProtocol(183)

// Config describes the node.
type Config struct {
	Namespace namespace.Namespace
	// IP is the node's own address, which is on one of its links.
	IP netip.Addr
	// Bridge and Tunnel are the names of the pods' bridge, which must exist, and of the VXLAN
	// device, which comes and goes with the need.
	Bridge, Tunnel string
	ServiceCIDR    netip.Prefix
	Mode           Mode
}

// Uplink is the link that has the node's address.
type Uplink struct {
	Link     netlink.Link
	Prefixes []netip.Prefix
}

// FindUplink finds the link that has the address.
func FindUplink(ns namespace.Namespace, ip netip.Addr) (Uplink, error) {
	h, err := ns.Netlink()
	if err != nil {
		return Uplink{}, err
	}
	defer h.Close()
	return findUplink(h, ip)
}

func findUplink(h *netlink.Handle, ip netip.Addr) (Uplink, error) {
	links, err := h.LinkList()
	if err != nil {
		return Uplink{}, fmt.Errorf("list links: %w", err)
	}
	for _, link := range links {
		addrs, err := h.AddrList(link, unix.AF_INET)
		if err != nil {
			return Uplink{}, fmt.Errorf("list addresses of %s: %w", link.Attrs().Name, err)
		}
		up := Uplink{Link: link}
		found := false
		for _, a := range addrs {
			addr, ok := netip.AddrFromSlice(a.IP.To4())
			ones, _ := a.Mask.Size()
			if !ok {
				continue
			}
			found = found || addr == ip
			up.Prefixes = append(up.Prefixes, netip.PrefixFrom(addr, ones).Masked())
		}
		if found {
			return up, nil
		}
	}
	return Uplink{}, fmt.Errorf("no link of this machine has the node's address %s", ip)
}

// Router applies ways to the kernel. It has no state of its own and is safe for concurrent use
// as far as the kernel is; one caller at a time is meant.
type Router struct {
	cfg Config
}

// NewRouter describes a router; nothing is done yet.
func NewRouter(cfg Config) *Router { return &Router{cfg: cfg} }

// Prepare sets what the kernel needs to forward packets at all.
func (r *Router) Prepare() error {
	return r.cfg.Namespace.SetSysctl("net/ipv4/ip_forward", "1")
}

// Sync brings routes and tunnel in line with the ways to the peers. own is this node's range.
func (r *Router) Sync(own netip.Prefix, peers []Peer) error {
	h, err := r.cfg.Namespace.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	up, err := findUplink(h, r.cfg.IP)
	if err != nil {
		return err
	}
	bridge, err := h.LinkByName(r.cfg.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", r.cfg.Bridge, err)
	}
	ways := Compute(r.cfg.Mode, up.Prefixes, peers)
	want := []*netlink.Route{{
		// The kernel looks for a route before the packet filter rewrites the destination, so
		// the node itself needs one to the services. The bridge's address as the source is
		// known to all nodes.
		Dst: ipNet(r.cfg.ServiceCIDR), LinkIndex: bridge.Attrs().Index, Scope: netlink.SCOPE_LINK,
		Src: own.Masked().Addr().Next().AsSlice(), Protocol: Protocol,
	}}
	tunnel, err := r.tunnel(h, up, own, ways)
	if err != nil {
		return err
	}
	for _, w := range ways {
		route := &netlink.Route{Dst: ipNet(w.Pods), LinkIndex: up.Link.Attrs().Index, Gw: w.IP.AsSlice(),
			Src: r.cfg.IP.AsSlice(), Protocol: Protocol}
		if w.Tunnelled {
			route.LinkIndex, route.Gw, route.Src = tunnel.Attrs().Index, w.Gateway().AsSlice(), own.Masked().Addr().AsSlice()
			route.Flags = int(netlink.FLAG_ONLINK)
		}
		want = append(want, route)
	}
	if err := syncRoutes(h, want); err != nil {
		return err
	}
	if tunnel != nil {
		return syncNeighbours(h, tunnel, ways, false)
	}
	return r.cfg.Namespace.RemoveLink(r.cfg.Tunnel)
}

// tunnel makes the VXLAN device and its entries for the peers that need it; nil when none does. Entries
// that are no longer needed stay until the routes are gone.
func (r *Router) tunnel(h *netlink.Handle, up Uplink, own netip.Prefix, ways []Via) (netlink.Link, error) {
	need := false
	for _, w := range ways {
		need = need || w.Tunnelled
	}
	if !need {
		return nil, nil
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr = r.cfg.Tunnel, HardwareAddr(r.cfg.IP)
	attrs.MTU = up.Link.Attrs().MTU - VXLANOverhead
	want := &netlink.Vxlan{LinkAttrs: attrs, VxlanId: VXLANID, Port: VXLANPort, SrcAddr: r.cfg.IP.AsSlice(),
		VtepDevIndex: up.Link.Attrs().Index}
	have, err := h.LinkByName(r.cfg.Tunnel)
	if err != nil && !errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil, fmt.Errorf("find link %s: %w", r.cfg.Tunnel, err)
	}
	if have != nil && !sameTunnel(have, want) {
		if err := r.cfg.Namespace.RemoveLink(r.cfg.Tunnel); err != nil {
			return nil, err
		}
		have = nil
	}
	if have == nil {
		if err := h.LinkAdd(want); err != nil {
			return nil, fmt.Errorf("make VXLAN device %s: %w", r.cfg.Tunnel, err)
		}
		if have, err = h.LinkByName(r.cfg.Tunnel); err != nil {
			return nil, fmt.Errorf("find link %s: %w", r.cfg.Tunnel, err)
		}
	}
	if err := setAddress(h, have, own.Masked().Addr()); err != nil {
		return nil, err
	}
	if have.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(have); err != nil {
			return nil, fmt.Errorf("set link %s up: %w", r.cfg.Tunnel, err)
		}
	}
	return have, syncNeighbours(h, have, ways, true)
}

func sameTunnel(have netlink.Link, want *netlink.Vxlan) bool {
	v, ok := have.(*netlink.Vxlan)
	return ok && v.VxlanId == want.VxlanId && v.Port == want.Port && v.VtepDevIndex == want.VtepDevIndex &&
		v.SrcAddr.Equal(want.SrcAddr) && !v.Learning && v.MTU == want.MTU &&
		bytes.Equal(v.HardwareAddr, want.HardwareAddr)
}

func setAddress(h *netlink.Handle, link netlink.Link, want netip.Addr) error {
	name := link.Attrs().Name
	addrs, err := h.AddrList(link, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	present := false
	for _, a := range addrs {
		if a.IP.Equal(want.AsSlice()) {
			present = true
		} else if err := h.AddrDel(link, &a); err != nil {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, name, err)
		}
	}
	if present {
		return nil
	}
	if err := h.AddrAdd(link, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(want, 32))}); err != nil {
		return fmt.Errorf("give address %s to %s: %w", want, name, err)
	}
	return nil
}

// syncRoutes makes our routes equal to want: first what is missing or differs, then what is too much.
func syncRoutes(h *netlink.Handle, want []*netlink.Route) error {
	have, err := h.RouteListFiltered(unix.AF_INET, &netlink.Route{Protocol: Protocol}, netlink.RT_FILTER_PROTOCOL)
	if err != nil {
		return fmt.Errorf("list routes: %w", err)
	}
	byDst := map[string]netlink.Route{}
	for _, route := range have {
		byDst[dst(route)] = route
	}
	wanted := map[string]bool{}
	for _, route := range want {
		wanted[dst(*route)] = true
		if old, ok := byDst[dst(*route)]; ok && sameRoute(old, *route) {
			continue
		}
		if err := h.RouteReplace(route); err != nil {
			return fmt.Errorf("set route to %s: %w", route.Dst, err)
		}
	}
	for _, route := range have {
		if wanted[dst(route)] {
			continue
		}
		if err := h.RouteDel(&route); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("delete route to %s: %w", route.Dst, err)
		}
	}
	return nil
}

func dst(r netlink.Route) string {
	if r.Dst == nil {
		return "default"
	}
	return r.Dst.String()
}

func sameRoute(a, b netlink.Route) bool {
	return a.LinkIndex == b.LinkIndex && a.Gw.Equal(b.Gw) && a.Src.Equal(b.Src)
}

// neighbour is one fixed entry of the tunnel: a gateway's hardware address (IPv4 family) or the
// node behind a hardware address (bridge family).
type neighbour struct {
	family int
	ip     netip.Addr
	mac    string
}

// syncNeighbours makes the tunnel's entries equal to what the ways need; with keep set, nothing
// is deleted yet.
func syncNeighbours(h *netlink.Handle, tunnel netlink.Link, ways []Via, keep bool) error {
	index, name := tunnel.Attrs().Index, tunnel.Attrs().Name
	want := map[neighbour]netlink.Neigh{}
	for _, w := range ways {
		if !w.Tunnelled {
			continue
		}
		mac := HardwareAddr(w.IP)
		want[neighbour{unix.AF_INET, w.Gateway(), mac.String()}] = netlink.Neigh{LinkIndex: index, Family: unix.AF_INET,
			State: unix.NUD_PERMANENT, IP: w.Gateway().AsSlice(), HardwareAddr: mac}
		want[neighbour{unix.AF_BRIDGE, w.IP, mac.String()}] = netlink.Neigh{LinkIndex: index, Family: unix.AF_BRIDGE,
			State: unix.NUD_PERMANENT, Flags: netlink.NTF_SELF, IP: w.IP.AsSlice(), HardwareAddr: mac}
	}
	for _, family := range []int{unix.AF_INET, unix.AF_BRIDGE} {
		have, err := h.NeighList(index, family)
		if err != nil {
			return fmt.Errorf("list neighbours of %s: %w", name, err)
		}
		for _, n := range have {
			ip, _ := netip.AddrFromSlice(n.IP)
			key := neighbour{family, ip.Unmap(), n.HardwareAddr.String()}
			if _, ok := want[key]; ok && n.State&unix.NUD_PERMANENT != 0 {
				delete(want, key)
				continue
			}
			// The kernel's own entries, such as those of multicast, are not permanent.
			if keep || n.State&unix.NUD_PERMANENT == 0 {
				continue
			}
			if err := h.NeighDel(&n); err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("delete neighbour %s of %s: %w", n.IP, name, err)
			}
		}
	}
	for _, n := range want {
		if err := h.NeighSet(&n); err != nil {
			return fmt.Errorf("set neighbour %s of %s: %w", n.IP, name, err)
		}
	}
	return nil
}

// Remove deletes all that Sync makes. It is no error when there is nothing.
func (r *Router) Remove() error {
	h, err := r.cfg.Namespace.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	return errors.Join(syncRoutes(h, nil), r.cfg.Namespace.RemoveLink(r.cfg.Tunnel))
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
