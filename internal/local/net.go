package local

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"syscall"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

func (c *Cluster) bridge() string { return "bq" + c.ID }

// bridgeHardware is the bridge's Ethernet address, a locally administered one.
func (c *Cluster) bridgeHardware() (net.HardwareAddr, error) {
	id, err := hex.DecodeString(c.ID)
	if err != nil || len(id) != 3 {
		return nil, fmt.Errorf("the cluster's ID %q is damaged; remove the cluster with `barque down --dir %s`", c.ID, c.Dir)
	}
	return net.HardwareAddr{0x02, 0xba, 0xc0, id[0], id[1], id[2]}, nil
}

// connect makes the bridge with the host's address on it.
func (c *Cluster) connect() error {
	name := c.bridge()
	// Without an address of its own the bridge takes its ports' lowest, and what the machines
	// know of the host turns wrong whenever a cable comes or goes.
	hw, err := c.bridgeHardware()
	if err != nil {
		return err
	}
	br := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: name, HardwareAddr: hw}}
	if err := netlink.LinkAdd(br); err != nil && !errors.Is(err, syscall.EEXIST) {
		return fmt.Errorf("make bridge %s: %w", name, err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", name, err)
	}
	if err := addAddr(netlink.AddrReplace, link, netip.PrefixFrom(hostAddr(c.Subnet, 1), c.Subnet.Bits())); err != nil {
		return err
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set %s up: %w", name, err)
	}
	return nil
}

func addAddr(add func(netlink.Link, *netlink.Addr) error, link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
	if err := add(link, a); err != nil {
		return fmt.Errorf("give %s the address %s: %w", link.Attrs().Name, p, err)
	}
	return nil
}

// plug makes the machine's network namespace and the cable from it to the bridge, as far as
// they are missing.
func (m *Machine) plug() error {
	ns, err := openNamespace(m.NetNS())
	if err != nil {
		return err
	}
	defer func() { _ = ns.Close() }()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter %s: %w", m.NetNS(), err)
	}
	defer inside.Close()
	if _, err := netlink.LinkByName(m.link()); err != nil {
		if err := m.cable(ns); err != nil {
			return err
		}
	}
	return m.configure(inside)
}

// openNamespace opens a named network namespace, and makes it if need be.
func openNamespace(name string) (netns.NsHandle, error) {
	ns, err := netns.GetFromName(name)
	if err != nil {
		return newNamespace(name)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(ns), &st); err == nil && st.Type == unix.NSFS_MAGIC {
		return ns, nil
	}
	// The name alone, since `barque up` was killed before it was bound to a namespace.
	_ = ns.Close()
	if err := deleteNamespace(name); err != nil {
		return netns.None(), err
	}
	return newNamespace(name)
}

// namespaceDir is where named network namespaces are bound (ip-netns(8)).
const namespaceDir = "/run/netns"

// deleteNamespace deletes a named network namespace, and with it all links, routes and nftables
// tables in it; also one that was never bound.
func deleteNamespace(name string) error {
	path := filepath.Join(namespaceDir, name)
	err := unix.Unmount(path, unix.MNT_DETACH)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove network namespace %s: %w", name, err)
	}
	return nil
}

// newNamespace makes a named network namespace, on a thread of its own.
func newNamespace(name string) (netns.NsHandle, error) {
	type result struct {
		ns  netns.NsHandle
		err error
	}
	ch := make(chan result)
	go func() {
		// The thread is in the new namespace afterwards, and ends with this goroutine.
		runtime.LockOSThread()
		ns, err := netns.NewNamed(name)
		ch <- result{ns, err}
	}()
	r := <-ch
	if r.err != nil {
		return r.ns, fmt.Errorf("make network namespace %s: %w", name, r.err)
	}
	return r.ns, nil
}

// cable lays a veth pair from the bridge to eth0 in ns.
func (m *Machine) cable(ns netns.NsHandle) error {
	br, err := netlink.LinkByName(m.cluster.bridge())
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", m.cluster.bridge(), err)
	}
	veth := &netlink.Veth{
		LinkAttrs:     netlink.LinkAttrs{Name: m.link(), MasterIndex: br.Attrs().Index, Flags: net.FlagUp},
		PeerName:      "eth0",
		PeerNamespace: netlink.NsFd(int(ns)),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("lay a cable to %s: %w", m.Name, err)
	}
	return nil
}

// configure gives the machine its address and a way out.
func (m *Machine) configure(inside *netlink.Handle) error {
	for _, name := range []string{"lo", "eth0"} {
		link, err := inside.LinkByName(name)
		if err != nil {
			return fmt.Errorf("find %s of %s: %w", name, m.Name, err)
		}
		if name == "eth0" {
			if err := addAddr(inside.AddrReplace, link, netip.PrefixFrom(m.IP, m.cluster.Subnet.Bits())); err != nil {
				return err
			}
		}
		if err := inside.LinkSetUp(link); err != nil {
			return fmt.Errorf("set %s of %s up: %w", name, m.Name, err)
		}
	}
	gw := &netlink.Route{Gw: hostAddr(m.cluster.Subnet, 1).AsSlice()}
	if err := inside.RouteReplace(gw); err != nil {
		return fmt.Errorf("give %s a default route: %w", m.Name, err)
	}
	return nil
}

// unplug pulls the machine's cable.
func (m *Machine) unplug() error {
	link, err := netlink.LinkByName(m.link())
	if err != nil {
		var missing netlink.LinkNotFoundError
		if errors.As(err, &missing) {
			return nil
		}
		return fmt.Errorf("find %s's cable: %w", m.Name, err)
	}
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("pull %s's cable: %w", m.Name, err)
	}
	return nil
}

// Port is the host's end of the machine's cable, and the bridge that it is plugged into. Other links of the host whose
// names begin with the port's go with the cluster, too.
func (m *Machine) Port() (port, bridge string) { return m.link(), m.cluster.bridge() }

// SetCable pulls the plug of the machine's cable, or puts it back; the machine goes on.
func (m *Machine) SetCable(in bool) error {
	link, err := netlink.LinkByName(m.link())
	if err != nil {
		return fmt.Errorf("find %s's cable: %w", m.Name, err)
	}
	set := netlink.LinkSetDown
	if in {
		set = netlink.LinkSetUp
	}
	if err := set(link); err != nil {
		return fmt.Errorf("plug %s's cable (in: %t): %w", m.Name, in, err)
	}
	return nil
}

// EnterMachine moves the calling process into the network namespace and gives it the host name
// that the environment names; it must run on the main thread, before any other goroutine that
// matters, and be followed by exec.
func EnterMachine(getenv func(string) string) error {
	name := getenv("BARQUE_NETNS")
	if name == "" {
		return errors.New("`barque machine` is for `barque up`; start a server with `barque server`")
	}
	runtime.LockOSThread()
	ns, err := netns.GetFromName(name)
	if err != nil {
		return fmt.Errorf("find network namespace %s: %w", name, err)
	}
	if err := netns.Set(ns); err != nil {
		return fmt.Errorf("enter network namespace %s: %w", name, err)
	}
	if err := unix.Unshare(unix.CLONE_NEWUTS); err != nil {
		return fmt.Errorf("unshare the host name: %w", err)
	}
	if err := unix.Sethostname([]byte(getenv("BARQUE_HOSTNAME"))); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	return nil
}
