package fault

import (
	"fmt"
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netns"

	"barque.dev/internal/local"
)

// tableName is of the packet filter in a machine's network namespace.
const tableName = "barque-drill"

// localMachine is a machine of a local cluster.
type localMachine struct{ *local.Machine }

// Of makes a machine of a local cluster one that faults can hit.
func Of(m *local.Machine) Machine { return localMachine{m} }

func (m localMachine) String() string { return m.Name }

func (m localMachine) Address() netip.Addr { return m.IP }

func (m localMachine) Deafen(from []netip.Addr) error { return deafen(m.NetNS(), from) }

// deafen drops packets as they arrive in a network namespace, before anything else looks at them, so that
// neither side is told.
func deafen(namespace string, from []netip.Addr) error {
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
	if len(from) > 0 {
		c.AddTable(table)
		accept := nftables.ChainPolicyAccept
		chain := c.AddChain(&nftables.Chain{
			Name: "deaf", Table: table, Type: nftables.ChainTypeFilter,
			Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityRaw, Policy: &accept,
		})
		for _, ip := range from {
			c.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: dropFrom(ip)})
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("change the packet filter of %s: %w", namespace, err)
	}
	return nil
}

// dropFrom is the rule `ip saddr ADDRESS drop`, which counts.
func dropFrom(ip netip.Addr) []expr.Any {
	const source, length = 12, 4 // of an IPv4 address in its header
	a := ip.As4()
	return []expr.Any{
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: source, Len: length},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: binaryutil.BigEndian.PutUint32(uint32(a[0])<<24 | uint32(a[1])<<16 | uint32(a[2])<<8 | uint32(a[3]))},
		&expr.Counter{},
		&expr.Verdict{Kind: expr.VerdictDrop},
	}
}
