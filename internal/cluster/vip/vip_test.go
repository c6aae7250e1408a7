package vip

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"barque.dev/internal/testkit"
)

const (
	helperEnv = "BARQUE_TEST_VIP_MACHINE"
	leaderEnv = "BARQUE_TEST_VIP_LEADER"
	address   = "10.99.0.50"
	port      = "7000"
)

// TestMain runs the tests, or in a process that a test started, one machine.
func TestMain(m *testing.M) {
	if own := os.Getenv(helperEnv); own != "" {
		if err := machineMain(own); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// machineMain is a server: it answers on its port with its own address, and holds the virtual
// IP from "hold" to "release" on its standard input. Its majority is a file that names who leads.
func machineMain(own string) error {
	input := bufio.NewScanner(os.Stdin)
	input.Scan() // "go": the link is there
	if err := up("eth0", own+"/24"); err != nil {
		return err
	}
	listener, err := net.Listen("tcp4", "0.0.0.0:"+port)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(conn, own)
			_ = conn.Close()
		}
	}()
	var refusals atomic.Int64
	v, err := New(Config{Address: netip.MustParseAddr(address), Confirm: func(context.Context, time.Time) (time.Time, error) {
		asked := time.Now()
		leader, err := os.ReadFile(os.Getenv(leaderEnv))
		if err == nil && string(leader) != own {
			err = fmt.Errorf("%s leads", leader)
		}
		if err != nil {
			refusals.Add(1)
		}
		return asked, err
	}})
	if err != nil {
		return err
	}
	return v.Run(context.Background(), func() { fmt.Println("ready") }, func(ctx context.Context, hold func(context.Context) error) error {
		var stop func()
		for input.Scan() {
			switch input.Text() {
			case "hold":
				hctx, cancel := context.WithCancel(ctx)
				done := make(chan error, 1)
				go func() { done <- hold(hctx) }()
				stop = func() { cancel(); <-done }
				if err := testkit.Poll(10*time.Second, testkit.Holds(v.Held)); err != nil {
					stop()
					return fmt.Errorf("the address is not held: %w", err)
				}
			case "release":
				stop()
			case "delete":
				lo, err := netlink.LinkByName("lo")
				if err == nil {
					err = netlink.AddrDel(lo, hostAddress(netip.MustParseAddr(address)))
				}
				if err != nil {
					return fmt.Errorf("delete the address: %w", err)
				}
			case "conflicts":
				fmt.Println(v.Conflicts())
				continue
			case "refusals":
				fmt.Println(refusals.Load())
				continue
			}
			fmt.Println(input.Text())
		}
		return nil
	})
}

func up(link, address string) error {
	for _, name := range []string{"lo", link} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return fmt.Errorf("link %s: %w", name, err)
		}
		if name == link && address != "" {
			a, err := netlink.ParseAddr(address)
			if err != nil {
				return err
			}
			if err := netlink.AddrAdd(l, a); err != nil {
				return fmt.Errorf("address of %s: %w", name, err)
			}
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return fmt.Errorf("set %s up: %w", name, err)
		}
	}
	return nil
}

// inNetwork runs f on a thread of its own in a new network namespace, with a bridge that is
// also the client. Everything in it goes away with the thread and the processes it started.
func inNetwork(t testing.TB, f func(network)) {
	t.Helper()
	n := network{t, filepath.Join(t.TempDir(), "leader")}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("make a network namespace: %v", err)
			return
		}
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
		if err := netlink.LinkAdd(bridge); err != nil {
			t.Errorf("make a bridge: %v", err)
			return
		}
		if err := up("br0", "10.99.0.100/24"); err != nil {
			t.Error(err)
			return
		}
		f(n)
	}()
	<-done
}

// network is where machines are plugged in.
type network struct {
	t      testing.TB
	leader string // the file that names the leader
}

// elect makes a machine the leader, whether it knows or not.
func (n network) elect(m *machine) {
	if err := os.WriteFile(n.leader+".new", []byte(m.own), 0o600); err != nil {
		panic(err)
	}
	if err := os.Rename(n.leader+".new", n.leader); err != nil {
		panic(err)
	}
}

// hold elects a machine and lets it take the address.
func (n network) hold(m *machine) {
	n.elect(m)
	m.do("hold")
}

// machine is a process in a network namespace of its own that is on the bridge.
type machine struct {
	own    string
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Scanner
	nsFile *os.File // keeps the namespace when the process is killed
}

func (net network) machine(n int) *machine {
	net.t.Helper()
	m := &machine{own: fmt.Sprintf("10.99.0.%d", n), cmd: exec.Command("/proc/self/exe")}
	m.cmd.Env = append(os.Environ(), helperEnv+"="+m.own, leaderEnv+"="+net.leader)
	m.cmd.Stderr = os.Stderr
	m.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	var err error
	if m.in, err = m.cmd.StdinPipe(); err != nil {
		panic(err)
	}
	out, err := m.cmd.StdoutPipe()
	if err != nil {
		panic(err)
	}
	m.out = bufio.NewScanner(out)
	if err := m.cmd.Start(); err != nil {
		panic(fmt.Errorf("start machine: %w", err))
	}
	if m.nsFile, err = os.Open(fmt.Sprintf("/proc/%d/ns/net", m.cmd.Process.Pid)); err != nil {
		panic(err)
	}
	if err := m.plug(n); err != nil {
		panic(err)
	}
	m.say("go")
	m.expect("ready")
	return m
}

// plug connects the machine to the bridge.
func (m *machine) plug(n int) error {
	bridge, err := netlink.LinkByName("br0")
	if err != nil {
		return err
	}
	name := fmt.Sprintf("port%d", n)
	veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsPid(m.cmd.Process.Pid)}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link: %w", err)
	}
	end, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetMaster(end, bridge); err != nil {
		return fmt.Errorf("plug in: %w", err)
	}
	return netlink.LinkSetUp(end)
}

func (m *machine) say(word string) {
	if _, err := fmt.Fprintln(m.in, word); err != nil {
		panic(err)
	}
}

func (m *machine) expect(word string) {
	if !m.out.Scan() || m.out.Text() != word {
		panic(fmt.Sprintf("machine %s said %q, not %q", m.own, m.out.Text(), word))
	}
}

// count asks the machine for a number.
func (m *machine) count(word string) int {
	m.say(word)
	m.out.Scan()
	n, err := strconv.Atoi(m.out.Text())
	if err != nil {
		panic(fmt.Sprintf("machine %s counts %q: %v", m.own, word, err))
	}
	return n
}

func (m *machine) do(word string) { m.say(word); m.expect(word) }

func (m *machine) kill() {
	_ = m.cmd.Process.Kill()
	_ = m.cmd.Wait()
}

func (m *machine) close() {
	m.kill()
	_ = m.nsFile.Close()
}

// ask connects to the virtual IP and says which machine answered.
func ask(timeout time.Duration) (string, error) {
	conn, err := net.DialTimeout("tcp4", net.JoinHostPort(address, port), timeout)
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(timeout))
	who, err := io.ReadAll(conn)
	return string(who), err
}

// until asks until the machine answers, and says how long that took.
func until(t testing.TB, own string) time.Duration {
	t.Helper()
	start := time.Now()
	for {
		who, err := ask(50 * time.Millisecond)
		if err == nil && who == own {
			return time.Since(start)
		}
		if time.Since(start) > 20*time.Second {
			t.Errorf("%s does not answer at the virtual IP: %q, %v", own, who, err)
			return time.Since(start)
		}
	}
}

// TestDeletedAddressComesBack: whoever deletes the address from its holder does so for a moment only.
func TestDeletedAddressComesBack(t *testing.T) {
	inNetwork(t, func(n network) {
		one := n.machine(1)
		defer one.close()
		n.hold(one)
		until(t, one.own)
		for range 3 {
			one.do("delete")
			until(t, one.own)
		}
		// What is released stays away.
		one.do("release")
		if who, err := ask(200 * time.Millisecond); err == nil {
			t.Errorf("%s answers for an address that it has released", who)
		}
	})
}

func TestMovesWhenTheHolderIsKilled(t *testing.T) {
	inNetwork(t, func(n network) {
		one, two := n.machine(1), n.machine(2)
		defer one.close()
		defer two.close()
		if who, err := ask(200 * time.Millisecond); err == nil {
			t.Errorf("nobody holds the address, but %s answers", who)
		}
		n.hold(one)
		until(t, one.own)
		one.kill() // the address stays on its loopback interface
		n.elect(two)
		two.say("hold")
		gap := until(t, two.own)
		two.expect("hold")
		t.Logf("gap after kill -9: %v", gap)
		for range 50 {
			if who, err := ask(time.Second); err != nil || who != two.own {
				t.Fatalf("the address is not stable: %q, %v", who, err)
			}
		}
		// A client that knows nothing asks by ARP, and the dead one's kernel keeps silent.
		if err := flushNeighbours(); err != nil {
			t.Fatal(err)
		}
		if who, err := ask(time.Second); err != nil || who != two.own {
			t.Errorf("after asking anew: %q, %v", who, err)
		}
	})
}

func TestMovesByRelease(t *testing.T) {
	inNetwork(t, func(n network) {
		one, two := n.machine(1), n.machine(2)
		defer one.close()
		defer two.close()
		n.hold(one)
		until(t, one.own)
		for range 3 {
			one.do("release")
			n.hold(two)
			until(t, two.own)
			two.do("release")
			n.hold(one)
			until(t, one.own)
		}
	})
}

func TestConflictIsNoticed(t *testing.T) {
	inNetwork(t, func(n network) {
		one, two := n.machine(1), n.machine(2)
		defer one.close()
		defer two.close()
		n.hold(one)
		n.hold(two)
		deadline := time.Now().Add(20 * time.Second)
		for {
			if one.count("conflicts") > 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Error("the second holder was not noticed")
				return
			}
		}
	})
}

func flushNeighbours() error {
	link, err := netlink.LinkByName("br0")
	if err != nil {
		return err
	}
	list, err := netlink.NeighList(link.Attrs().Index, netlink.FAMILY_V4)
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].IP.String() == address {
			if err := netlink.NeighDel(&list[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

func TestNewErrors(t *testing.T) {
	confirm := func(context.Context, time.Time) (time.Time, error) { return time.Now(), nil }
	for name, config := range map[string]Config{
		"IPv6":         {Address: netip.MustParseAddr("fd00::1")},
		"none":         {},
		"loopback":     {Address: netip.MustParseAddr("127.0.0.2")},
		"far away":     {Address: netip.MustParseAddr("203.0.113.7")},
		"no such link": {Address: netip.MustParseAddr("10.0.0.1"), Link: "nope0"},
		"no Ethernet":  {Address: netip.MustParseAddr("10.0.0.1"), Link: "lo"},
	} {
		config.Confirm = confirm
		if _, err := New(config); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestPacketRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		hw := func(label string) (a [6]byte) {
			copy(a[:], rapid.SliceOfN(rapid.Byte(), 6, 6).Draw(t, label))
			return a
		}
		ip := func(label string) netip.Addr {
			return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, label)))
		}
		p := packet{op: rapid.SampledFrom([]uint16{opRequest, opReply}).Draw(t, "op"), sender: ip("s"), target: ip("t"), senderHW: hw("sh"), targetHW: hw("th")}
		frame := p.marshal(broadcast())
		got, err := parse(frame)
		if err != nil || got != p {
			t.Fatalf("%+v became %+v, %v", p, got, err)
		}
		if _, err := parse(frame[:rapid.IntRange(0, frameLength-1).Draw(t, "cut")]); err == nil {
			t.Fatal("a short frame was read")
		}
	})
}

func TestReact(t *testing.T) {
	vip, other := netip.MustParseAddr("10.0.0.9"), netip.MustParseAddr("10.0.0.1")
	mine, theirs := [6]byte{2, 0, 0, 0, 0, 1}, [6]byte{2, 0, 0, 0, 0, 2}
	for name, tt := range map[string]struct {
		p    packet
		want reaction
	}{
		"a question":                {packet{op: opRequest, sender: other, target: vip, senderHW: theirs}, answer},
		"a probe":                   {packet{op: opRequest, sender: netip.IPv4Unspecified(), target: vip, senderHW: theirs}, answer},
		"another's question":        {packet{op: opRequest, sender: other, target: other, senderHW: theirs}, ignore},
		"my own":                    {packet{op: opRequest, sender: vip, target: vip, senderHW: mine}, ignore},
		"another's claim":           {packet{op: opReply, sender: vip, target: vip, senderHW: theirs}, conflict},
		"another's question as vip": {packet{op: opRequest, sender: vip, target: other, senderHW: theirs}, conflict},
		"an answer to me":           {packet{op: opReply, sender: other, target: vip, senderHW: theirs}, ignore},
	} {
		if got := react(tt.p, vip, mine); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// BenchmarkGap measures how long a client at the virtual IP is without a server after kill -9
// of the holder's process, when the next holder is told at once.
func BenchmarkGap(b *testing.B) {
	var total time.Duration
	for b.Loop() {
		inNetwork(b, func(n network) {
			one, two := n.machine(1), n.machine(2)
			defer one.close()
			defer two.close()
			n.hold(one)
			until(b, one.own)
			one.kill()
			n.elect(two)
			two.say("hold")
			total += until(b, two.own)
		})
	}
	b.ReportMetric(float64(total)/float64(b.N)/1e6, "ms/gap")
}
