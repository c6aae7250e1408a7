// Package vip holds the cluster's virtual IP: an address that follows a healthy server, so that
// clients outside need one address only (RFC 826, RFC 5227).
//
// Its holder has the address on the loopback interface, with arp_ignore and arp_announce set so
// that the kernel never speaks of it on the network: the process itself answers ARP for it from
// a packet socket, and announces it when it takes it over. So the address dies with the process
// that holds it, even when that is killed: what it leaves on the loopback interface nobody
// hears of, and the next start removes it.
//
// One server holds it: the one that leads and is ready. Who that is the caller says, in the
// function it gives to [IP.Run].
//
// # Invariant
//
// A frame that claims the address leaves a holder less than [Good] after a question that a
// majority has answered: you lead. Who can't show that is silent, before anything else:
//
//   - A holder that is cut off gets no answer. The members that gave it the last one notice the cut
//     no sooner than that, and elect nobody before they have heard nothing for at least Good
//     (detect.Silence). So the holder is silent before its successor may take the address.
//   - A holder that was frozen, or whose disk hangs, finds its last answer too old when it wakes, asks
//     anew, and learns that it leads no longer. What asked for the address meanwhile stays unanswered.
//   - A holder that hears somebody else's claim forgets its last answer, and asks before it says another
//     word. So where leadership passes without a silence, by a planned handover or a wrong suspicion, the
//     old claim ends when the new one is heard, and in any case within Good.
//
// What remains is a process that is stopped between its look at the clock and the system call that
// follows: one frame.
package vip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	// announceEvery repeats the announcement for switches and machines that forgot or missed
	// it.
	announceEvery = 10 * time.Second
	// conflictPause bounds how often a conflict is answered and told (RFC 5227, 2.4).
	conflictPause = time.Second
)

// Good is for how long after the question a majority's answer that this server leads may be relied on.
const Good = 100 * time.Millisecond

// burst is when a new holder announces, after the first time at once: a single frame may be
// lost.
func burst() []time.Duration {
	return []time.Duration{20 * time.Millisecond, 80 * time.Millisecond, 200 * time.Millisecond, 700 * time.Millisecond, 2 * time.Second}
}

// Config of a virtual IP.
type Config struct {
	// Address is the virtual IPv4 address, of a network that Link is in.
	Address netip.Addr
	// Link is the interface to hold it on; empty finds the one whose network has Address.
	Link string
	// Confirm asks a majority whether this server may hold the address, and returns the moment of the
	// question; or, without asking, that of an earlier one that was not before since.
	Confirm func(ctx context.Context, since time.Time) (asked time.Time, err error)
	Log     *slog.Logger
}

// IP is a virtual IP on this machine. It is safe for concurrent use.
type IP struct {
	config    Config
	link      *net.Interface
	hw        [6]byte
	held      atomic.Bool
	conflicts atomic.Int64
}

// New finds the link and checks that the machine can hold the address. It changes nothing.
func New(config Config) (*IP, error) {
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	config.Address = config.Address.Unmap()
	if !config.Address.Is4() || config.Address.IsUnspecified() || config.Address.IsLoopback() || config.Address.IsMulticast() {
		return nil, fmt.Errorf("virtual IP %s: it must be an IPv4 address of the servers' network", config.Address)
	}
	link, err := findLink(config)
	if err != nil {
		return nil, err
	}
	hw, ok := hardware(link.HardwareAddr)
	if !ok {
		return nil, fmt.Errorf("virtual IP %s: the interface %s is no Ethernet", config.Address, link.Name)
	}
	if config.Confirm == nil {
		return nil, fmt.Errorf("virtual IP %s: nothing confirms who may hold it", config.Address)
	}
	return &IP{config: config, link: link, hw: hw}, nil
}

// findLink returns the interface that is named, or whose network has the address.
func findLink(config Config) (*net.Interface, error) {
	if config.Link != "" {
		link, err := net.InterfaceByName(config.Link)
		if err != nil {
			return nil, fmt.Errorf("virtual IP %s: interface %s: %w", config.Address, config.Link, err)
		}
		return link, nil
	}
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("virtual IP %s: list interfaces: %w", config.Address, err)
	}
	for i := range links {
		if links[i].Flags&net.FlagLoopback != 0 || links[i].Flags&net.FlagUp == 0 {
			continue
		}
		addresses, err := links[i].Addrs()
		if err != nil {
			continue
		}
		for _, a := range addresses {
			prefix, err := netip.ParsePrefix(a.String())
			if err == nil && prefix.Bits() < 32 && prefix.Masked().Contains(config.Address) {
				return &links[i], nil
			}
		}
	}
	return nil, fmt.Errorf("virtual IP %s: no interface of this machine is in its network; name one", config.Address)
}

// Held tells whether this process answers for the address now.
func (v *IP) Held() bool { return v.held.Load() }

// Conflicts counts how often somebody else claimed the address while this process held it.
func (v *IP) Conflicts() int64 { return v.conflicts.Load() }

// Run prepares the machine, then holds the address while lead says so: lead calls hold with a
// context that ends when this server no longer leads or is not ready, any number of times, and
// returns when ctx ends. ready is called when the machine is prepared.
func (v *IP) Run(ctx context.Context, ready func(), lead func(ctx context.Context, hold func(context.Context) error) error) error {
	if err := v.prepare(); err != nil {
		return err
	}
	ready()
	return lead(ctx, v.hold)
}

// hold takes the address, announces it and answers for it until ctx ends, which is no error.
func (v *IP) hold(ctx context.Context) error {
	socket, err := openSocket(v.link)
	if err != nil {
		return fmt.Errorf("hold virtual IP %s: %w", v.config.Address, err)
	}
	defer socket.close()
	log := v.config.Log.With("address", v.config.Address, "link", v.link.Name)
	// First of all: a deletion is then seen, whenever it comes.
	stop, err := v.keep(log)
	if err != nil {
		return err
	}
	remove, err := v.assign()
	if err != nil {
		stop()
		return err
	}
	v.held.Store(true)
	log.Info("holding virtual IP")
	t := &tenure{IP: v, socket: socket, right: &right{confirm: v.config.Confirm, log: log}, log: log}
	listened := make(chan error, 1)
	go func() {
		defer close(listened)
		listened <- t.listen(ctx)
	}()
	t.announce(ctx)
	err = t.repeat(ctx, listened)
	v.held.Store(false)
	socket.close()
	for range listened {
		// The listener ends because its socket is closed.
	}
	stop()
	remove()
	log.Info("virtual IP released")
	return err
}

// tenure is one period of holding the address.
type tenure struct {
	*IP
	socket *arpSocket
	right  *right
	log    *slog.Logger
}

// repeat announces until ctx ends or the listener fails.
func (t *tenure) repeat(ctx context.Context, listened <-chan error) error {
	pauses := burst()
	timer := time.NewTimer(pauses[0])
	defer timer.Stop()
	for n := 1; ; n++ {
		select {
		case <-ctx.Done():
			return nil
		case err := <-listened:
			return fmt.Errorf("hold virtual IP %s: %w", t.config.Address, err)
		case <-timer.C:
		}
		t.announce(ctx)
		if n < len(pauses) {
			timer.Reset(pauses[n])
		} else {
			timer.Reset(announceEvery)
		}
	}
}

func (t *tenure) announce(ctx context.Context) {
	for _, frame := range announcements(t.config.Address, t.hw) {
		t.send(ctx, frame)
	}
}

// send sends a frame that claims the address, if this server still may.
func (t *tenure) send(ctx context.Context, frame []byte) {
	if !t.right.stands(ctx) {
		return
	}
	if err := t.socket.write(frame); err != nil && ctx.Err() == nil {
		t.log.Warn("speaking for the virtual IP", "error", err)
	}
}

// listen answers for the address until the socket is closed.
func (t *tenure) listen(ctx context.Context) error {
	buffer := make([]byte, 128)
	var told time.Time
	for {
		n, err := t.socket.read(buffer)
		if err != nil {
			return err
		}
		p, err := parse(buffer[:n])
		if err != nil {
			continue
		}
		switch react(p, t.config.Address, t.hw) {
		case answer:
			t.send(ctx, reply(p, t.config.Address, t.hw))
		case conflict:
			t.conflicts.Add(1)
			t.right.doubt()
			if now := time.Now(); now.Sub(told) >= conflictPause {
				told = now
				t.log.Warn("somebody else claims the virtual IP", "by", net.HardwareAddr(p.senderHW[:]).String())
				t.announce(ctx)
			}
		case ignore:
		}
	}
}

// prepare keeps the kernel from speaking of the address, and removes it when a process that was
// killed left it behind.
func (v *IP) prepare() error {
	for key, value := range map[string]string{"arp_ignore": "1", "arp_announce": "2"} {
		if err := setARP(v.link.Name, key, value); err != nil {
			return fmt.Errorf("prepare virtual IP %s: %w", v.config.Address, err)
		}
	}
	return Clear(v.config.Address)
}

// Clear removes what a process that was killed left of the address on this machine, which would else take itself for
// its holder. None may hold it here.
func Clear(address netip.Addr) error {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("clear virtual IP %s: loopback interface: %w", address, err)
	}
	if err := netlink.AddrDel(lo, hostAddress(address)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
		return fmt.Errorf("clear virtual IP %s: remove what is left of it: %w", address, err)
	}
	return nil
}

// assign puts the address on the loopback interface; what it returns takes it away again.
func (v *IP) assign() (remove func(), err error) {
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("hold virtual IP %s: loopback interface: %w", v.config.Address, err)
	}
	if err := netlink.AddrReplace(lo, hostAddress(v.config.Address)); err != nil {
		return nil, fmt.Errorf("hold virtual IP %s: put it on the loopback interface: %w", v.config.Address, err)
	}
	return func() {
		if err := netlink.AddrDel(lo, hostAddress(v.config.Address)); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			v.config.Log.Warn("removing virtual IP", "address", v.config.Address, "error", err)
		}
	}, nil
}

func hostAddress(address netip.Addr) *netlink.Addr {
	return &netlink.Addr{
		IPNet: &net.IPNet{IP: address.AsSlice(), Mask: net.CIDRMask(32, 32)},
		Scope: unix.RT_SCOPE_HOST,
	}
}

// setARP sets a link's ARP setting in /proc, unless it is stricter already.
func setARP(link, key, value string) error {
	path := filepath.Join("/proc/sys/net/ipv4/conf", link, key)
	now, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read %s of %s: %w", key, link, err)
	}
	if strings.TrimSpace(string(now)) >= value {
		return nil
	}
	if err := os.WriteFile(path, []byte(value), 0o644); err != nil {
		return fmt.Errorf("set %s of %s: %w", key, link, err)
	}
	return nil
}
