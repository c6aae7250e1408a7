package fault

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"barque.dev/internal/network/namespace"
)

// A line is two namespaces with a cable between them: the near one has one address, the far one two.
type line struct {
	near      string
	farNS     namespace.Namespace
	listening *net.UDPConn
}

var near, far, other = netip.MustParseAddr("10.99.0.1"), netip.MustParseAddr("10.99.0.2"), netip.MustParseAddr("10.99.0.3")

func newLine(t *testing.T) *line {
	t.Helper()
	var names [2]string
	for i, end := range []string{"near", "far"} {
		names[i] = fmt.Sprintf("barque-drill-test-%d-%s", os.Getpid(), end)
		makeNamespace(t, names[i])
	}
	path := func(name string) namespace.Namespace { return namespace.At("/run/netns/" + name) }
	l := &line{near: names[0], farNS: path(names[1])}
	farHandle, err := netns.GetFromName(names[1])
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = farHandle.Close() }()
	must(t, path(names[0]).Do(func() error {
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(farHandle))}); err != nil {
			return err
		}
		return address("eth0", near)
	}))
	must(t, l.farNS.Do(func() error { return address("eth0", far, other) }))
	must(t, path(names[0]).Do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(lo); err != nil {
			return err
		}
		l.listening, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(near, 7000)))
		return err
	}))
	t.Cleanup(func() { _ = l.listening.Close() })
	return l
}

// makeNamespace makes a named network namespace for the length of a test.
func makeNamespace(t *testing.T, name string) {
	t.Helper()
	made := make(chan error)
	go func() {
		runtime.LockOSThread() // the thread ends in the new namespace, with this goroutine
		ns, err := netns.NewNamed(name)
		if err == nil {
			err = ns.Close()
		}
		made <- err
	}()
	must(t, <-made)
	t.Cleanup(func() { must(t, netns.DeleteNamed(name)) })
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// address gives a link addresses, and sets it up.
func address(name string, all ...netip.Addr) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range all {
		if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(24, 32)}}); err != nil {
			return err
		}
	}
	return netlink.LinkSetUp(link)
}

// first is whose packet arrives first when one is sent from each address in turn: packets on one cable
// keep their order.
func (l *line) first(t *testing.T, from ...netip.Addr) netip.Addr {
	t.Helper()
	for _, a := range from {
		must(t, l.farNS.Do(func() error {
			c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(near, 7000)))
			if err != nil {
				return err
			}
			defer func() { _ = c.Close() }()
			_, err = c.Write([]byte("x"))
			return err
		}))
	}
	must(t, l.listening.SetReadDeadline(time.Now().Add(10*time.Second)))
	buf := make([]byte, 10)
	_, sender, err := l.listening.ReadFromUDPAddrPort(buf)
	must(t, err)
	return sender.Addr()
}

// TestDeafen: a machine does not hear those that it is deaf to, hears others, and hears all again.
func TestDeafen(t *testing.T) {
	l := newLine(t)
	if got := l.first(t, far); got != far {
		t.Fatalf("before, %s is heard", got)
	}
	must(t, deafen(l.near, []netip.Addr{netip.MustParseAddr("10.99.0.9"), far}))
	if got := l.first(t, far, other); got != other {
		t.Errorf("%s is heard, want %s alone", got, other)
	}
	for range 2 { // also when it hears all already
		must(t, deafen(l.near, nil))
		if got := l.first(t, far); got != far {
			t.Errorf("afterwards, %s is heard", got)
		}
	}
	if err := deafen("barque-drill-test-none", nil); err == nil {
		t.Error("a namespace that there is not was made deaf")
	}
}

// arrived counts the packets that arrive of so many that are sent, by the last one, which is sent when nothing is lost any more.
func (l *line) arrived(t *testing.T, sent int) (n int) {
	t.Helper()
	must(t, l.farNS.Do(func() error {
		c, err := net.DialUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(far, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(near, 7000)))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		for range sent {
			if _, err := c.Write([]byte("x")); err != nil {
				return err
			}
		}
		must(t, lose(l.near, 0))
		_, err = c.Write([]byte("end"))
		return err
	}))
	must(t, l.listening.SetReadDeadline(time.Now().Add(10*time.Second)))
	for buf := make([]byte, 10); ; n++ {
		got, _, err := l.listening.ReadFromUDPAddrPort(buf)
		must(t, err)
		if string(buf[:got]) == "end" {
			return n
		}
	}
}

// TestLose: about as many packets are lost as were asked for, of those that arrive and of those that leave, and none
// afterwards.
func TestLose(t *testing.T) {
	l := newLine(t)
	const sent = 200 // fewer than a socket holds
	for percent, bounds := range map[int][2]int{0: {sent, sent}, 50: {50, 150}, 100: {0, 0}} {
		must(t, lose(l.near, percent))
		if got := l.arrived(t, sent); got < bounds[0] || got > bounds[1] {
			t.Errorf("with %d %% lost, %d of %d arrive", percent, got, sent)
		}
	}
	// A machine speaks to itself whatever is lost.
	must(t, lose(l.near, 100))
	must(t, namespace.At("/run/netns/"+l.near).Do(func() error {
		c, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(near, 7000)))
		if err != nil {
			return err
		}
		defer func() { _ = c.Close() }()
		_, err = c.Write([]byte("self"))
		return err
	}))
	must(t, l.listening.SetReadDeadline(time.Now().Add(10*time.Second)))
	_, _, err := l.listening.ReadFromUDPAddrPort(make([]byte, 10))
	must(t, err)
	// What leaves is lost, too.
	_, err = l.listening.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(far, 7000))
	if err == nil {
		t.Error("a packet has left")
	}
	must(t, lose(l.near, 0))
	_, err = l.listening.WriteToUDPAddrPort([]byte("x"), netip.AddrPortFrom(far, 7000))
	must(t, err)
}
