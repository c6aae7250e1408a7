package network

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"barque.dev/internal/network/cni"
	"barque.dev/internal/network/namespace"
	"barque.dev/internal/network/proxy"
	"barque.dev/internal/network/routes"
	"barque.dev/internal/testkit"
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
)

// host is a network namespace of the test's own. It has no name: only this process's descriptor
// keeps it, so it goes with all it holds also when the test is killed.
type host struct {
	namespace.Namespace
	ip netip.Addr
}

func newHost(t testing.TB) *host {
	t.Helper()
	fd := make(chan int, 1)
	fail := make(chan error, 1)
	go func() {
		// The thread is in the new namespace and ends with this goroutine.
		runtime.LockOSThread()
		err := unix.Unshare(unix.CLONE_NEWNET)
		n := -1
		if err == nil {
			n, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		fd <- n
		fail <- err
	}()
	n, err := <-fd, <-fail
	if err != nil {
		t.Fatalf("make a network namespace (these tests need root): %v", err)
	}
	t.Cleanup(func() { unix.Close(n) })
	h := &host{Namespace: namespace.At(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), n))}
	h.links(t, func(l *netlink.Handle) error {
		lo, err := l.LinkByName("lo")
		if err != nil {
			return err
		}
		return l.LinkSetUp(lo)
	})
	return h
}

func (h *host) links(t testing.TB, f func(*netlink.Handle) error) {
	t.Helper()
	l, err := h.Netlink()
	if err == nil {
		err = f(l)
		l.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func (h *host) fd(t testing.TB) int {
	t.Helper()
	fd, err := unix.Open(h.Path(), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}

// wire is the network between machines: one segment, or a router with a segment per machine.
type wire struct {
	*host
	routed bool
	ports  int
}

func newWire(t testing.TB, routed bool) *wire {
	w := &wire{host: newHost(t), routed: routed}
	if routed {
		if err := w.SetSysctl("net/ipv4/ip_forward", "1"); err != nil {
			t.Fatal(err)
		}
		return w
	}
	w.links(t, func(l *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "wire"
		if err := l.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return err
		}
		link, err := l.LinkByName("wire")
		if err != nil {
			return err
		}
		return l.LinkSetUp(link)
	})
	return w
}

// plug connects a new host to the wire by its link eth0.
func (w *wire) plug(t testing.TB) *host {
	t.Helper()
	w.ports++
	n := w.ports
	h := newHost(t)
	h.ip = netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + n)})
	gateway := netip.Addr{}
	if w.routed {
		h.ip = netip.AddrFrom4([4]byte{198, 51, 100, byte(16*n + 2)})
		gateway = netip.AddrFrom4([4]byte{198, 51, 100, byte(16*n + 1)})
	}
	bits := 24
	if w.routed {
		bits = 28
	}
	fd := h.fd(t)
	defer unix.Close(fd)
	name := fmt.Sprintf("port%d", n)
	w.links(t, func(l *netlink.Handle) error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = name
		if err := l.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: "eth0", PeerNamespace: netlink.NsFd(fd)}); err != nil {
			return err
		}
		link, err := l.LinkByName(name)
		if err != nil {
			return err
		}
		if w.routed {
			if err := l.AddrAdd(link, &netlink.Addr{IPNet: toNet(gateway, bits)}); err != nil {
				return err
			}
		} else {
			bridge, err := l.LinkByName("wire")
			if err != nil {
				return err
			}
			if err := l.LinkSetMaster(link, bridge); err != nil {
				return err
			}
		}
		return l.LinkSetUp(link)
	})
	h.links(t, func(l *netlink.Handle) error {
		link, err := l.LinkByName("eth0")
		if err != nil {
			return err
		}
		if err := l.AddrAdd(link, &netlink.Addr{IPNet: toNet(h.ip, bits)}); err != nil {
			return err
		}
		if err := l.LinkSetUp(link); err != nil {
			return err
		}
		if !w.routed {
			return nil
		}
		return l.RouteAdd(&netlink.Route{Dst: toNet(netip.IPv4Unspecified(), 0), Gw: gateway.AsSlice()})
	})
	return h
}

func toNet(ip netip.Addr, bits int) *net.IPNet {
	return &net.IPNet{IP: ip.AsSlice(), Mask: net.CIDRMask(bits, 32)}
}

// machine is a host that runs a Network.
type machine struct {
	*host
	name string
	cfg  Config
	pods atomic.Int32
	stop func()
}

var (
	clusterCIDR = netip.MustParsePrefix("10.42.0.0/16")
	serviceCIDR = netip.MustParsePrefix("10.43.0.0/16")
	clusterDNS  = netip.MustParseAddr("10.43.0.10")
)

// lab is a cluster without an API server: machines on a wire, and objects in a fake clientset.
type lab struct {
	*wire
	client   *fake.Clientset
	machines []*machine
}

func newLab(t testing.TB, routed bool, machines int, mode routes.Mode) *lab {
	t.Helper()
	l := &lab{wire: newWire(t, routed), client: fake.NewClientset()}
	create(t, l, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "default"}})
	for i := range machines {
		m := &machine{host: l.plug(t), name: fmt.Sprintf("node-%d", i)}
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: m.name}}
		node.Spec.PodCIDRs = []string{fmt.Sprintf("10.42.%d.0/24", i)}
		node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: m.ip.String()}}
		create(t, l, node)
		dir := t.TempDir()
		resolv := filepath.Join(dir, "resolv.conf")
		if err := os.WriteFile(resolv, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		m.cfg = Config{NodeName: m.name, NodeIP: m.ip, Client: l.client, ClusterCIDR: clusterCIDR, ServiceCIDR: serviceCIDR,
			ClusterDNS: clusterDNS, ConfDir: filepath.Join(dir, "net.d"), StateDir: filepath.Join(dir, "state"),
			ResolvConf: resolv, Namespace: m.Path(), Mode: mode, Log: testLog(t)}
		l.machines = append(l.machines, m)
	}
	for i, m := range l.machines {
		// One machine with bridge netfilter, one without; not every kernel has it.
		if err := m.SetSysctl("net/bridge/bridge-nf-call-iptables", fmt.Sprint((i+1)%2)); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
		m.start(t)
	}
	return l
}

// testLog writes to the test's log until the test is over.
func testLog(t testing.TB) *slog.Logger {
	var over atomic.Bool
	t.Cleanup(func() { over.Store(true) })
	w := writerFunc(func(p []byte) (int, error) {
		if !over.Load() {
			t.Log(strings.TrimSpace(string(p)))
		}
		return len(p), nil
	})
	return slog.New(slog.NewTextHandler(w, nil))
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

func create(t testing.TB, l *lab, objs ...any) {
	t.Helper()
	for _, obj := range objs {
		var err error
		switch o := obj.(type) {
		case *corev1.Node:
			_, err = l.client.CoreV1().Nodes().Create(t.Context(), o, metav1.CreateOptions{})
		case *corev1.Namespace:
			_, err = l.client.CoreV1().Namespaces().Create(t.Context(), o, metav1.CreateOptions{})
		default:
			t.Fatalf("create %T", obj)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// start runs the machine's network and waits until pods can start.
func (m *machine) start(t testing.TB) {
	t.Helper()
	n, err := New(m.cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- n.Run(ctx, func() { close(ready) }) }()
	stopped := false
	m.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("network of %s: %v", m.name, err)
		}
	}
	t.Cleanup(m.stop)
	select {
	case <-ready:
	case err := <-ended:
		ended <- err
		t.Fatalf("network of %s ended: %v", m.name, err)
	case <-time.After(20 * time.Second):
		t.Fatalf("network of %s is not ready", m.name)
	}
	eventually(t, "CNI configuration of "+m.name, func() error {
		_, err := os.Stat(filepath.Join(m.cfg.ConfDir, cni.ConfigFile))
		return err
	})
}

// pod is a host that the CNI plugin has connected.
type pod struct {
	*host
	machine *machine
	name    string
	args    *skel.CmdArgs
}

// newPod connects a pod; ports is the JSON list of port mappings, empty for none.
func (m *machine) newPod(t testing.TB, name, ports string) *pod {
	t.Helper()
	p := &pod{host: newHost(t), machine: m, name: name}
	p.args = m.cniArgs(t, fmt.Sprintf("%s-%d", name, m.pods.Add(1)), p.Path(), ports)
	p.args.Args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=" + name
	result, err := cni.Plugin{Host: m.Namespace}.Add(p.args)
	if err != nil {
		t.Fatalf("connect pod %s: %v", name, err)
	}
	ip, ok := netip.AddrFromSlice(result.IPs[0].Address.IP)
	if !ok {
		t.Fatalf("pod %s has no address: %v", name, result)
	}
	p.ip = ip.Unmap()
	return p
}

// cniArgs builds a call of the plugin from the configuration list that the network wrote, as
// a runtime does.
func (m *machine) cniArgs(t testing.TB, id, netns, ports string) *skel.CmdArgs {
	t.Helper()
	if ports == "" {
		ports = "[]"
	}
	conf := pluginConfig(t, filepath.Join(m.cfg.ConfDir, cni.ConfigFile))
	conf["runtimeConfig"] = rawJSON(`{"portMappings":` + ports + `}`)
	return &skel.CmdArgs{ContainerID: id, Netns: netns, IfName: "eth0", StdinData: encode(t, conf)}
}

// serve answers every TCP connection and UDP packet on the port with "name source-address" until the
// test ends, or stop is called.
func (h *host) serve(t testing.TB, name string, port int) (stop func()) {
	t.Helper()
	// Not on all addresses: a UDP answer would leave with that of the link it leaves by.
	address := fmt.Sprintf("%s:%d", h.ip, port)
	var l net.Listener
	var u net.PacketConn
	err := h.Do(func() (err error) {
		if l, err = net.Listen("tcp4", address); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp4", address)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go talk(c, name)
		}
	}()
	go func() {
		b := make([]byte, 100)
		for {
			_, from, err := u.ReadFrom(b)
			if err != nil {
				return
			}
			_, _ = u.WriteTo([]byte(name+" "+from.String()+"\n"), from)
		}
	}()
	stop = func() { l.Close(); u.Close() }
	t.Cleanup(stop)
	return stop
}

// talk answers every line.
func talk(c net.Conn, name string) {
	defer c.Close()
	lines := bufio.NewScanner(c)
	for lines.Scan() {
		if _, err := fmt.Fprintf(c, "%s %s\n", name, c.RemoteAddr()); err != nil {
			return
		}
	}
}

// dial connects from the host.
func (h *host) dial(network, address string) (net.Conn, error) {
	var c net.Conn
	err := h.Do(func() (err error) {
		c, err = (&net.Dialer{Timeout: 2 * time.Second}).Dial(network, address)
		return err
	})
	return c, err
}

// ask sends one line and returns who answered and which source it saw.
func (h *host) ask(network, address string) (name string, source netip.AddrPort, err error) {
	c, err := h.dial(network, address)
	if err != nil {
		return "", netip.AddrPort{}, err
	}
	defer c.Close()
	return exchange(c)
}

func exchange(c net.Conn) (name string, source netip.AddrPort, err error) {
	if err := c.SetDeadline(time.Now().Add(2 * time.Second)); err != nil {
		return "", source, err
	}
	if _, err := io.WriteString(c, "who\n"); err != nil {
		return "", source, err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", source, err
	}
	var from string
	if _, err := fmt.Sscan(line, &name, &from); err != nil {
		return "", source, err
	}
	source, err = netip.ParseAddrPort(from)
	return name, source, err
}

// eventually waits until f returns nil.
func eventually(t testing.TB, what string, f func() error) {
	t.Helper()
	testkit.Eventually(t, 10*time.Second, what, f)
}

func giveAddress(t testing.TB, h *host, link, address string) {
	t.Helper()
	p := netip.MustParsePrefix(address)
	h.links(t, func(l *netlink.Handle) error {
		dev, err := l.LinkByName(link)
		if err != nil {
			return err
		}
		return l.AddrAdd(dev, &netlink.Addr{IPNet: toNet(p.Addr(), p.Bits())})
	})
}

func route(t testing.TB, h *host, to string, via netip.Addr) {
	t.Helper()
	p := netip.MustParsePrefix(to)
	h.links(t, func(l *netlink.Handle) error {
		return l.RouteAdd(&netlink.Route{Dst: toNet(p.Addr(), p.Bits()), Gw: via.AsSlice()})
	})
}

func removeTable(m *machine) error { return proxy.Remove(m.Namespace) }
