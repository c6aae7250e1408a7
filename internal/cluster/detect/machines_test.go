package detect_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"barque.dev/internal/store/etcd"
	"barque.dev/internal/store/etcd/etcdtest"
)

// machines are three servers as processes of their own, each in a network namespace, on a bridge
// in a fourth. The namespaces have no names: they end with the last process or descriptor.
type machines struct {
	tb       testing.TB
	hub      netns.NsHandle
	spaces   []netns.NsHandle
	configs  []childConfig
	children []*child
}

const (
	peerPort    = 2380
	controlPort = 9000
	patience    = 30 * time.Second
)

func address(i int) string { return fmt.Sprintf("10.99.0.%d", i+1) }

// in runs f on a thread in a namespace; the thread isn't used again.
func in(ns netns.NsHandle, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func newNamespace(tb testing.TB) netns.NsHandle {
	tb.Helper()
	var ns netns.NsHandle
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		var err error
		ns, err = netns.New()
		done <- err
	}()
	if err := <-done; err != nil {
		tb.Fatal("network namespaces are needed (root): ", err)
	}
	tb.Cleanup(func() { ns.Close() })
	return ns
}

func newMachines(tb testing.TB, tune func(*childConfig)) *machines {
	tb.Helper()
	m := &machines{tb: tb, hub: newNamespace(tb)}
	must := func(err error) {
		if err != nil {
			tb.Fatal(err)
		}
	}
	must(in(m.hub, func() error {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br"}}
		return errors.Join(up("lo"), netlink.LinkAdd(bridge), addAddress(bridge, "10.99.0.254/24"), netlink.LinkSetUp(bridge))
	}))
	var ips []net.IP
	cluster := map[string]string{}
	for i := range 3 {
		ns := newNamespace(tb)
		m.spaces = append(m.spaces, ns)
		must(in(m.hub, func() error {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: port(i)}, PeerName: "eth0", PeerNamespace: netlink.NsFd(ns)}
			bridge, err := netlink.LinkByName("br")
			if err != nil {
				return err
			}
			return errors.Join(netlink.LinkAdd(veth), netlink.LinkSetMaster(veth, bridge), netlink.LinkSetUp(veth))
		}))
		must(in(ns, func() error {
			eth, err := netlink.LinkByName("eth0")
			if err != nil {
				return err
			}
			return errors.Join(up("lo"), addAddress(eth, address(i)+"/24"), netlink.LinkSetUp(eth))
		}))
		ips = append(ips, net.ParseIP(address(i)))
		cluster[fmt.Sprintf("m%d", i)] = fmt.Sprintf("https://%s:%d", address(i), peerPort)
	}
	files := etcdtest.Certificates(tb, ips...)
	for i := range 3 {
		cfg := childConfig{
			Etcd: etcd.Config{
				Name: fmt.Sprintf("m%d", i), DataDir: filepath.Join(tb.TempDir(), "etcd"),
				PeerURL: cluster[fmt.Sprintf("m%d", i)], PeerTLS: files, InitialCluster: cluster,
			},
			Control: fmt.Sprintf("%s:%d", address(i), controlPort),
			Listen:  fmt.Sprintf("%s:%d", address(i), peerPort+1),
			Detect:  true,
		}
		if tune != nil {
			tune(&cfg)
		}
		m.configs = append(m.configs, cfg)
		m.children = append(m.children, nil)
		m.start(i)
	}
	tb.Cleanup(func() {
		for i := range m.children {
			m.kill(i)
		}
	})
	return m
}

func port(i int) string { return fmt.Sprintf("port%d", i) }

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(link)
}

func addAddress(link netlink.Link, cidr string) error {
	a, err := netlink.ParseAddr(cidr)
	if err != nil {
		return err
	}
	return netlink.AddrAdd(link, a)
}

// child is a server process.
type child struct {
	cmd   *exec.Cmd
	ended chan struct{}
}

// start starts machine i's process. It dies with the thread that started it, which waits for it.
func (m *machines) start(i int) {
	m.tb.Helper()
	cfg, err := json.Marshal(m.configs[i])
	if err != nil {
		m.tb.Fatal(err)
	}
	c := &child{ended: make(chan struct{})}
	started := make(chan error, 1)
	go func() {
		defer close(c.ended)
		runtime.LockOSThread()
		if err := netns.Set(m.spaces[i]); err != nil {
			started <- err
			return
		}
		c.cmd = exec.Command("/proc/self/exe")
		c.cmd.Env = append(os.Environ(), childEnv+"="+string(cfg))
		c.cmd.Stderr = os.Stderr
		c.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		err := c.cmd.Start()
		started <- err
		if err == nil {
			_ = c.cmd.Wait()
		}
	}()
	if err := <-started; err != nil {
		m.tb.Fatal(err)
	}
	m.children[i] = c
}

// kill ends machine i's process with SIGKILL.
func (m *machines) kill(i int) {
	c := m.children[i]
	m.children[i] = nil
	if c != nil {
		_ = c.cmd.Process.Kill()
		<-c.ended
	}
}

// plug connects or cuts machine i, at the bridge.
func (m *machines) plug(i int, connected bool) {
	m.tb.Helper()
	if err := in(m.hub, func() error {
		link, err := netlink.LinkByName(port(i))
		if err != nil {
			return err
		}
		if connected {
			return netlink.LinkSetUp(link)
		}
		return netlink.LinkSetDown(link)
	}); err != nil {
		m.tb.Fatal(err)
	}
}

// A session is one connection to a server's control port.
type session struct {
	conn net.Conn
	r    *bufio.Reader
}

func (m *machines) dial(i int, timeout time.Duration) (*session, error) {
	var conn net.Conn
	err := in(m.hub, func() (err error) {
		conn, err = net.DialTimeout("tcp4", m.configs[i].Control, timeout)
		return err
	})
	if err != nil {
		return nil, err
	}
	return &session{conn: conn, r: bufio.NewReader(conn)}, nil
}

// ask sends a line and returns the answer's.
func (s *session) ask(line string, timeout time.Duration) (string, error) {
	if err := s.conn.SetDeadline(time.Now().Add(timeout)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(s.conn, line+"\n"); err != nil {
		return "", err
	}
	answer, err := s.r.ReadString('\n')
	return strings.TrimSuffix(answer, "\n"), err
}

// askOnce asks over a connection of its own.
func (m *machines) askOnce(i int, line string) (string, error) {
	s, err := m.dial(i, time.Second)
	if err != nil {
		return "", err
	}
	defer s.conn.Close()
	return s.ask(line, 2*time.Second)
}

// settled waits until all agree on a leader, watch it and hold the same data, and returns its index.
func (m *machines) settled() int {
	m.tb.Helper()
	leader := -1
	etcdtest.Eventually(m.tb, "three servers agree", func(context.Context) error {
		name := ""
		for i := range m.children {
			answer, err := m.askOnce(i, "leader")
			if err != nil {
				return err
			}
			if answer == "" || (name != "" && answer != name) {
				return fmt.Errorf("%s follows %q, others %q", address(i), answer, name)
			}
			name = answer
		}
		for i := range m.configs {
			if m.configs[i].Etcd.Name == name {
				leader = i
			}
		}
		if m.configs[leader].Detect {
			watchers, err := m.askOnce(leader, "watchers")
			if err != nil || watchers != "2" {
				return fmt.Errorf("%s servers watch the leader: %w", watchers, err)
			}
		}
		// A server that was cut off needs a while to reach its leader again.
		for i := range m.children {
			if answer, err := m.askOnce(i, "read"); err != nil || !strings.HasPrefix(answer, "ok") {
				return fmt.Errorf("%s reads %s: %w", address(i), answer, err)
			}
		}
		return nil
	})
	return leader
}
