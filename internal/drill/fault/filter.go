package fault

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// tableName is of the packet filter in a machine's network namespace.
const tableName = "barque-drill"

// deafen drops packets as they arrive in a network namespace, before anything else looks at them, so that
// neither side is told; nothing for no addresses.
func deafen(namespace string, from []netip.Addr) error {
	return filter(namespace, func(c *nftables.Conn, table *nftables.Table) {
		if len(from) == 0 {
			return
		}
		chain := addChain(c, table, "deaf", nftables.ChainHookPrerouting)
		for _, ip := range from {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: dropFrom(ip)})
		}
	})
}

// lose drops so many of a hundred packets that arrive in a network namespace, and as many of those that leave it; those
// to itself never.
func lose(namespace string, percent int) error {
	return filter(namespace, func(c *nftables.Conn, table *nftables.Table) {
		if percent == 0 {
			return
		}
		arriving := addChain(c, table, "arriving", nftables.ChainHookPrerouting)
		c.AddRule(&nftables.Rule{Table: table, Chain: arriving, Exprs: dropSome(expr.MetaKeyIIFNAME, percent)})
		leaving := addChain(c, table, "leaving", nftables.ChainHookPostrouting)
		c.AddRule(&nftables.Rule{Table: table, Chain: leaving, Exprs: dropSome(expr.MetaKeyOIFNAME, percent)})
	})
}

// filter replaces the drill's table in a network namespace by one that fill fills, or none if it adds nothing.
func filter(namespace string, fill func(*nftables.Conn, *nftables.Table)) error {
	ns, err := netns.GetFromName(namespace)
	if err != nil {
		return fmt.Errorf("find network namespace %s: %w", namespace, err)
	}
	defer func() { _ = ns.Close() }()
	c, err := nftables.New(nftables.WithNetNSFd(int(ns)))
	if err != nil {
		return fmt.Errorf("speak to nftables of %s: %w", namespace, err)
	}
	table := &nftables.Table{Name: tableName, Family: nftables.TableFamilyIPv4}
	// To add what is there changes nothing, and so it can be deleted whether it was there or not.
	c.AddTable(table)
	c.DelTable(table)
	fill(c, table)
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change the packet filter of %s: %w", namespace, err)
	}
	return nil
}

// addChain adds a chain of a table that need not be there yet.
func addChain(c *nftables.Conn, table *nftables.Table, name string, hook *nftables.ChainHook) *nftables.Chain {
	c.AddTable(table)
	accept := nftables.ChainPolicyAccept
	return c.AddChain(&nftables.Chain{
		Name: name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook, Priority: nftables.ChainPriorityRaw, Policy: &accept,
	})
}

// dropFrom is the rule `ip saddr ADDRESS drop`, which counts.
func dropFrom(ip netip.Addr) []expr.Any {
	const source, length = 12, 4 // of an IPv4 address in its header
	a := ip.As4()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: a[:]},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}

// dropSome is the rule `iifname != "lo" numgen random mod 100 < PERCENT drop`, or with oifname.
func dropSome(link expr.MetaKey, percent int) []expr.Any {
	const nameSize = 16 // of an interface
	lo := make([]byte, nameSize)
	copy(lo, "lo")
	return []expr.Any{
		&expr.Meta{Key: link, Register: 1},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: lo},
		&expr.Numgen{Register: 1, Modulus: 100, Type: unix.NFT_NG_RANDOM},
		// The generated number is in the machine's byte order, and is compared byte by byte.
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
		&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(percent))},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}
