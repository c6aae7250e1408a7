package integration

import (
	"context"
	"encoding/binary"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// claims follows who claims an address, by the kernel's clock of each frame. A machine that speaks
// again, shortly after another one spoke, did not give the address up.
type claims struct {
	holder  string
	last    map[string]time.Time // by hardware address
	began   time.Time            // of the change of holders that a claim of the old one is measured against
	longest time.Duration        // for which the old holder went on
	at      time.Time            // when that was
}

// calm is how long a machine is silent before it may take the address anew: no leadership comes and goes
// in less.
const calm = time.Second

func (c *claims) add(machine string, at time.Time) {
	before, known := c.last[machine]
	if machine != c.holder {
		if !known || at.Sub(before) > calm {
			c.began = at
		} else if d := at.Sub(c.began); d > c.longest {
			c.longest, c.at = d, at
		}
	}
	c.holder, c.last[machine] = machine, at
}

// TestClaims tells a handover from two who hold at once.
func TestClaims(t *testing.T) {
	type claim struct {
		machine string
		at      time.Duration
	}
	for name, tt := range map[string]struct {
		claims []claim
		want   time.Duration
	}{
		"one":                {[]claim{{"a", 0}, {"a", 50}, {"a", 100}}, 0},
		"a handover":         {[]claim{{"a", 0}, {"b", 50}, {"b", 100}}, 0},
		"there and back":     {[]claim{{"a", 0}, {"b", 50}, {"b", 3000}, {"a", 3050}, {"b", 3060}}, 10},
		"one word too much":  {[]claim{{"a", 0}, {"b", 50}, {"a", 80}, {"b", 100}}, 50},
		"a long quarrel":     {[]claim{{"a", 0}, {"b", 50}, {"a", 100}, {"b", 500}, {"a", 900}}, 850},
		"back after a while": {[]claim{{"a", 0}, {"b", 50}, {"a", 2000}, {"a", 2050}}, 0},
	} {
		c := claims{last: map[string]time.Time{}}
		for _, one := range tt.claims {
			c.add(one.machine, time.Unix(1, 0).Add(one.at*time.Millisecond))
		}
		if c.longest != tt.want*time.Millisecond {
			t.Errorf("%s: %v, want %v", name, c.longest, tt.want*time.Millisecond)
		}
	}
}

// watchVIP asks by ARP who has the virtual IP, all the time, and returns the longest time for which
// one machine went on claiming it after another one had, and when that was.
func (c *cluster) watchVIP(t *testing.T) (doubled func() (time.Duration, time.Time)) {
	t.Helper()
	link, err := net.InterfaceByName("bq" + c.ID)
	if err != nil {
		t.Fatal(err)
	}
	const arp = unix.ETH_P_ARP<<8&0xff00 | unix.ETH_P_ARP>>8
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, arp)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: arp, Ifindex: link.Index}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 20_000}); err != nil {
		t.Fatal(err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1); err != nil {
		t.Fatal(err)
	}
	vip := c.VIP.As4()
	ask := question(link.HardwareAddr, c.Subnet.Addr().Next().As4(), vip)
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var mu sync.Mutex
	seen := claims{last: map[string]time.Time{}}
	var done sync.WaitGroup
	done.Go(func() {
		tick := time.NewTicker(50 * time.Millisecond)
		defer tick.Stop()
		for ctx.Err() == nil {
			_, _ = unix.Write(fd, ask)
			<-tick.C
		}
	})
	done.Go(func() {
		for ctx.Err() == nil {
			if machine, at, ok := readClaim(fd, vip); ok {
				mu.Lock()
				seen.add(machine, at)
				mu.Unlock()
			}
		}
	})
	t.Cleanup(func() { cancel(); done.Wait(); _ = unix.Close(fd) })
	return func() (time.Duration, time.Time) { mu.Lock(); defer mu.Unlock(); return seen.longest, seen.at }
}

// question is the frame of an ARP request (RFC 826).
func question(hw net.HardwareAddr, own, target [4]byte) []byte {
	frame := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, hw...)
	frame = append(frame, 0x08, 0x06, 0, 1, 0x08, 0, 6, 4, 0, 1)
	frame = append(append(frame, hw...), own[:]...)
	return append(append(frame, 0, 0, 0, 0, 0, 0), target[:]...)
}

// readClaim reads a frame and tells who claims the address in it, and when it arrived.
func readClaim(fd int, address [4]byte) (machine string, at time.Time, ok bool) {
	buf, control := make([]byte, 128), make([]byte, unix.CmsgSpace(16))
	n, cn, _, _, err := unix.Recvmsg(fd, buf, control, 0)
	if err != nil || n < 42 || [4]byte(buf[28:32]) != address {
		return "", at, false
	}
	messages, err := unix.ParseSocketControlMessage(control[:cn])
	if err != nil || len(messages) != 1 || len(messages[0].Data) < 16 {
		return "", at, false
	}
	data := messages[0].Data
	at = time.Unix(int64(binary.NativeEndian.Uint64(data)), int64(binary.NativeEndian.Uint64(data[8:])))
	return string(buf[22:28]), at, true
}
