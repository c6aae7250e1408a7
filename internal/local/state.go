package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"
)

const (
	apiPort   = 6443
	stateFile = "cluster.yaml"
	lockFile  = "lock"
)

// A Role says what a machine is for.
type Role string

// The two roles.
const (
	RoleServer Role = "server"
	RoleAgent  Role = "agent"
)

// Cluster is a local cluster as it was planned; DIR/cluster.yaml holds it.
type Cluster struct {
	// Dir is the cluster's directory, absolute.
	Dir string `json:"-"`
	// ID is derived from Dir and part of every kernel object's name.
	ID string `json:"id"`
	// Subnet is the private network of the bridge; the host has its first address.
	Subnet netip.Prefix `json:"subnet"`
	// VIP is the address that fronts the servers.
	VIP netip.Addr `json:"vip"`
	// Machines lists the servers, then the agents.
	Machines []*Machine `json:"machines"`
}

// ErrLocked: another barque works on the directory.
var ErrLocked = errors.New("another `barque up` or `barque down` is working on this directory; wait for it to end")

// lock keeps two commands from working on one cluster at once.
func lock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFile), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the cluster's directory: %w; choose a --dir that can be written to", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("%s: %w", dir, ErrLocked)
	}
	return func() { _ = f.Close() }, nil
}

func clusterID(dir string) string {
	sum := sha256.Sum256([]byte(dir))
	return hex.EncodeToString(sum[:3])
}

// Load reads the cluster that lives in dir. The error satisfies os.IsNotExist when none does.
func Load(dir string) (*Cluster, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(filepath.Join(dir, stateFile))
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir}
	if err := yaml.UnmarshalStrict(data, c); err != nil {
		reason := err.Error()
		for _, step := range []string{"error converting YAML to JSON: ", "error unmarshaling JSON: ", "while decoding JSON: ", "json: "} {
			reason = strings.TrimPrefix(reason, step)
		}
		return nil, fmt.Errorf("%s is damaged: %s; remove the cluster with `barque down --dir %s`", filepath.Join(dir, stateFile), reason, dir)
	}
	if c.ID == "" || !c.Subnet.IsValid() || len(c.Machines) == 0 {
		return nil, fmt.Errorf("%s is damaged: it lacks the id, the subnet or the machines; remove the cluster with `barque down --dir %s`", filepath.Join(dir, stateFile), dir)
	}
	for _, m := range c.Machines {
		m.cluster = c
	}
	return c, nil
}

func (c *Cluster) save() error {
	data, err := yaml.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the cluster's state: %w", err)
	}
	tmp := filepath.Join(c.Dir, stateFile+".new")
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	if err := os.Rename(tmp, filepath.Join(c.Dir, stateFile)); err != nil {
		return fmt.Errorf("write the cluster's state: %w", err)
	}
	return nil
}

// plan decides a new cluster's names and addresses.
func plan(dir string, servers, agents int) (*Cluster, error) {
	used, err := localPrefixes()
	if err != nil {
		return nil, err
	}
	id := clusterID(dir)
	subnet, err := freeSubnet(id, used)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Dir: dir, ID: id, Subnet: subnet, VIP: hostAddr(subnet, 10)}
	return c, c.grow(servers, agents)
}

// grow adds machines until there are as many as asked for. It never removes any: that is
// `barque down`, or removing the node.
func (c *Cluster) grow(servers, agents int) error {
	var haveServers, haveAgents int
	for _, m := range c.Machines {
		if m.Role == RoleServer {
			haveServers++
		} else {
			haveAgents++
		}
	}
	if servers < haveServers || agents < haveAgents {
		return fmt.Errorf("the cluster in %s has %d servers and %d agents; ask for at least as many (--servers %d --agents %d), or remove it first with `barque down`",
			c.Dir, haveServers, haveAgents, haveServers, haveAgents)
	}
	for i := haveServers + 1; i <= servers; i++ {
		c.add(&Machine{Name: fmt.Sprintf("server-%d", i), Role: RoleServer, IP: hostAddr(c.Subnet, 10+i), Index: i})
	}
	for i := haveAgents + 1; i <= agents; i++ {
		c.add(&Machine{Name: fmt.Sprintf("agent-%d", i), Role: RoleAgent, IP: hostAddr(c.Subnet, 100+i), Index: 100 + i})
	}
	return nil
}

func (c *Cluster) add(m *Machine) {
	m.cluster = c
	c.Machines = append(c.Machines, m)
}

// freeSubnet picks a /24 of 10.89.0.0/16 by the cluster's id, stepping past those in use here.
func freeSubnet(id string, used []netip.Prefix) (netip.Prefix, error) {
	raw, err := hex.DecodeString(id)
	if err != nil || len(raw) == 0 {
		return netip.Prefix{}, fmt.Errorf("cluster id %q is not hexadecimal", id)
	}
candidates:
	for i := range 256 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 89, raw[0] + byte(i), 0}), 24)
		for _, u := range used {
			if u.Overlaps(p) {
				continue candidates
			}
		}
		return p, nil
	}
	return netip.Prefix{}, errors.New("every /24 of 10.89.0.0/16 is in use on this machine; free one")
}

func hostAddr(p netip.Prefix, n int) netip.Addr {
	a := p.Addr().As4()
	a[3] = byte(n)
	return netip.AddrFrom4(a)
}

// localPrefixes lists the networks that this machine's interfaces are on.
func localPrefixes() ([]netip.Prefix, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list this machine's addresses: %w", err)
	}
	var prefixes []netip.Prefix
	for _, a := range addrs {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			prefixes = append(prefixes, p.Masked())
		}
	}
	return prefixes, nil
}
