package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// TableName is the nftables table that holds everything of this package.
const TableName = "barque"

// schema counts incompatible changes of the maps' and sets' definitions. A table of another schema is
// replaced as a whole.
const schema = 1

// masqueradeMark is the bit of the packet mark that asks for masquerade; the one kube-proxy uses.
const masqueradeMark = 0x4000

const hairpinSet = "hairpin"

// policyChain is where network policy will look at forwarded traffic; empty until then.
const policyChain = "policy"

// Base is what the fixed chains depend on.
type Base struct {
	ClusterCIDR, ServiceCIDR netip.Prefix
	// Bridge is the name of the pods' bridge.
	Bridge string
}

// baseChain is one of the fixed chains. hook is nil for those that others jump to.
type baseChain struct {
	name     string
	typ      nftables.ChainType
	hook     *nftables.ChainHook
	priority nftables.ChainPriority
	rules    [][]expr.Any
}

// chains builds the fixed chains. Those that others jump to come first.
func (b Base) chains(maps func(MapName) uint32, hairpin uint32) []baseChain {
	lookup := func(m MapName) expr.Any {
		return &expr.Lookup{SourceRegister: reg(0), SetName: string(m), SetID: maps(m), IsDestRegSet: true}
	}
	return []baseChain{
		{name: rejectChain, rules: [][]expr.Any{
			join(protocolIs(unix.IPPROTO_TCP), []expr.Any{&expr.Reject{Type: unix.NFT_REJECT_TCP_RST}}),
			{&expr.Reject{Type: unix.NFT_REJECT_ICMP_UNREACH, Code: 3}}, // port unreachable
		}},
		{name: dropChain, rules: [][]expr.Any{{&expr.Verdict{Kind: expr.VerdictDrop}}}},
		{name: policyChain},
		{name: "services", rules: [][]expr.Any{
			// Clients that are not pods come back to this node for their reply.
			join(destinationIn(b.ServiceCIDR), destinationLocal(false), sourceIn(b.ClusterCIDR, true), markMasquerade()),
			join(loadAddressKey(), []expr.Any{lookup(Addresses)}),
			// Addresses that no service has; without this they would wander about.
			join(destinationIn(b.ServiceCIDR), destinationLocal(false),
				[]expr.Any{&expr.Verdict{Kind: expr.VerdictGoto, Chain: rejectChain}}),
			join(destinationIn(loopback), loadPortKey(), []expr.Any{lookup(HostPorts)}),
			join(destinationIn(loopback), []expr.Any{&expr.Verdict{Kind: expr.VerdictReturn}}),
			join(destinationLocal(true), loadPortKey(), []expr.Any{lookup(Ports)}),
			join(destinationLocal(true), loadPortKey(), []expr.Any{lookup(HostPorts)}),
		}},
		{name: "prerouting", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookPrerouting,
			priority: *nftables.ChainPriorityNATDest, rules: [][]expr.Any{jump("services")}},
		{name: "output", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookOutput,
			priority: *nftables.ChainPriorityNATDest, rules: [][]expr.Any{jump("services")}},
		{name: "postrouting", typ: nftables.ChainTypeNAT, hook: nftables.ChainHookPostrouting,
			priority: *nftables.ChainPriorityNATSource, rules: [][]expr.Any{
				join(marked(), clearMark(), masquerade()),
				join(destinationTranslated(), loadPairKey(),
					[]expr.Any{&expr.Lookup{SourceRegister: reg(0), SetName: hairpinSet, SetID: hairpin}}, masquerade()),
				// Pods' addresses mean nothing outside the cluster.
				join(sourceIn(b.ClusterCIDR, false), outside(b.ClusterCIDR), masquerade()),
			}},
		// The bridge routes to loopback for the sake of host ports (routes.go); nothing may
		// come from a pod that way by itself.
		{name: "guard-loopback", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookPrerouting,
			priority: *nftables.ChainPriorityRaw, rules: [][]expr.Any{
				join(arrivesOn(b.Bridge), destinationIn(loopback), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}),
			}},
		// A reply outside its connection's window is not translated back; let it pass, and
		// the client would answer the stranger with a reset that kills the connection.
		{name: "forward", typ: nftables.ChainTypeFilter, hook: nftables.ChainHookForward,
			priority: *nftables.ChainPriorityFilter, rules: [][]expr.Any{
				join(sourceIn(b.ClusterCIDR, false), invalid(), []expr.Any{&expr.Verdict{Kind: expr.VerdictDrop}}),
				jump(policyChain),
			}},
	}
}

// marker names the empty chain that says which base the table has.
func (b Base) marker() string {
	sum := sha256.New()
	for _, c := range b.chains(func(MapName) uint32 { return 0 }, 0) {
		fmt.Fprintf(sum, "%s %s %v %d\n", c.name, c.typ, c.hook != nil, c.priority)
		for _, rule := range c.rules {
			for _, e := range rule {
				fmt.Fprintf(sum, "%T %+v ", e, e)
			}
			fmt.Fprintln(sum)
		}
	}
	return fmt.Sprintf("version-%d-%s", schema, hex.EncodeToString(sum.Sum(nil)[:8]))
}

// reg is the n-th 32-bit register.
func reg(n uint32) uint32 { return unix.NFT_REG32_00 + n }

func join(parts ...[]expr.Any) []expr.Any {
	var all []expr.Any
	for _, p := range parts {
		all = append(all, p...)
	}
	return all
}

func jump(chain string) []expr.Any {
	return []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: chain}}
}

// Offsets in the IPv4 header (RFC 791).
const (
	sourceOffset      = 12
	destinationOffset = 16
)

func loadAddress(register, offset uint32) expr.Any {
	return &expr.Payload{DestRegister: reg(register), Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: 4}
}

func loadProtocol(register uint32) expr.Any {
	return &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: reg(register)}
}

// loadPort loads the destination port, which TCP, UDP and SCTP have at the same place.
func loadPort(register uint32) expr.Any {
	return &expr.Payload{DestRegister: reg(register), Base: expr.PayloadBaseTransportHeader, Offset: 2, Len: 2}
}

func loadAddressKey() []expr.Any {
	return []expr.Any{loadAddress(0, destinationOffset), loadProtocol(1), loadPort(2)}
}

func loadPortKey() []expr.Any { return []expr.Any{loadProtocol(0), loadPort(1)} }

func loadPairKey() []expr.Any {
	return []expr.Any{loadAddress(0, sourceOffset), loadAddress(1, destinationOffset)}
}

func prefixMatch(offset uint32, p netip.Prefix, op expr.CmpOp) []expr.Any {
	if !p.IsValid() {
		return nil
	}
	mask := make([]byte, 4)
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr.Any{
		loadAddress(0, offset),
		&expr.Bitwise{SourceRegister: reg(0), DestRegister: reg(0), Len: 4, Mask: mask, Xor: make([]byte, 4)},
		&expr.Cmp{Op: op, Register: reg(0), Data: p.Masked().Addr().AsSlice()},
	}
}

func destinationIn(p netip.Prefix) []expr.Any { return prefixMatch(destinationOffset, p, expr.CmpOpEq) }

func sourceIn(p netip.Prefix, not bool) []expr.Any {
	if not {
		return prefixMatch(sourceOffset, p, expr.CmpOpNeq)
	}
	return prefixMatch(sourceOffset, p, expr.CmpOpEq)
}

// outside matches unicast destinations that are not in the prefix.
func outside(p netip.Prefix) []expr.Any {
	multicast := netip.PrefixFrom(netip.AddrFrom4([4]byte{224}), 4)
	return join(prefixMatch(destinationOffset, p, expr.CmpOpNeq), prefixMatch(destinationOffset, multicast, expr.CmpOpNeq))
}

func addressType(source, is bool) []expr.Any {
	op := expr.CmpOpEq
	if !is {
		op = expr.CmpOpNeq
	}
	return []expr.Any{
		&expr.Fib{Register: reg(0), FlagSADDR: source, FlagDADDR: !source, ResultADDRTYPE: true},
		&expr.Cmp{Op: op, Register: reg(0), Data: binaryutil.NativeEndian.PutUint32(unix.RTN_LOCAL)},
	}
}

func destinationLocal(is bool) []expr.Any { return addressType(false, is) }

func sourceLocal() []expr.Any { return addressType(true, true) }

func protocolIs(p byte) []expr.Any {
	return []expr.Any{loadProtocol(0), &expr.Cmp{Op: expr.CmpOpEq, Register: reg(0), Data: []byte{p}}}
}

func arrivesOn(link string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, link)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: unix.NFT_REG_1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: unix.NFT_REG_1, Data: name},
	}
}

func bits(register uint32, mask, xor uint32) expr.Any {
	return &expr.Bitwise{SourceRegister: reg(register), DestRegister: reg(register), Len: 4,
		Mask: binaryutil.NativeEndian.PutUint32(mask), Xor: binaryutil.NativeEndian.PutUint32(xor)}
}

func nonZero(register uint32) expr.Any {
	return &expr.Cmp{Op: expr.CmpOpNeq, Register: reg(register), Data: make([]byte, 4)}
}

func setMark(mask, xor uint32) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)},
		bits(0, mask, xor),
		&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0), SourceRegister: true},
	}
}

func markMasquerade() []expr.Any { return setMark(^uint32(masqueradeMark), masqueradeMark) }

func clearMark() []expr.Any { return setMark(^uint32(masqueradeMark), 0) }

func marked() []expr.Any {
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyMARK, Register: reg(0)}, bits(0, masqueradeMark, 0), nonZero(0)}
}

func masquerade() []expr.Any { return []expr.Any{&expr.Masq{FullyRandom: true}} }

// Bits of linux/netfilter/nf_conntrack_common.h.
const (
	statusDestinationNAT = 1 << 5
	stateInvalid         = 1
)

func destinationTranslated() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATUS, Register: reg(0)}, bits(0, statusDestinationNAT, 0), nonZero(0)}
}

func invalid() []expr.Any {
	return []expr.Any{&expr.Ct{Key: expr.CtKeySTATE, Register: reg(0)}, bits(0, stateInvalid, 0), nonZero(0)}
}
