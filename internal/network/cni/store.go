package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// Attachment names one interface of one sandbox, as CNI does.
type Attachment struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifname"`
}

// Lease is an address in use.
type Lease struct {
	Attachment
	Address netip.Addr `json:"address"`
	// Netns is the path of the sandbox's network namespace.
	Netns string `json:"netns"`
	// Namespace and Pod name the pod; empty for a sandbox that is none.
	Namespace    string        `json:"namespace,omitempty"`
	Pod          string        `json:"pod,omitempty"`
	PortMappings []PortMapping `json:"portMappings,omitempty"`
	// Written is when the lease was last written.
	Written time.Time `json:"-"`
}

// Store keeps leases, one file per address, under a lock that holds between processes. A file is
// written before the address is used and removed after: a crash can leak an address but not give it
// twice, and [Plugin.CollectOrphans] finds leaked ones. It is safe for concurrent use.
type Store struct {
	dir string
}

// errRangeFull is the cause of an allocation that found no address.
var errRangeFull = errors.New("all addresses of the node's range are in use")

// OpenStore opens the store in a state directory, and makes it if need be.
func OpenStore(stateDir string) (*Store, error) {
	s := &Store{dir: stateDir}
	if err := os.MkdirAll(s.LeaseDir(), 0o700); err != nil {
		return nil, fmt.Errorf("make lease directory: %w", err)
	}
	return s, nil
}

// LeaseDir is the directory whose entries are the leases, named by address. Entries of other names
// are none.
func (s *Store) LeaseDir() string { return filepath.Join(s.dir, "leases") }

// locked runs f while no other process uses the store.
func (s *Store) locked(f func() error) error {
	lock, err := os.OpenFile(filepath.Join(s.dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open lease lock: %w", err)
	}
	defer lock.Close() // and unlock
	for {
		err = unix.Flock(int(lock.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("lock leases: %w", err)
	}
	return f()
}

// Leases returns the leases in order of address. A file that is empty or torn, as a machine that loses
// power may leave it, is a lease of nobody: its address stays taken until it is collected.
func (s *Store) Leases() ([]Lease, error) {
	entries, err := os.ReadDir(s.LeaseDir())
	if err != nil {
		return nil, fmt.Errorf("list leases: %w", err)
	}
	var leases []Lease
	for _, e := range entries {
		address, err := netip.ParseAddr(e.Name())
		if err != nil {
			continue // no lease, such as a file that is being written
		}
		data, err := os.ReadFile(filepath.Join(s.LeaseDir(), e.Name()))
		if errors.Is(err, os.ErrNotExist) {
			continue // released meanwhile
		}
		if err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		var l Lease
		if json.Unmarshal(data, &l) != nil || l.Address != address {
			l = Lease{Address: address}
		}
		info, err := e.Info()
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("read lease: %w", err)
		}
		l.Written = info.ModTime()
		leases = append(leases, l)
	}
	slices.SortFunc(leases, func(a, b Lease) int { return a.Address.Compare(b.Address) })
	return leases, nil
}

// Allocate takes an address of the range for the lease and records it. The attachment's former lease,
// of an attempt that was broken off, is used again. Addresses are given in turn, so that one that was
// just released rests as long as possible.
func (s *Store) Allocate(pods netip.Prefix, l Lease) (Lease, error) {
	err := s.locked(func() error {
		leases, err := s.Leases()
		if err != nil {
			return err
		}
		taken := make(map[netip.Addr]bool, len(leases))
		for _, have := range leases {
			if have.Attachment == l.Attachment && pods.Contains(have.Address) {
				l.Address = have.Address
				return s.write(l)
			}
			taken[have.Address] = true
		}
		address, ok := next(pods, s.last(), taken)
		if !ok {
			return fmt.Errorf("allocate an address in %s: %w", pods, errRangeFull)
		}
		l.Address = address
		if err := s.write(l); err != nil {
			return err
		}
		// Losing this costs only the resting time of addresses.
		return os.WriteFile(filepath.Join(s.dir, "last"), []byte(address.String()), 0o600)
	})
	return l, err
}

// write does not wait for the disk: no lease outlives a machine that lost power.
func (s *Store) write(l Lease) error {
	data, err := json.Marshal(l)
	if err != nil {
		return fmt.Errorf("encode lease %s: %w", l.Address, err)
	}
	return writeFile(filepath.Join(s.LeaseDir(), l.Address.String()), data, false)
}

func (s *Store) last() netip.Addr {
	data, err := os.ReadFile(filepath.Join(s.dir, "last"))
	if err != nil {
		return netip.Addr{}
	}
	a, err := netip.ParseAddr(string(data))
	if err != nil {
		return netip.Addr{}
	}
	return a
}

// next is the first free address after last, in a circle. The range's first address is the
// network's (and the VXLAN device's), the second the bridge's, the last the broadcast address.
func next(pods netip.Prefix, last netip.Addr, taken map[netip.Addr]bool) (netip.Addr, bool) {
	pods = pods.Masked()
	first := pods.Addr().Next().Next()
	usable := func(a netip.Addr) bool { return pods.Contains(a) && pods.Contains(a.Next()) && a.Compare(first) >= 0 }
	start := first
	if usable(last) && usable(last.Next()) {
		start = last.Next()
	}
	for a := start; ; {
		if !taken[a] {
			return a, true
		}
		if a = a.Next(); !usable(a) {
			a = first
		}
		if a == start {
			return netip.Addr{}, false
		}
	}
}

// Find returns the lease of an attachment.
func (s *Store) Find(a Attachment) (Lease, bool, error) {
	leases, err := s.Leases()
	if err != nil {
		return Lease{}, false, err
	}
	i := slices.IndexFunc(leases, func(l Lease) bool { return l.Attachment == a })
	if i < 0 {
		return Lease{}, false, nil
	}
	return leases[i], true, nil
}

// Release frees the addresses of an attachment. It is no error when there is none.
func (s *Store) Release(a Attachment) error {
	_, err := s.release(func(l Lease) bool { return l.Attachment == a })
	return err
}

// Collect frees the leases for which leaked says so, and returns them.
func (s *Store) Collect(leaked func(Lease) bool) ([]Lease, error) { return s.release(leaked) }

func (s *Store) release(which func(Lease) bool) ([]Lease, error) {
	var gone []Lease
	err := s.locked(func() error {
		leases, err := s.Leases()
		if err != nil {
			return err
		}
		for _, l := range leases {
			if !which(l) {
				continue
			}
			if err := os.Remove(filepath.Join(s.LeaseDir(), l.Address.String())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("release %s: %w", l.Address, err)
			}
			gone = append(gone, l)
		}
		return nil
	})
	return gone, err
}
