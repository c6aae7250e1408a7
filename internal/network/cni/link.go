package cni

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"barque.dev/internal/network/namespace"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// EnsureBridge makes the node's bridge as it has to be: address, hardware address, MTU and the
// kernel settings that go with it. It changes only what differs.
func EnsureBridge(ns namespace.Namespace, n Network) error {
	h, err := ns.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	gateway := n.Gateway()
	link, err := h.LinkByName(n.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name, attrs.MTU, attrs.HardwareAddr = n.Bridge, n.MTU, hardwareAddr(gateway.Addr())
		if err = h.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err == nil || errors.Is(err, unix.EEXIST) {
			link, err = h.LinkByName(n.Bridge)
		}
	}
	if err != nil {
		return fmt.Errorf("make bridge %s: %w", n.Bridge, err)
	}
	if link.Type() != "bridge" {
		return fmt.Errorf("make bridge %s: there is a link of that name and type %s", n.Bridge, link.Type())
	}
	if mac := hardwareAddr(gateway.Addr()); link.Attrs().HardwareAddr.String() != mac.String() {
		if err := h.LinkSetHardwareAddr(link, mac); err != nil {
			return fmt.Errorf("set hardware address of bridge %s: %w", n.Bridge, err)
		}
	}
	if err := SetAddress(h, link, gateway); err != nil {
		return err
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		if err := h.LinkSetUp(link); err != nil {
			return fmt.Errorf("set bridge %s up: %w", n.Bridge, err)
		}
	}
	for _, s := range [][2]string{
		// Traffic between two pods comes and goes through the bridge. A redirect would tell
		// the one to send straight to the other, past the packet filter.
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/conf/" + n.Bridge + "/send_redirects", "0"},
		// Host ports answer on loopback addresses too; package proxy keeps pods out.
		{"net/ipv4/conf/" + n.Bridge + "/route_localnet", "1"},
	} {
		if err := ns.SetSysctl(s[0], s[1]); err != nil {
			return err
		}
	}
	return nil
}

// SetAddress gives a link one IPv4 address and takes away others.
func SetAddress(h *netlink.Handle, link netlink.Link, want netip.Prefix) error {
	name := link.Attrs().Name
	have, err := h.AddrList(link, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", name, err)
	}
	present := false
	for _, a := range have {
		if a.IPNet.String() == want.String() {
			present = true
			continue
		}
		if err := h.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("remove address %s from %s: %w", a.IPNet, name, err)
		}
	}
	if present {
		return nil
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(want)}); err != nil {
		return fmt.Errorf("give address %s to %s: %w", want, name, err)
	}
	return nil
}

// hostLink names the node's end of an attachment's pair; 15 bytes, unique to it.
func hostLink(a Attachment) string {
	sum := sha256.Sum256([]byte(a.ContainerID + "/" + a.IfName))
	return "veth" + hex.EncodeToString(sum[:])[:11]
}

// hardwareAddr derives a locally administered address from an IPv4 address. So whoever remembers the
// neighbour is right also after the address went to another pod, or the bridge was made anew.
func hardwareAddr(ip netip.Addr) net.HardwareAddr {
	return append(net.HardwareAddr{0x0a, 0x58}, ip.AsSlice()...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func hostPrefix(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// connect makes the pair of links and everything inside the pod. The links of a former attempt are
// replaced. It returns the hardware address of the node's end.
func connect(host, pod namespace.Namespace, n Network, l Lease) (net.HardwareAddr, error) {
	if err := disconnect(host, l.Attachment); err != nil {
		return nil, err
	}
	h, err := host.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	bridge, err := h.LinkByName(n.Bridge)
	if err != nil {
		return nil, fmt.Errorf("find bridge %s: %w", n.Bridge, err)
	}
	fd, err := unix.Open(pod.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open network namespace %s: %w", pod.Path(), err)
	}
	defer unix.Close(fd)

	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex = hostLink(l.Attachment), n.MTU, bridge.Attrs().Index
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: l.IfName, PeerNamespace: netlink.NsFd(fd),
		PeerHardwareAddr: hardwareAddr(l.Address)}
	if err := h.LinkAdd(veth); err != nil {
		return nil, fmt.Errorf("make links %s and %s: %w", attrs.Name, l.IfName, err)
	}
	link, err := h.LinkByName(attrs.Name)
	if err != nil {
		return nil, fmt.Errorf("find link %s: %w", attrs.Name, err)
	}
	err = errors.Join(h.LinkSetHairpin(link, true), h.LinkSetUp(link))
	if err != nil {
		return nil, fmt.Errorf("set up bridge port %s: %w", attrs.Name, err)
	}
	if err := configure(pod, n, l); err != nil {
		return nil, err
	}
	return link.Attrs().HardwareAddr, nil
}

// configure sets up loopback and the pod's interface.
func configure(pod namespace.Namespace, n Network, l Lease) error {
	h, err := pod.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	lo, err := h.LinkByName("lo")
	if err == nil {
		err = h.LinkSetUp(lo)
	}
	if err != nil {
		return fmt.Errorf("set loopback of the pod up: %w", err)
	}
	link, err := h.LinkByName(l.IfName)
	if err != nil {
		return fmt.Errorf("find link %s of the pod: %w", l.IfName, err)
	}
	if err := h.LinkSetMTU(link, n.MTU); err != nil {
		return fmt.Errorf("set MTU of %s: %w", l.IfName, err)
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: ipNet(hostPrefix(l.Address))}); err != nil {
		return fmt.Errorf("give address %s to %s: %w", l.Address, l.IfName, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s of the pod up: %w", l.IfName, err)
	}
	gateway := n.Gateway().Addr()
	for _, r := range []*netlink.Route{
		{LinkIndex: link.Attrs().Index, Dst: ipNet(hostPrefix(gateway)), Scope: netlink.SCOPE_LINK},
		{LinkIndex: link.Attrs().Index, Dst: ipNet(netip.PrefixFrom(netip.IPv4Unspecified(), 0)), Gw: gateway.AsSlice()},
	} {
		if err := h.RouteReplace(r); err != nil {
			return fmt.Errorf("add route to %s in the pod: %w", r.Dst, err)
		}
	}
	return nil
}

// disconnect deletes an attachment's links. It is no error when there are none.
func disconnect(host namespace.Namespace, a Attachment) error {
	return host.RemoveLink(hostLink(a))
}
