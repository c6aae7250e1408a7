package detect

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// pinger sends ICMP echoes over IPv4. It is used by one goroutine; nothing blocks. Its socket is not
// under Go's poller, which would wake for each packet although nobody waits for it: the
// socket is read when there is something to decide.
type pinger struct {
	fd       int
	datagram bool // the kernel's unprivileged kind of socket, which hides IP and ICMP headers' identifiers
	id       uint16
	buf      []byte
}

const (
	icmpv4 = 1 // protocol number (RFC 792)

	// A raw socket gets every ICMP packet of the machine unless icmpFilter, a bit for each type that
	// is not wanted, says otherwise (raw(7)).
	icmpFilter = 1
	onlyReply  = ^1
)

// newPinger opens a raw socket, or an unprivileged one where net.ipv4.ping_group_range allows.
func newPinger() (*pinger, error) {
	p := &pinger{buf: make([]byte, 1500)}
	var id [2]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	p.id = binary.BigEndian.Uint16(id[:])
	const flags = unix.SOCK_CLOEXEC | unix.SOCK_NONBLOCK
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|flags, unix.IPPROTO_ICMP)
	if err == nil {
		if err = unix.SetsockoptInt(fd, unix.SOL_RAW, icmpFilter, onlyReply); err != nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil {
		var derr error
		if fd, derr = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|flags, unix.IPPROTO_ICMP); derr != nil {
			return nil, fmt.Errorf("open socket for ICMP: %w", errors.Join(err, derr))
		}
		p.datagram = true
	}
	p.fd = fd
	return p, nil
}

func (p *pinger) close() { _ = unix.Close(p.fd) }

// target is one host that gets echoes. Its token tells its answers from those of earlier targets
// and other processes.
type target struct {
	pinger *pinger
	dst    unix.SockaddrInet4
	token  [8]byte
	seq    uint16
}

func (p *pinger) target(addr netip.Addr) *target {
	t := &target{pinger: p, dst: unix.SockaddrInet4{Addr: addr.As4()}}
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
	_ = unix.Sendto(t.pinger.fd, b, 0, &t.dst)
}

// replies counts the answers that wait in the socket, without waiting for more.
func (t *target) replies() int {
	n := 0
	for {
		size, _, err := unix.Recvfrom(t.pinger.fd, t.pinger.buf, 0)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return n
		case t.matches(t.pinger.buf[:size]):
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
