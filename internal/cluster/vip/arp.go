package vip

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
)

// ARP for IPv4 over Ethernet (RFC 826), with its announcements and conflicts (RFC 5227).
const (
	etherTypeARP  = 0x0806
	etherTypeIPv4 = 0x0800
	hardwareEther = 1

	opRequest = 1
	opReply   = 2

	headerLength = 14
	packetLength = 28
	frameLength  = headerLength + packetLength
)

// packet is an ARP packet.
type packet struct {
	op             uint16
	sender, target netip.Addr
	senderHW       [6]byte
	targetHW       [6]byte
}

var errNoARP = errors.New("not an ARP packet for IPv4 over Ethernet")

// parse reads a packet from an Ethernet frame.
func parse(frame []byte) (packet, error) {
	if len(frame) < frameLength || binary.BigEndian.Uint16(frame[12:]) != etherTypeARP {
		return packet{}, errNoARP
	}
	b := frame[headerLength:]
	if binary.BigEndian.Uint16(b) != hardwareEther || binary.BigEndian.Uint16(b[2:]) != etherTypeIPv4 || b[4] != 6 || b[5] != 4 {
		return packet{}, errNoARP
	}
	return packet{
		op:       binary.BigEndian.Uint16(b[6:]),
		senderHW: [6]byte(b[8:14]), sender: netip.AddrFrom4([4]byte(b[14:18])),
		targetHW: [6]byte(b[18:24]), target: netip.AddrFrom4([4]byte(b[24:28])),
	}, nil
}

// marshal makes the Ethernet frame of a packet.
func (p packet) marshal(destination [6]byte) []byte {
	out := make([]byte, frameLength)
	copy(out, destination[:])
	copy(out[6:], p.senderHW[:])
	binary.BigEndian.PutUint16(out[12:], etherTypeARP)
	b := out[headerLength:]
	binary.BigEndian.PutUint16(b, hardwareEther)
	binary.BigEndian.PutUint16(b[2:], etherTypeIPv4)
	b[4], b[5] = 6, 4
	binary.BigEndian.PutUint16(b[6:], p.op)
	copy(b[8:], p.senderHW[:])
	sender, target := p.sender.As4(), p.target.As4()
	copy(b[14:], sender[:])
	copy(b[18:], p.targetHW[:])
	copy(b[24:], target[:])
	return out
}

// broadcast is the address of all stations.
func broadcast() [6]byte { return [6]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff} }

// announcements tell everybody that ip is at hw: as a request and as a reply, because machines
// differ in which of them they learn from.
func announcements(ip netip.Addr, hw [6]byte) [][]byte {
	request := packet{op: opRequest, sender: ip, target: ip, senderHW: hw}
	reply := packet{op: opReply, sender: ip, target: ip, senderHW: hw, targetHW: broadcast()}
	return [][]byte{request.marshal(broadcast()), reply.marshal(broadcast())}
}

// A reaction is what a holder of an address does about a packet.
type reaction int

const (
	ignore reaction = iota
	answer
	conflict
)

// react decides about a packet that arrived at the holder of ip with the hardware address hw.
// Somebody else who says to have the address is a conflict; a question for it is answered, also
// one of who wants to find out whether it is free (sender 0.0.0.0).
func react(p packet, ip netip.Addr, hw [6]byte) reaction {
	switch {
	case p.senderHW == hw:
		return ignore
	case p.sender == ip:
		return conflict
	case p.op == opRequest && p.target == ip:
		return answer
	}
	return ignore
}

// reply answers a request.
func reply(to packet, ip netip.Addr, hw [6]byte) []byte {
	return packet{op: opReply, sender: ip, senderHW: hw, target: to.sender, targetHW: to.senderHW}.marshal(to.senderHW)
}

func hardware(a net.HardwareAddr) ([6]byte, bool) {
	if len(a) != 6 {
		return [6]byte{}, false
	}
	return [6]byte(a), true
}
