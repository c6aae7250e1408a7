package proxy

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/types"
)

// Protocol is an IP protocol number (RFC 5237): TCP, UDP or SCTP.
type Protocol uint8

// The protocols a Service can have.
const (
	TCP  Protocol = 6
	UDP  Protocol = 17
	SCTP Protocol = 132
)

// String is the lower-case name.
func (p Protocol) String() string {
	switch p {
	case TCP:
		return "tcp"
	case UDP:
		return "udp"
	case SCTP:
		return "sctp"
	}
	return fmt.Sprintf("proto-%d", uint8(p))
}

// MapName is one of the table's verdict maps.
type MapName string

// The verdict maps.
const (
	// Addresses is keyed by destination address, protocol and port.
	Addresses MapName = "addresses"
	// Ports is keyed by protocol and port, and holds for every address of the node but
	// loopback.
	Ports MapName = "ports"
	// HostPorts is Ports for pods' host ports; loopback included.
	HostPorts MapName = "hostports"
)

// ElementKey is the key of an element of a verdict map. Addr is the zero value except in [Addresses].
type ElementKey struct {
	Map      MapName
	Addr     netip.Addr
	Protocol Protocol
	Port     uint16
}

// String reads like nft's syntax.
func (k ElementKey) String() string {
	if k.Map == Addresses {
		return fmt.Sprintf("%s { %s . %s . %d }", k.Map, k.Addr, k.Protocol, k.Port)
	}
	return fmt.Sprintf("%s { %s . %d }", k.Map, k.Protocol, k.Port)
}

// Names of the fixed chains that elements and rules may go to.
const (
	rejectChain = "reject"
	dropChain   = "drop"
)

// Rule is one rule of a service's chain: what must match (everything that is set), then what to do.
// Exactly one of Goto, Endpoints, Chains and Drop is set; Masquerade and Remember may be added.
type Rule struct {
	// FromPrefix matches source addresses inside it, or outside it when Outside is set.
	FromPrefix netip.Prefix
	Outside    bool
	// FromNode matches source addresses of the node itself.
	FromNode bool
	// FromSet matches source addresses in the named affinity set.
	FromSet string

	// Masquerade marks the connection to leave with an address of the node as its source.
	Masquerade bool
	// Remember adds the source address to the named affinity set, or renews its stay.
	Remember        string
	RememberTimeout time.Duration

	// Goto ends here and goes on in the named chain.
	Goto string
	// Endpoints sends the connection to one of them, at random.
	Endpoints []netip.AddrPort
	// Chains goes on in one of them, at random.
	Chains []string
	// Drop discards the packet.
	Drop bool
}

// String is the rule in a syntax close to nft's. Rules that print alike are alike: the hash in a
// chain's name is made of it.
func (r Rule) String() string {
	var b strings.Builder
	if r.FromPrefix.IsValid() {
		if r.Outside {
			fmt.Fprintf(&b, "ip saddr != %s ", r.FromPrefix)
		} else {
			fmt.Fprintf(&b, "ip saddr %s ", r.FromPrefix)
		}
	}
	if r.FromNode {
		b.WriteString("fib saddr type local ")
	}
	if r.FromSet != "" {
		fmt.Fprintf(&b, "ip saddr @%s ", r.FromSet)
	}
	if r.Masquerade {
		b.WriteString("masquerade ")
	}
	if r.Remember != "" {
		fmt.Fprintf(&b, "update @%s { ip saddr timeout %s } ", r.Remember, r.RememberTimeout)
	}
	switch {
	case r.Drop:
		b.WriteString("drop")
	case r.Goto != "":
		fmt.Fprintf(&b, "goto %s", r.Goto)
	case len(r.Endpoints) > 0:
		b.WriteString("dnat to")
		for _, e := range r.Endpoints {
			fmt.Fprintf(&b, " %s", e)
		}
	case len(r.Chains) > 0:
		b.WriteString("goto random")
		for _, c := range r.Chains {
			fmt.Fprintf(&b, " %s", c)
		}
	}
	return b.String()
}

// Chain is a service's chain. Its name ends in a hash of its rules; see [newChain].
type Chain struct {
	Name  string
	Rules []Rule
}

// newChain names a chain after what it is for and what it holds. The name is also legible in
// `nft list ruleset`, and stays below the kernel's 255 bytes.
func newChain(kind string, port portID, rules ...Rule) Chain {
	h := sha256.New()
	for _, r := range rules {
		fmt.Fprintln(h, r)
	}
	return Chain{
		Name:  fmt.Sprintf("%s/%s/%s", kind, port, hex.EncodeToString(h.Sum(nil)[:8])),
		Rules: rules,
	}
}

// portID identifies a service port, or a host port.
type portID struct {
	service  types.NamespacedName
	protocol Protocol
	port     uint16
}

// String is part of chains' and sets' names, which the kernel limits to 255 bytes: a pod's name
// alone may be as long, and is cut then.
func (p portID) String() string {
	const most = 120
	name := p.service.Name
	if len(name) > most {
		sum := sha256.Sum256([]byte(name))
		name = name[:most] + "." + hex.EncodeToString(sum[:4])
	}
	return fmt.Sprintf("%s/%s/%s/%d", p.service.Namespace, name, p.protocol, p.port)
}

// AffinitySet is a set of client addresses that stick to one endpoint of a service port. Its name
// depends on the service port, the endpoint and the timeout only, so that clients stay where they are when
// other endpoints come and go.
type AffinitySet struct {
	Name    string
	Timeout time.Duration
}

func newAffinitySet(port portID, endpoint netip.AddrPort, timeout time.Duration) AffinitySet {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %s", endpoint, timeout))
	return AffinitySet{Name: fmt.Sprintf("affinity/%s/%s", port, hex.EncodeToString(sum[:8])), Timeout: timeout}
}

// Element sends traffic with the key to a chain.
type Element struct {
	Key   ElementKey
	Chain string
	// Foreign says that the address was not given to the owner by the cluster, but named by whoever wrote the Service or the
	// pod: whose own it is goes first.
	Foreign bool
}

// Frontend is a UDP address or port, with the endpoints that connections to it may have: any other
// tracked connection to it is stale.
type Frontend struct {
	Key       ElementKey
	Endpoints map[netip.AddrPort]bool
}

// HealthCheck is what a load balancer may ask this node about a service whose external traffic
// policy is Local.
type HealthCheck struct {
	Port  uint16
	Local int // number of usable endpoints on this node
}

// Rules is everything that one service, or the host ports of this node, needs of the kernel.
type Rules struct {
	Chains   []Chain
	Affinity []AffinitySet
	Elements []Element
	// Hairpin are the addresses of local endpoints, which may connect to themselves.
	Hairpin []netip.Addr
	UDP     []Frontend
	Health  *HealthCheck
}

func (r *Rules) addChain(c Chain) string {
	for _, have := range r.Chains {
		if have.Name == c.Name {
			return c.Name
		}
	}
	r.Chains = append(r.Chains, c)
	return c.Name
}
