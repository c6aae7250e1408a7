package fault

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"barque.dev/internal/local"
)

// localMachine is a machine of a local cluster.
type localMachine struct {
	*local.Machine
	relay *relay // while packets are delayed
}

// Of makes a machine of a local cluster one that faults can hit.
func Of(m *local.Machine) Machine { return &localMachine{Machine: m} }

func (m *localMachine) String() string { return m.Name }

func (m *localMachine) Address() netip.Addr { return m.IP }

func (m *localMachine) Deafen(from []netip.Addr) error { return deafen(m.NetNS(), from) }

func (m *localMachine) Lose(percent int) error { return lose(m.NetNS(), percent) }

func (m *localMachine) Delay(least, most time.Duration) error {
	var err error
	if m.relay != nil {
		err = m.relay.close()
		m.relay = nil
	}
	if most == 0 || err != nil {
		return err
	}
	port, bridge := m.Port()
	m.relay, err = newRelay(port, bridge, least, most)
	return err
}

// DropAddress deletes an address wherever the machine has it.
func (m *localMachine) DropAddress(a netip.Addr) error {
	ns, err := netns.GetFromName(m.NetNS())
	if err != nil {
		return fmt.Errorf("find network namespace %s: %w", m.NetNS(), err)
	}
	defer func() { _ = ns.Close() }()
	inside, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter %s: %w", m.NetNS(), err)
	}
	defer inside.Close()
	addresses, err := inside.AddrList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", m, err)
	}
	for _, found := range addresses {
		if !found.IP.Equal(net.IP(a.AsSlice())) {
			continue
		}
		link, err := inside.LinkByIndex(found.LinkIndex)
		if err == nil {
			err = inside.AddrDel(link, &found)
		}
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) { // its holder was faster
			return fmt.Errorf("delete %s on %s: %w", a, m, err)
		}
	}
	return nil
}

func (m *localMachine) Slow(writesPerSecond int) error {
	pid := m.PID()
	if pid == 0 && writesPerSecond > 0 {
		return fmt.Errorf("slow the disk of %s down: its process does not run", m)
	}
	return throttle(pid, m.DataDir(), filepath.Join(m.ControlGroup(), "slow"), writesPerSecond)
}

func (m *localMachine) ShiftClock(by time.Duration) error {
	pid := m.PID()
	if pid == 0 {
		if by == 0 {
			return nil
		}
		return fmt.Errorf("shift the clock of %s: its process does not run", m)
	}
	if err := shiftClock(pid, by); err != nil {
		return fmt.Errorf("shift the clock of %s: %w", m, err)
	}
	return nil
}
