package proxy

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// keyBytes encodes a key as the kernel's registers hold it: every field begins on four bytes.
func keyBytes(k ElementKey) []byte {
	var b []byte
	if k.Map == Addresses {
		b = k.Addr.AsSlice()
	}
	b = append(b, byte(k.Protocol), 0, 0, 0)
	return append(binary.BigEndian.AppendUint16(b, k.Port), 0, 0)
}

// parseKey is the inverse of keyBytes.
func parseKey(m MapName, b []byte) (ElementKey, error) {
	k := ElementKey{Map: m}
	if m == Addresses && len(b) == 12 {
		k.Addr = netip.AddrFrom4([4]byte(b[:4]))
		b = b[4:]
	}
	if len(b) != 8 || (m == Addresses && !k.Addr.IsValid()) {
		return k, fmt.Errorf("nftables map %s has an element of unexpected size", m)
	}
	k.Protocol, k.Port = Protocol(b[0]), binary.BigEndian.Uint16(b[4:6])
	return k, nil
}

// verdictChain reads the chain's name from an element's verdict; empty when it has none.
func verdictChain(val []byte) string {
	d, err := netlink.NewAttributeDecoder(val)
	if err != nil {
		return ""
	}
	for d.Next() {
		if d.Type() == unix.NFTA_VERDICT_CHAIN {
			return strings.TrimRight(d.String(), "\x00")
		}
	}
	return ""
}

// rule encodes a rule. ids holds the numbers of affinity sets that this transaction adds. Anonymous
// maps that the rule needs are added to the transaction.
func (t *Table) rule(c *nftables.Conn, r Rule, ids map[string]uint32) ([]expr.Any, error) {
	var exprs []expr.Any
	if r.FromPrefix.IsValid() {
		exprs = append(exprs, sourceIn(r.FromPrefix, r.Outside)...)
	}
	if r.FromNode {
		exprs = append(exprs, sourceLocal()...)
	}
	if r.FromSet != "" {
		exprs = append(exprs, loadAddress(0, sourceOffset),
			&expr.Lookup{SourceRegister: reg(0), SetName: r.FromSet, SetID: ids[r.FromSet]})
	}
	if r.Masquerade {
		exprs = append(exprs, markMasquerade()...)
	}
	if r.Remember != "" {
		exprs = append(exprs, loadAddress(0, sourceOffset),
			&expr.Dynset{SrcRegKey: reg(0), SetName: r.Remember, SetID: ids[r.Remember],
				Operation: unix.NFT_DYNSET_OP_UPDATE, Timeout: r.RememberTimeout})
	}
	switch {
	case r.Drop:
		return append(exprs, &expr.Verdict{Kind: expr.VerdictDrop}), nil
	case r.Goto != "":
		return append(exprs, &expr.Verdict{Kind: expr.VerdictGoto, Chain: r.Goto}), nil
	case len(r.Endpoints) > 0:
		choose, err := t.chooseEndpoint(c, r.Endpoints)
		return append(exprs, choose...), err
	case len(r.Chains) > 0:
		choose, err := t.chooseChain(c, r.Chains)
		return append(exprs, choose...), err
	}
	return nil, fmt.Errorf("rule %q does nothing", r)
}

// chooseEndpoint rewrites the destination to one of the endpoints.
func (t *Table) chooseEndpoint(c *nftables.Conn, endpoints []netip.AddrPort) ([]expr.Any, error) {
	translate := &expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg(0), RegProtoMin: reg(1)}
	if len(endpoints) == 1 {
		e := endpoints[0]
		return []expr.Any{
			&expr.Immediate{Register: reg(0), Data: e.Addr().AsSlice()},
			&expr.Immediate{Register: reg(1), Data: binaryutil.BigEndian.PutUint16(e.Port())},
			translate,
		}, nil
	}
	var elements []nftables.SetElement
	for i, e := range endpoints {
		elements = append(elements, nftables.SetElement{
			Key: binaryutil.NativeEndian.PutUint32(uint32(i)),
			Val: append(binary.BigEndian.AppendUint16(e.Addr().AsSlice(), e.Port()), 0, 0),
		})
	}
	set := &nftables.Set{KeyType: nftables.TypeInteger, DataType: concat(nftables.TypeIPAddr, nftables.TypeInetService)}
	lookup, err := t.choose(c, set, elements)
	if err != nil {
		return nil, err
	}
	lookup.DestRegister = reg(0)
	return []expr.Any{random(len(endpoints)), lookup, translate}, nil
}

// chooseChain goes on in one of the chains.
func (t *Table) chooseChain(c *nftables.Conn, chains []string) ([]expr.Any, error) {
	var elements []nftables.SetElement
	for i, chain := range chains {
		elements = append(elements, nftables.SetElement{
			Key:         binaryutil.NativeEndian.PutUint32(uint32(i)),
			VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: chain},
		})
	}
	set := &nftables.Set{KeyType: nftables.TypeInteger, DataType: nftables.TypeVerdict}
	lookup, err := t.choose(c, set, elements)
	if err != nil {
		return nil, err
	}
	return []expr.Any{random(len(chains)), lookup}, nil
}

func random(n int) expr.Any {
	return &expr.Numgen{Register: reg(0), Modulus: uint32(n), Type: unix.NFT_NG_RANDOM}
}

// choose adds an anonymous map to the transaction and returns the lookup in it.
func (t *Table) choose(c *nftables.Conn, set *nftables.Set, elements []nftables.SetElement) (*expr.Lookup, error) {
	set.Table, set.Anonymous, set.Constant, set.IsMap = t.table, true, true, true
	set.ID, set.Name = t.setID(), "__map%d"
	if len(elements) <= messageElements {
		if err := c.AddSet(set, elements); err != nil {
			return nil, err
		}
	} else {
		// The size is left open, since it would be taken from the first message.
		if err := c.AddSet(set, nil); err != nil {
			return nil, err
		}
		byID := *set
		byID.Anonymous = false // the library refuses more elements for anonymous sets; the kernel takes them
		if err := inMessages(elements, &byID, c.SetAddElements); err != nil {
			return nil, err
		}
	}
	return &expr.Lookup{SourceRegister: reg(0), SetName: set.Name, SetID: set.ID, IsDestRegSet: true}, nil
}
