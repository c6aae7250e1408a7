package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

func openStore(t testing.TB) *Store {
	t.Helper()
	s, err := OpenStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func lease(id string) Lease { return Lease{Attachment: Attachment{ContainerID: id, IfName: "eth0"}} }

// TestLeases allocates and releases at random, with a small range, and compares with a plain map.
func TestLeases(t *testing.T) {
	pods := netip.MustParsePrefix("10.42.7.0/28")
	const usable = 16 - 3 // network, bridge and broadcast
	rapid.Check(t, func(rt *rapid.T) {
		store := openStore(t)
		held := map[string]netip.Addr{}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			id := fmt.Sprint("c", rapid.IntRange(0, usable+3).Draw(rt, "container"))
			if rapid.IntRange(0, 3).Draw(rt, "release") == 0 {
				if err := store.Release(lease(id).Attachment); err != nil {
					rt.Fatal(err)
				}
				delete(held, id)
				continue
			}
			got, err := store.Allocate(pods, lease(id))
			before, again := held[id]
			switch {
			case again && (err != nil || got.Address != before):
				rt.Fatalf("second allocation for %s: %s, %v; had %s", id, got.Address, err, before)
			case again:
			case len(held) == usable:
				if !errors.Is(err, errRangeFull) {
					rt.Fatalf("allocation from a full range: %s, %v", got.Address, err)
				}
			case err != nil:
				rt.Fatal(err)
			default:
				for other, address := range held {
					if address == got.Address {
						rt.Fatalf("%s is given to %s and %s", address, other, id)
					}
				}
				last := got.Address.As4()[3]
				if !pods.Contains(got.Address) || last < 2 || last == 15 {
					rt.Fatalf("address %s is not for pods", got.Address)
				}
				held[id] = got.Address
			}
		}
		leases, err := store.Leases()
		if err != nil || len(leases) != len(held) {
			rt.Fatalf("%d leases, %v; want %d", len(leases), err, len(held))
		}
	})
}

func TestReleasedAddressRests(t *testing.T) {
	store, pods := openStore(t), netip.MustParsePrefix("10.42.7.0/24")
	first, err := store.Allocate(pods, lease("a"))
	if err != nil {
		t.Fatal(err)
	}
	if err := store.Release(first.Attachment); err != nil {
		t.Fatal(err)
	}
	second, err := store.Allocate(pods, lease("b"))
	if err != nil || second.Address == first.Address {
		t.Errorf("%s given again at once, %v", second.Address, err)
	}
}

func TestConcurrentAllocation(t *testing.T) {
	dir, pods := t.TempDir(), netip.MustParsePrefix("10.42.7.0/24")
	var wg sync.WaitGroup
	addresses := make([]netip.Addr, 40)
	for i := range addresses {
		wg.Go(func() {
			store, err := OpenStore(dir) // a store of its own, as each run of the plugin has
			if err != nil {
				t.Error(err)
				return
			}
			got, err := store.Allocate(pods, lease(fmt.Sprint(i)))
			if err != nil {
				t.Error(err)
			}
			addresses[i] = got.Address
		})
	}
	wg.Wait()
	slices.SortFunc(addresses, netip.Addr.Compare)
	if len(slices.Compact(addresses)) != 40 {
		t.Error("an address was given twice")
	}
}

// TestTornLease is what a machine that lost power may leave: the address is not given out, and
// the rest works.
func TestTornLease(t *testing.T) {
	store, pods := openStore(t), netip.MustParsePrefix("10.42.7.0/29")
	for name, data := range map[string]string{"10.42.7.2": "", "10.42.7.3": `{"address":"10.4`, ".tmp-1": "{}", "other": "x"} {
		if err := os.WriteFile(filepath.Join(store.LeaseDir(), name), []byte(data), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, err := store.Allocate(pods, lease("a"))
	if err != nil || got.Address != netip.MustParseAddr("10.42.7.4") {
		t.Errorf("got %s, %v; want 10.42.7.4", got.Address, err)
	}
	gone, err := store.Collect(func(l Lease) bool { return l.ContainerID == "" })
	if err != nil || len(gone) != 2 {
		t.Errorf("collected %v, %v; want the two torn ones", gone, err)
	}
}

func TestAddressOfAnotherRangeIsReplaced(t *testing.T) {
	store := openStore(t)
	if _, err := store.Allocate(netip.MustParsePrefix("10.42.7.0/24"), lease("a")); err != nil {
		t.Fatal(err)
	}
	got, err := store.Allocate(netip.MustParsePrefix("10.42.8.0/24"), lease("a"))
	if err != nil || !netip.MustParsePrefix("10.42.8.0/24").Contains(got.Address) {
		t.Errorf("got %s, %v; want an address of the new range", got.Address, err)
	}
}

func TestWriteConfigIsStable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "net.d")
	n := Network{Bridge: "brq0", PodCIDR: netip.MustParsePrefix("10.42.0.0/24"), MTU: 1450, StateDir: "/state"}
	if err := WriteConfig(dir, n); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, ConfigFile)
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := WriteConfig(dir, n); err != nil {
		t.Fatal(err)
	}
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Errorf("the same configuration was written again: %v", err)
	}
	for _, bad := range []Network{
		{Bridge: "much-too-long-name", PodCIDR: n.PodCIDR, MTU: 1450, StateDir: "/state"},
		{Bridge: "brq0", PodCIDR: netip.MustParsePrefix("10.42.0.0/30"), MTU: 1450, StateDir: "/state"},
		{Bridge: "brq0", PodCIDR: n.PodCIDR, MTU: 10, StateDir: "/state"},
		{Bridge: "brq0", PodCIDR: n.PodCIDR, MTU: 1450, StateDir: "state"},
	} {
		if err := WriteConfig(dir, bad); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
	if err := errors.Join(RemoveConfig(dir), RemoveConfig(dir)); err != nil {
		t.Error(err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("left: %v, %v", entries, err)
	}
}
