package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"barque.dev/internal/network/namespace"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// socketBuffer bounds what one transaction and its acknowledgements take, in bytes. The
	// kernel acknowledges every message before we can read the first.
	socketBuffer = 32 << 20
	// transactionChains bounds the chains of one transaction, and transactionElements its
	// elements, so that both stay well below socketBuffer.
	transactionChains   = 1000
	transactionElements = 20000
	// messageElements bounds the elements of one message, whose list must fit an attribute
	// of 64 KiB; an element with a chain's name may take 300 bytes.
	messageElements = 200
	// affinityClients bounds the clients remembered for one endpoint.
	affinityClients = 65535
)

// Table is the table in the kernel. It is not safe for concurrent use.
type Table struct {
	ns      namespace.Namespace
	base    Base
	table   *nftables.Table
	lastSet uint32
}

// NewTable describes the table in a namespace; nothing is done yet.
func NewTable(ns namespace.Namespace, base Base) *Table {
	return &Table{ns: ns, base: base, table: &nftables.Table{Name: TableName, Family: nftables.TableFamilyIPv4}}
}

// connect gives f a connection for one transaction.
func (t *Table) connect(f func(c *nftables.Conn) error) error {
	options := []nftables.ConnOption{nftables.WithSockOptions(func(c *netlink.Conn) error {
		return errors.Join(c.SetReadBuffer(socketBuffer), c.SetWriteBuffer(socketBuffer))
	})}
	if path := t.ns.Path(); path != "" {
		ns, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("open network namespace: %w", err)
		}
		defer ns.Close()
		options = append(options, nftables.WithNetNSFd(int(ns.Fd())))
	}
	c, err := nftables.New(options...)
	if err != nil {
		return fmt.Errorf("connect to nftables: %w", err)
	}
	return f(c)
}

// setID numbers the sets of a transaction. The library would number them by a global counter.
func (t *Table) setID() uint32 {
	t.lastSet++
	return t.lastSet
}

func concat(types ...nftables.SetDatatype) nftables.SetDatatype {
	return nftables.MustConcatSetType(types...)
}

func (t *Table) mapSet(m MapName) *nftables.Set {
	key := concat(nftables.TypeInetProto, nftables.TypeInetService)
	if m == Addresses {
		key = concat(nftables.TypeIPAddr, nftables.TypeInetProto, nftables.TypeInetService)
	}
	return &nftables.Set{Table: t.table, Name: string(m), IsMap: true, Concatenation: true,
		KeyType: key, DataType: nftables.TypeVerdict}
}

func (t *Table) hairpinSet() *nftables.Set {
	return &nftables.Set{Table: t.table, Name: hairpinSet, Concatenation: true,
		KeyType: concat(nftables.TypeIPAddr, nftables.TypeIPAddr)}
}

func (t *Table) affinitySet(a AffinitySet) *nftables.Set {
	return &nftables.Set{Table: t.table, Name: a.Name, KeyType: nftables.TypeIPAddr,
		Dynamic: true, HasTimeout: true, Timeout: a.Timeout, Size: affinityClients}
}

func (t *Table) chain(name string) *nftables.Chain {
	return &nftables.Chain{Name: name, Table: t.table}
}

// Install sees to the table's fixed part, and returns what the table holds of services. What
// is right is not touched; a change of the fixed part is one transaction.
func (t *Table) Install() (*State, error) {
	var have *State
	err := t.connect(func(c *nftables.Conn) error {
		names, err := t.chainNames(c)
		if err != nil {
			return err
		}
		version := slices.IndexFunc(names, func(n string) bool { return strings.HasPrefix(n, "version-") })
		if version < 0 || names[version] != t.base.marker() {
			sameSchema := version >= 0 && strings.HasPrefix(names[version], fmt.Sprintf("version-%d-", schema))
			if err := t.installBase(c, names, sameSchema); err != nil {
				return fmt.Errorf("install nftables table %s: %w", TableName, err)
			}
		}
		have, err = t.load(c)
		return err
	})
	return have, err
}

// installBase writes the fixed part. keep says that the maps can stay.
func (t *Table) installBase(c *nftables.Conn, names []string, keep bool) error {
	c.AddTable(t.table)
	if !keep {
		c.DelTable(t.table)
		c.AddTable(t.table)
		names = nil
	}
	ids := map[MapName]uint32{}
	for _, m := range []MapName{Addresses, Ports, HostPorts} {
		set := t.mapSet(m)
		set.ID = t.setID()
		ids[m] = set.ID
		if !keep {
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
		}
	}
	hairpin := t.hairpinSet()
	hairpin.ID = t.setID()
	if !keep {
		if err := c.AddSet(hairpin, nil); err != nil {
			return err
		}
	}
	chains := t.base.chains(func(m MapName) uint32 { return ids[m] }, hairpin.ID)
	for _, b := range chains {
		chain := t.chain(b.name)
		if b.hook != nil {
			chain.Type, chain.Hooknum, chain.Priority = b.typ, b.hook, &b.priority
		}
		c.AddChain(chain)
		if slices.Contains(names, b.name) {
			c.FlushChain(chain)
		}
	}
	for _, b := range chains {
		for _, rule := range b.rules {
			c.AddRule(&nftables.Rule{Table: t.table, Chain: t.chain(b.name), Exprs: rule})
		}
	}
	for _, name := range names {
		if strings.HasPrefix(name, "version-") {
			c.DelChain(t.chain(name))
		}
	}
	c.AddChain(t.chain(t.base.marker()))
	return c.Flush()
}

// chainNames lists the table's chains; none when there is no table.
func (t *Table) chainNames(c *nftables.Conn) ([]string, error) {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return nil, fmt.Errorf("list nftables chains: %w", err)
	}
	var names []string
	for _, chain := range chains {
		if chain.Table.Name == TableName {
			names = append(names, chain.Name)
		}
	}
	return names, nil
}

// load reads what the table holds of services.
func (t *Table) load(c *nftables.Conn) (*State, error) {
	have := NewState()
	names, err := t.chainNames(c)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		if strings.Contains(name, "/") {
			have.Chains[name] = true
		}
	}
	sets, err := c.GetSets(t.table)
	if err != nil {
		return nil, fmt.Errorf("list nftables sets: %w", err)
	}
	for _, set := range sets {
		if strings.HasPrefix(set.Name, "affinity/") {
			have.Affinity[set.Name] = true
		}
	}
	for _, m := range []MapName{Addresses, Ports, HostPorts} {
		elements, err := c.GetSetElements(t.mapSet(m))
		if err != nil {
			return nil, fmt.Errorf("list nftables map %s: %w", m, err)
		}
		for _, e := range elements {
			key, err := parseKey(m, e.Key)
			if err != nil {
				return nil, err
			}
			have.Elements[key] = verdictChain(e.Val)
		}
	}
	elements, err := c.GetSetElements(t.hairpinSet())
	if err != nil {
		return nil, fmt.Errorf("list nftables set %s: %w", hairpinSet, err)
	}
	for _, e := range elements {
		if len(e.Key) == 8 {
			have.Hairpin[netip.AddrFrom4([4]byte(e.Key[:4]))] = true
		}
	}
	return have, nil
}

// Apply changes the table. A batch that is too large for a transaction is applied in several,
// cut where no connection can tell: what elements lead to exists before them. have follows
// what the kernel accepted.
func (t *Table) Apply(have *State, b Batch) error {
	for !b.Empty() {
		part := cut(&b)
		err := t.connect(func(c *nftables.Conn) error {
			if err := t.encode(c, part); err != nil {
				return err
			}
			return c.Flush()
		})
		if err != nil {
			return fmt.Errorf("change nftables table %s: %w", TableName, err)
		}
		have.Apply(part)
	}
	return nil
}

// cut takes the next transaction off a batch: as many additions, then element changes, then
// deletions as fit. Deletions wait until all elements have moved.
func cut(b *Batch) Batch {
	var part Batch
	part.AddAffinity, b.AddAffinity = b.AddAffinity, nil
	part.AddChains, b.AddChains = split(b.AddChains, transactionChains)
	if len(b.AddChains) > 0 {
		return part
	}
	if len(b.DeleteElements)+len(b.AddElements) > transactionElements {
		// A key that changes must be deleted and added in one transaction.
		deleted := map[ElementKey]bool{}
		part.DeleteElements, b.DeleteElements = split(b.DeleteElements, transactionElements/2)
		for _, k := range part.DeleteElements {
			deleted[k] = true
		}
		room := transactionElements / 2
		var rest []Element
		waiting := map[ElementKey]bool{}
		for _, k := range b.DeleteElements {
			waiting[k] = true
		}
		for _, e := range b.AddElements {
			if deleted[e.Key] || (room > 0 && !waiting[e.Key]) {
				part.AddElements = append(part.AddElements, e)
				room--
			} else {
				rest = append(rest, e)
			}
		}
		b.AddElements = rest
		return part
	}
	part.DeleteElements, b.DeleteElements = b.DeleteElements, nil
	part.AddElements, b.AddElements = b.AddElements, nil
	part.DeleteHairpin, b.DeleteHairpin = b.DeleteHairpin, nil
	part.AddHairpin, b.AddHairpin = b.AddHairpin, nil
	part.DeleteChains, b.DeleteChains = split(b.DeleteChains, transactionChains)
	if len(b.DeleteChains) == 0 {
		part.DeleteAffinity, b.DeleteAffinity = b.DeleteAffinity, nil
	}
	return part
}

func split[T any](all []T, n int) (head, tail []T) {
	if len(all) <= n {
		return all, nil
	}
	return all[:n], all[n:]
}

func (t *Table) encode(c *nftables.Conn, b Batch) error {
	ids := map[string]uint32{}
	for _, a := range b.AddAffinity {
		set := t.affinitySet(a)
		set.ID = t.setID()
		ids[a.Name] = set.ID
		if err := c.AddSet(set, nil); err != nil {
			return err
		}
	}
	for _, chain := range b.AddChains {
		c.AddChain(t.chain(chain.Name))
		for _, rule := range chain.Rules {
			exprs, err := t.rule(c, rule, ids)
			if err != nil {
				return fmt.Errorf("chain %s: %w", chain.Name, err)
			}
			c.AddRule(&nftables.Rule{Table: t.table, Chain: t.chain(chain.Name), Exprs: exprs})
		}
	}
	if err := t.encodeElements(c, b); err != nil {
		return err
	}
	for _, name := range b.DeleteChains {
		c.DelChain(t.chain(name))
	}
	for _, name := range b.DeleteAffinity {
		c.DelSet(t.affinitySet(AffinitySet{Name: name}))
	}
	return nil
}

func (t *Table) encodeElements(c *nftables.Conn, b Batch) error {
	for _, m := range []MapName{Addresses, Ports, HostPorts} {
		var gone, come []nftables.SetElement
		for _, k := range b.DeleteElements {
			if k.Map == m {
				gone = append(gone, nftables.SetElement{Key: keyBytes(k)})
			}
		}
		for _, e := range b.AddElements {
			if e.Key.Map == m {
				come = append(come, nftables.SetElement{Key: keyBytes(e.Key),
					VerdictData: &expr.Verdict{Kind: expr.VerdictGoto, Chain: e.Chain}})
			}
		}
		if err := inMessages(gone, t.mapSet(m), c.SetDeleteElements); err != nil {
			return err
		}
		if err := inMessages(come, t.mapSet(m), c.SetAddElements); err != nil {
			return err
		}
	}
	if err := inMessages(pairs(b.DeleteHairpin), t.hairpinSet(), c.SetDeleteElements); err != nil {
		return err
	}
	return inMessages(pairs(b.AddHairpin), t.hairpinSet(), c.SetAddElements)
}

func inMessages(all []nftables.SetElement, set *nftables.Set, send func(*nftables.Set, []nftables.SetElement) error) error {
	for part := range slices.Chunk(all, messageElements) {
		if err := send(set, part); err != nil {
			return err
		}
	}
	return nil
}

func pairs(addrs []netip.Addr) []nftables.SetElement {
	var out []nftables.SetElement
	for _, a := range addrs {
		out = append(out, nftables.SetElement{Key: append(a.AsSlice(), a.AsSlice()...)})
	}
	return out
}

// Remove deletes the table with all it holds. It is no error when there is none.
func Remove(ns namespace.Namespace) error {
	t := NewTable(ns, Base{})
	return t.connect(func(c *nftables.Conn) error {
		tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
		if err != nil {
			return fmt.Errorf("list nftables tables: %w", err)
		}
		for _, table := range tables {
			if table.Name == TableName {
				c.DelTable(table)
			}
		}
		if err := c.Flush(); err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("delete nftables table %s: %w", TableName, err)
		}
		return nil
	})
}
