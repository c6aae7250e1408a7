package fault

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"barque.dev/internal/network/namespace"
)

// A bridged line is a namespace with a bridge, and one whose cable is plugged into it.
type bridged struct {
	hub, leaf namespace.Namespace
}

const bridgeName, portName = "bq0", "bq0-1"

var hubIP, leafIP = netip.MustParseAddr("10.98.0.1"), netip.MustParseAddr("10.98.0.2")

func newBridged(t *testing.T) *bridged {
	t.Helper()
	names := [2]string{}
	for i, end := range []string{"hub", "leaf"} {
		names[i] = fmt.Sprintf("barque-drill-test-%d-%s", os.Getpid(), end)
		makeNamespace(t, names[i])
	}
	b := &bridged{namespace.At("/run/netns/" + names[0]), namespace.At("/run/netns/" + names[1])}
	leaf, err := netns.GetFromName(names[1])
	must(t, err)
	defer func() { _ = leaf.Close() }()
	must(t, b.hub.Do(func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: bridgeName}}
		if err := netlink.LinkAdd(bridge); err != nil {
			return err
		}
		port := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: portName, MasterIndex: bridge.Index, Flags: net.FlagUp}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(leaf))}
		if err := netlink.LinkAdd(port); err != nil {
			return err
		}
		return address(bridgeName, hubIP)
	}))
	must(t, b.leaf.Do(func() error { return address("eth0", leafIP) }))
	return b
}

// TestRelay: a relay delays what passes a cable, changes nothing of it, however large, and leaves the cable as it was.
func TestRelay(t *testing.T) {
	b := newBridged(t)
	var listening net.Listener
	must(t, b.leaf.Do(func() (err error) {
		listening, err = net.Listen("tcp4", netip.AddrPortFrom(leafIP, 7000).String())
		return err
	}))
	defer func() { _ = listening.Close() }()
	go func() {
		for {
			c, err := listening.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c); _ = c.Close() }()
		}
	}()
	sent := make([]byte, 4<<20) // more than fits into many segments of the largest size
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	echo := func(data []byte) time.Duration {
		t.Helper()
		var c net.Conn
		must(t, b.hub.Do(func() (err error) {
			c, err = net.DialTimeout("tcp4", netip.AddrPortFrom(leafIP, 7000).String(), 20*time.Second)
			return err
		}))
		defer func() { _ = c.Close() }()
		must(t, c.SetDeadline(time.Now().Add(60*time.Second)))
		began := time.Now()
		go func() { _, _ = c.Write(data) }()
		got := make([]byte, len(data))
		_, err := io.ReadFull(c, got)
		must(t, err)
		if !bytes.Equal(got, data) {
			t.Error("what comes back is not what was sent")
		}
		return time.Since(began)
	}
	echo(sent)
	const least = 20 * time.Millisecond
	var r *relay
	must(t, b.hub.Do(func() (err error) {
		r, err = newRelay(portName, bridgeName, least, least+10*time.Millisecond)
		return err
	}))
	if took := echo([]byte("x")); took < 2*least {
		t.Errorf("there and back takes %v, want %v at least", took, 2*least)
	}
	echo(sent)
	for range 2 { // also when it has ended
		must(t, b.hub.Do(r.close))
	}
	echo(sent)
	must(t, b.hub.Do(func() error {
		links, err := netlink.LinkList()
		if len(links) != 3 { // lo, the bridge and the port
			t.Errorf("%d links are left", len(links))
		}
		return err
	}))
	must(t, b.hub.Do(func() error {
		if _, err := newRelay("none", bridgeName, least, least); err == nil {
			t.Error("a cable that there is not was delayed")
		}
		return nil
	}))
}
