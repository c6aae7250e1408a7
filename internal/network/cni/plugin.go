package cni

import (
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"barque.dev/internal/network/namespace"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// OrphanGrace is how long a lease may be without its link before it counts as leaked; far longer
// than connecting a pod takes.
const OrphanGrace = time.Minute

// Plugin is the CNI plugin. Host is the node's network namespace; the zero value is the
// caller's own, which is what the program uses.
type Plugin struct {
	Host namespace.Namespace
}

// Funcs are the plugin's commands, for skel.PluginMainFuncs.
func (p Plugin) Funcs() skel.CNIFuncs {
	return skel.CNIFuncs{
		Add: func(args *skel.CmdArgs) error {
			c, err := parseConfig(args)
			if err != nil {
				return err
			}
			result, err := p.Add(args)
			if err != nil {
				return err
			}
			return types.PrintResult(result, c.CNIVersion)
		},
		Del:    p.Del,
		Check:  p.Check,
		GC:     p.GC,
		Status: p.Status,
	}
}

// open reads the call's configuration and opens the store that it names.
func open(args *skel.CmdArgs) (*config, *Store, error) {
	c, err := parseConfig(args)
	if err != nil {
		return nil, nil, err
	}
	store, err := OpenStore(c.StateDir)
	return c, store, err
}

// Add connects a pod. A second call for the same attachment gives the same address.
func (p Plugin) Add(args *skel.CmdArgs) (*types100.Result, error) {
	c, store, err := open(args)
	if err != nil {
		return nil, err
	}
	if err := EnsureBridge(p.Host, c.Network); err != nil {
		return nil, err
	}
	lease := Lease{Attachment: Attachment{args.ContainerID, args.IfName}, Netns: args.Netns, PortMappings: c.RuntimeConfig.PortMappings}
	lease.Namespace, lease.Pod = podName(args.Args)
	lease, err = p.allocate(store, c.Network, lease)
	if err != nil {
		return nil, err
	}
	mac, err := connect(p.Host, namespace.At(args.Netns), c.Network, lease)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect pod %s/%s: %w", lease.Namespace, lease.Pod, err),
			disconnect(p.Host, lease.Attachment), store.Release(lease.Attachment))
	}
	return result(c.Network, lease, mac), nil
}

// allocate takes an address, and when there is none, looks for leaked ones first.
func (p Plugin) allocate(store *Store, n Network, lease Lease) (Lease, error) {
	got, err := store.Allocate(n.PodCIDR, lease)
	if !errors.Is(err, errRangeFull) {
		return got, err
	}
	gone, cerr := p.CollectOrphans(n.StateDir, OrphanGrace)
	if cerr != nil || len(gone) == 0 {
		return got, errors.Join(err, cerr)
	}
	return store.Allocate(n.PodCIDR, lease)
}

func result(n Network, l Lease, hostMAC net.HardwareAddr) *types100.Result {
	inPod := 1
	gateway := n.Gateway().Addr().AsSlice()
	return &types100.Result{
		CNIVersion: types100.ImplementedSpecVersion,
		Interfaces: []*types100.Interface{
			{Name: hostLink(l.Attachment), Mac: hostMAC.String(), Mtu: n.MTU},
			{Name: l.IfName, Mac: hardwareAddr(l.Address).String(), Mtu: n.MTU, Sandbox: l.Netns},
		},
		IPs:    []*types100.IPConfig{{Interface: &inPod, Address: *ipNet(hostPrefix(l.Address)), Gateway: gateway}},
		Routes: []*types.Route{{Dst: net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}, GW: gateway}},
	}
}

// Del disconnects a pod. It succeeds also when there is nothing left to do, or the pod's namespace
// is gone.
func (p Plugin) Del(args *skel.CmdArgs) error {
	_, store, err := open(args)
	if err != nil {
		return err
	}
	a := Attachment{args.ContainerID, args.IfName}
	if err := disconnect(p.Host, a); err != nil {
		return err
	}
	return store.Release(a)
}

// Check says what is wrong with a pod's network; nil when nothing is.
func (p Plugin) Check(args *skel.CmdArgs) error {
	c, store, err := open(args)
	if err != nil {
		return err
	}
	a := Attachment{args.ContainerID, args.IfName}
	lease, ok, err := store.Find(a)
	if err != nil {
		return err
	}
	if !ok {
		return types.NewError(types.ErrUnknownContainer, "pod has no address", args.ContainerID)
	}
	if err := p.checkHost(c.Network, a); err != nil {
		return err
	}
	return checkPod(namespace.At(args.Netns), c.Network, lease)
}

func (p Plugin) checkHost(n Network, a Attachment) error {
	h, err := p.Host.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(hostLink(a))
	if err != nil {
		return fmt.Errorf("find link %s: %w", hostLink(a), err)
	}
	bridge, err := h.LinkByName(n.Bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", n.Bridge, err)
	}
	if link.Attrs().MasterIndex != bridge.Attrs().Index {
		return fmt.Errorf("link %s is not a port of bridge %s", hostLink(a), n.Bridge)
	}
	if link.Attrs().Flags&net.FlagUp == 0 {
		return fmt.Errorf("link %s is down", hostLink(a))
	}
	return nil
}

func checkPod(pod namespace.Namespace, n Network, l Lease) error {
	h, err := pod.Netlink()
	if err != nil {
		return err
	}
	defer h.Close()
	link, err := h.LinkByName(l.IfName)
	if err != nil {
		return fmt.Errorf("find link %s of the pod: %w", l.IfName, err)
	}
	addrs, err := h.AddrList(link, unix.AF_INET)
	if err != nil {
		return fmt.Errorf("list addresses of %s: %w", l.IfName, err)
	}
	found := false
	for _, a := range addrs {
		found = found || a.IP.Equal(l.Address.AsSlice())
	}
	if !found {
		return fmt.Errorf("link %s of the pod has not the address %s", l.IfName, l.Address)
	}
	routes, err := h.RouteListFiltered(unix.AF_INET, &netlink.Route{Gw: n.Gateway().Addr().AsSlice()}, netlink.RT_FILTER_GW)
	if err != nil {
		return fmt.Errorf("list routes of the pod: %w", err)
	}
	if len(routes) == 0 {
		return fmt.Errorf("pod has no route through %s", n.Gateway().Addr())
	}
	return nil
}

// GC disconnects what the runtime does not know any more.
func (p Plugin) GC(args *skel.CmdArgs) error {
	c, store, err := open(args)
	if err != nil {
		return err
	}
	valid := map[Attachment]bool{}
	for _, a := range c.ValidAttachments {
		valid[Attachment{a.ContainerID, a.IfName}] = true
	}
	leases, err := store.Leases()
	if err != nil {
		return err
	}
	for _, l := range leases {
		if valid[l.Attachment] {
			continue
		}
		if err := disconnect(p.Host, l.Attachment); err != nil {
			return err
		}
		if err := store.Release(l.Attachment); err != nil {
			return err
		}
	}
	return nil
}

// Status says whether the plugin could connect a pod now.
func (p Plugin) Status(args *skel.CmdArgs) error {
	c, err := parseConfig(args)
	if err != nil {
		return err
	}
	if _, err := OpenStore(c.StateDir); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "state directory not usable", err.Error())
	}
	if err := EnsureBridge(p.Host, c.Network); err != nil {
		return types.NewError(types.ErrPluginNotAvailable, "bridge not usable", err.Error())
	}
	return nil
}

// CollectOrphans frees the addresses of pods whose network is gone, as after a reboot, and returns
// their leases. A pod has no network when the node's end of its pair is gone, which happens with
// the pod's namespace. Leases younger than grace are left alone: their pods may be on the way.
func (p Plugin) CollectOrphans(stateDir string, grace time.Duration) ([]Lease, error) {
	store, err := OpenStore(stateDir)
	if err != nil {
		return nil, err
	}
	h, err := p.Host.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return store.Collect(func(l Lease) bool {
		if time.Since(l.Written) < grace {
			return false
		}
		_, err := h.LinkByName(hostLink(l.Attachment))
		return errors.As(err, new(netlink.LinkNotFoundError))
	})
}

// DisconnectAll disconnects every pod and frees its address. It is no error when the state
// directory does not exist.
func (p Plugin) DisconnectAll(stateDir string) error {
	if _, err := os.Stat(stateDir); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	store, err := OpenStore(stateDir)
	if err != nil {
		return err
	}
	gone, err := store.Collect(func(Lease) bool { return true })
	for _, l := range gone {
		err = errors.Join(err, disconnect(p.Host, l.Attachment))
	}
	return err
}
