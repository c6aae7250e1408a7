package detect

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
)

// pinger sends ICMP echoes over IPv4. It is used by one goroutine; nothing blocks.
type pinger struct {
	conn     *icmp.PacketConn
	raw      syscall.RawConn
	datagram bool // the kernel's unprivileged kind of socket, which hides IP and ICMP headers' identifiers
	id       uint16
	buf      []byte
}

const icmpv4 = 1 // protocol number (RFC 792)

// newPinger opens a raw socket, or an unprivileged one where net.ipv4.ping_group_range allows.
func newPinger() (*pinger, error) {
	p := &pinger{buf: make([]byte, 1500)}
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	p.id = binary.BigEndian.Uint16(id[:])
	conn, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		var derr error
		if conn, derr = icmp.ListenPacket("udp4", "0.0.0.0"); derr != nil {
			return nil, fmt.Errorf("open socket for ICMP: %w", errors.Join(err, derr))
		}
		p.datagram = true
	}
	p.conn = conn
	sc, ok := conn.IPv4PacketConn().PacketConn.(syscall.Conn)
	if !ok {
		conn.Close()
		return nil, errors.New("open socket for ICMP: it has no descriptor")
	}
	if p.raw, err = sc.SyscallConn(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("open socket for ICMP: %w", err)
	}
	return p, nil
}

func (p *pinger) close() { p.conn.Close() }

// target is one host that gets echoes. Its token tells its answers from those of earlier targets
// and other processes.
type target struct {
	pinger *pinger
	dst    net.Addr
	token  [8]byte
	seq    uint16
}

func (p *pinger) target(addr netip.Addr) *target {
	t := &target{pinger: p}
	ip := net.IP(addr.AsSlice())
	if p.datagram {
		t.dst = &net.UDPAddr{IP: ip}
	} else {
		t.dst = &net.IPAddr{IP: ip}
	}
	_, _ = rand.Read(t.token[:]) // never fails on Linux
	return t
}

// send sends an echo. It may be lost, or refused when the route is gone: either is silence.
func (t *target) send() {
	t.seq++
	msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: int(t.pinger.id), Seq: int(t.seq), Data: t.token[:]}}
	b, err := msg.Marshal(nil)
	if err != nil {
		return
	}
	_, _ = t.pinger.conn.WriteTo(b, t.dst)
}

// replies counts the answers that wait in the socket, without waiting for more.
func (t *target) replies() int {
	n := 0
	for {
		size := -1
		err := t.pinger.raw.Read(func(fd uintptr) bool {
			var err error
			size, _, err = syscall.Recvfrom(int(fd), t.pinger.buf, syscall.MSG_DONTWAIT)
			if err != nil {
				size = -1
			}
			return true
		})
		if err != nil || size < 0 {
			return n
		}
		if t.matches(t.pinger.buf[:size]) {
			n++
		}
	}
}

// matches tells whether a packet answers one of this target's echoes.
func (t *target) matches(packet []byte) bool {
	if !t.pinger.datagram { // a raw socket delivers the IP header too
		h, err := ipv4.ParseHeader(packet)
		if err != nil || len(packet) < h.Len {
			return false
		}
		packet = packet[h.Len:]
	}
	msg, err := icmp.ParseMessage(icmpv4, packet)
	if err != nil || msg.Type != ipv4.ICMPTypeEchoReply {
		return false
	}
	echo, ok := msg.Body.(*icmp.Echo)
	return ok && string(echo.Data) == string(t.token[:])
}
