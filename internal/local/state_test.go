package local

import (
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestFreeSubnet(t *testing.T) {
	prefix := netip.MustParsePrefix
	first, err := freeSubnet("05aabb", nil)
	if err != nil || first != prefix("10.89.5.0/24") {
		t.Fatalf("got %v, %v", first, err)
	}
	next, err := freeSubnet("05aabb", []netip.Prefix{prefix("10.89.5.0/24"), prefix("10.89.6.128/25")})
	if err != nil || next != prefix("10.89.7.0/24") {
		t.Errorf("got %v, %v", next, err)
	}
	if _, err := freeSubnet("05aabb", []netip.Prefix{prefix("10.0.0.0/8")}); err == nil {
		t.Error("a range that is all in use was given out")
	}
}

// However a cluster grows, names, addresses and links are unique, fit their bounds, and those
// that exist never change.
func TestGrowKeepsWhatThereIs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := &Cluster{Dir: "/x", ID: clusterID("/x"), Subnet: netip.MustParsePrefix("10.89.1.0/24"), VIP: netip.MustParseAddr("10.89.1.10")}
		servers, agents := 0, 0
		known := map[string]netip.Addr{}
		for range rapid.IntRange(1, 5).Draw(t, "steps") {
			servers = rapid.IntRange(max(servers, 1), 9).Draw(t, "servers")
			agents = rapid.IntRange(agents, 90).Draw(t, "agents")
			if err := c.grow(servers, agents); err != nil {
				t.Fatal(err)
			}
			for name, ip := range known {
				if !has(c, name, ip) {
					t.Fatalf("%s lost its address %s", name, ip)
				}
			}
			seen := map[string]bool{c.VIP.String(): true, hostAddr(c.Subnet, 1).String(): true}
			for _, m := range c.Machines {
				for _, unique := range []string{m.Name, m.IP.String(), m.link(), m.NetNS()} {
					if seen[unique] {
						t.Fatalf("%s is there twice", unique)
					}
					seen[unique] = true
				}
				if len(m.link()) > 15 {
					t.Fatalf("link name %s is longer than the kernel takes", m.link())
				}
				if !c.Subnet.Contains(m.IP) {
					t.Fatalf("%s is outside %s", m.IP, c.Subnet)
				}
				known[m.Name] = m.IP
			}
			if len(c.Machines) != servers+agents {
				t.Fatalf("%d machines, want %d and %d", len(c.Machines), servers, agents)
			}
		}
		if servers > 1 && c.grow(servers-1, agents) == nil {
			t.Fatal("a cluster shrank without a word")
		}
	})
}

func has(c *Cluster, name string, ip netip.Addr) bool {
	for _, m := range c.Machines {
		if m.Name == name {
			return m.IP == ip
		}
	}
	return false
}

func TestStateSurvives(t *testing.T) {
	dir := t.TempDir()
	c, err := plan(dir, 3, 2)
	if err != nil {
		t.Fatal(err)
	}
	if err := c.save(); err != nil {
		t.Fatal(err)
	}
	again, err := Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	if again.ID != c.ID || again.VIP != c.VIP || len(again.Machines) != 5 || again.Machines[4].IP != c.Machines[4].IP {
		t.Errorf("got %+v, want %+v", again, c)
	}
	if again.Machines[0].DataDir() != filepath.Join(dir, "server-1") {
		t.Errorf("data dir %s", again.Machines[0].DataDir())
	}
	if err := os.WriteFile(filepath.Join(dir, stateFile), []byte("machines: 7"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(dir); err == nil || !strings.Contains(err.Error(), "barque down") {
		t.Errorf("a damaged file: %v", err)
	}
}

func TestLockIsExclusive(t *testing.T) {
	dir := t.TempDir()
	unlock, err := lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lock(dir); err == nil {
		t.Fatal("two hold the lock")
	}
	unlock()
	unlock, err = lock(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
}

// A pid that another process has got since is not the machine's.
func TestPIDIsNotMistaken(t *testing.T) {
	c := &Cluster{Dir: t.TempDir()}
	c.add(&Machine{Name: "m", Role: RoleServer})
	m := c.Machines[0]
	if m.Running() {
		t.Error("runs without a pid file")
	}
	start, err := processStart(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	write := func(text string) {
		if err := os.WriteFile(m.pidFile(), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(strings.Join([]string{strconv.Itoa(os.Getpid()), start}, " "))
	if m.PID() != os.Getpid() {
		t.Errorf("PID %d, want %d", m.PID(), os.Getpid())
	}
	write(strconv.Itoa(os.Getpid()) + " 1")
	if m.Running() {
		t.Error("another process was taken for the machine's")
	}
}
