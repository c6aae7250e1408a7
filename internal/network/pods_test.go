package network

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"barque.dev/internal/network/cni"
	"barque.dev/internal/network/routes"
	"github.com/vishvananda/netlink"
)

// answers expects that from reaches address, that name answers, and that it sees the source.
func answers(t *testing.T, from *host, network, address, name, source string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s %s from %s", network, address, from.ip), func() error {
		got, saw, err := from.ask(network, address)
		if err == nil && (got != name || (source != "" && saw.Addr().String() != source)) {
			err = fmt.Errorf("%s answered and saw %s; want %s and %s", got, saw, name, source)
		}
		return err
	})
}

func TestPodsReachEachOther(t *testing.T) {
	for _, c := range []struct {
		name   string
		routed bool
		mode   routes.Mode
		tunnel bool
	}{
		{name: "direct", routed: false, tunnel: false},
		{name: "tunnel between segments", routed: true, tunnel: true},
		{name: "tunnel by choice", routed: false, mode: routes.Tunnel, tunnel: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLab(t, c.routed, 2, c.mode)
			a, b := l.machines[0], l.machines[1]
			first, second, far := a.newPod(t, "first", ""), a.newPod(t, "second", ""), b.newPod(t, "far", "")
			for _, p := range []*pod{first, second, far} {
				p.serve(t, p.name, 8080)
			}
			at := func(p *pod) string { return fmt.Sprintf("%s:8080", p.ip) }
			for _, network := range []string{"tcp", "udp"} {
				answers(t, first.host, network, at(second), "second", first.ip.String())
				answers(t, first.host, network, at(far), "far", first.ip.String())
				answers(t, far.host, network, at(first), "first", far.ip.String())
				answers(t, a.host, network, at(first), "first", "")
				answers(t, a.host, network, at(far), "far", "")
			}
			eventually(t, "tunnel device", func() error {
				var err error
				a.links(t, func(h *netlink.Handle) error {
					_, err = h.LinkByName(DefaultTunnel)
					return nil
				})
				if missing := errors.As(err, new(netlink.LinkNotFoundError)); missing == c.tunnel {
					return fmt.Errorf("tunnel device missing: %v", missing)
				}
				return nil
			})
			// Packets of full size must fit the path.
			conn, err := first.dial("tcp", at(far))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			for range 10 {
				if _, err := conn.Write(make([]byte, 50_000)); err != nil {
					t.Fatal(err)
				}
				if _, _, err := exchange(conn); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

func TestPodToOutsideIsMasqueraded(t *testing.T) {
	l := newLab(t, false, 1, "")
	m, outside := l.machines[0], l.plug(t)
	outside.serve(t, "outside", 8080)
	p := m.newPod(t, "pod", "")
	answers(t, p.host, "tcp", fmt.Sprintf("%s:8080", outside.ip), "outside", m.ip.String())
	answers(t, p.host, "udp", fmt.Sprintf("%s:8080", outside.ip), "outside", m.ip.String())
}

func TestHostPorts(t *testing.T) {
	l := newLab(t, false, 2, "")
	for _, m := range l.machines {
		t.Run(m.name, func(t *testing.T) { testHostPorts(t, l, m) })
	}
}

func testHostPorts(t *testing.T, l *lab, m *machine) {
	outside := l.plug(t)
	p := m.newPod(t, "pod", fmt.Sprintf(`[{"hostPort":9090,"containerPort":8080,"protocol":"TCP"},
		{"hostPort":9090,"containerPort":8080,"protocol":"UDP"},
		{"hostPort":9091,"containerPort":8080,"protocol":"tcp","hostIP":"%s"}]`, m.ip))
	p.serve(t, "pod", 8080)
	other := m.newPod(t, "other", "")
	for _, network := range []string{"tcp", "udp"} {
		address := fmt.Sprintf("%s:9090", m.ip)
		answers(t, outside, network, address, "pod", outside.ip.String())
		answers(t, other.host, network, address, "pod", other.ip.String())
		answers(t, p.host, network, address, "pod", "")
		answers(t, m.host, network, address, "pod", "")
		answers(t, m.host, network, "127.0.0.1:9090", "pod", "")
	}
	answers(t, outside, "tcp", fmt.Sprintf("%s:9091", m.ip), "pod", outside.ip.String())
	if _, _, err := m.ask("tcp", "127.0.0.1:9091"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("host port of another address answered on loopback: %v", err)
	}

	// The port goes with the pod.
	if err := (cni.Plugin{Host: m.Namespace}).Del(p.args); err != nil {
		t.Fatal(err)
	}
	eventually(t, "host port closed", func() error {
		if _, _, err := outside.ask("tcp", fmt.Sprintf("%s:9090", m.ip)); !errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("host port of a deleted pod: %v", err)
		}
		return nil
	})
}

// TestPluginProgram calls the built program as a runtime does.
func TestPluginProgram(t *testing.T) {
	l := newLab(t, false, 1, "")
	m := l.machines[0]
	program := filepath.Join(t.TempDir(), cni.PluginType)
	if out, err := exec.Command("go", "build", "-o", program, "barque.dev/cmd/barque-cni").CombinedOutput(); err != nil {
		t.Fatalf("build the plugin: %v\n%s", err, out)
	}
	p := newHost(t)
	args := m.cniArgs(t, "sandbox", p.Path(), "")
	run := func(command string) (string, error) {
		var out []byte
		err := m.Do(func() error {
			cmd := exec.Command(program)
			cmd.Stdin = newReader(args.StdinData)
			cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID=sandbox", "CNI_NETNS="+p.Path(),
				"CNI_IFNAME=eth0", "CNI_PATH="+filepath.Dir(program), "CNI_ARGS=K8S_POD_NAMESPACE=default;K8S_POD_NAME=pod")
			cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
			var err error
			out, err = cmd.Output()
			return err
		})
		return string(out), err
	}
	first, err := run("ADD")
	if err != nil {
		t.Fatalf("ADD: %v %s", err, first)
	}
	again, err := run("ADD")
	if err != nil || len(again) != len(first) {
		t.Fatalf("second ADD: %v\n%s\nafter\n%s", err, again, first)
	}
	for _, command := range []string{"CHECK", "STATUS", "VERSION"} {
		if command == "CHECK" {
			conf := decode(t, args.StdinData)
			conf["prevResult"] = rawJSON(again)
			args.StdinData = encode(t, conf)
		}
		if out, err := run(command); err != nil {
			t.Errorf("%s: %v %s", command, err, out)
		}
	}
	for range 2 {
		if out, err := run("DEL"); err != nil {
			t.Errorf("DEL: %v %s", err, out)
		}
	}
	if out, err := run("CHECK"); err == nil {
		t.Errorf("CHECK of a deleted pod succeeded: %s", out)
	}
}

func TestPluginCollectsGarbage(t *testing.T) {
	l := newLab(t, false, 1, "")
	m := l.machines[0]
	kept, lost := m.newPod(t, "kept", ""), m.newPod(t, "lost", "")
	conf := decode(t, kept.args.StdinData)
	conf["cni.dev/valid-attachments"] = []map[string]string{{"containerID": kept.args.ContainerID, "ifname": "eth0"}}
	args := *kept.args
	args.StdinData = encode(t, conf)
	if err := (cni.Plugin{Host: m.Namespace}).GC(&args); err != nil {
		t.Fatal(err)
	}
	store, err := cni.OpenStore(m.cfg.StateDir)
	if err != nil {
		t.Fatal(err)
	}
	leases, err := store.Leases()
	if err != nil || len(leases) != 1 || leases[0].Address != kept.ip {
		t.Fatalf("leases after GC: %v, %v; want %s only, not %s", leases, err, kept.ip, lost.ip)
	}
	if err := (cni.Plugin{Host: m.Namespace}).Check(kept.args); err != nil {
		t.Errorf("check of the kept pod: %v", err)
	}

	// A pod whose namespace is destroyed takes its links along; its address is free after a while.
	kept.links(t, func(h *netlink.Handle) error {
		link, err := h.LinkByName("eth0")
		if err != nil {
			return err
		}
		return h.LinkDel(link)
	})
	if gone, err := (cni.Plugin{Host: m.Namespace}).CollectOrphans(m.cfg.StateDir, cni.OrphanGrace); err != nil || len(gone) != 0 {
		t.Errorf("collected within the grace: %v, %v", gone, err)
	}
	if gone, err := (cni.Plugin{Host: m.Namespace}).CollectOrphans(m.cfg.StateDir, 0); err != nil || len(gone) != 1 {
		t.Errorf("collected: %v, %v; want the one lease", gone, err)
	}
}

func TestCleanupLeavesNothing(t *testing.T) {
	l := newLab(t, true, 2, "")
	m := l.machines[0]
	p := m.newPod(t, "pod", "")
	m.stop()
	for range 2 {
		if err := Cleanup(m.cfg); err != nil {
			t.Fatal(err)
		}
	}
	m.links(t, func(h *netlink.Handle) error {
		links, err := h.LinkList()
		for _, link := range links {
			if name := link.Attrs().Name; name != "lo" && name != "eth0" {
				t.Errorf("link %s is left", name)
			}
		}
		routes, rerr := h.RouteList(nil, netlink.FAMILY_V4)
		for _, r := range routes {
			if r.Dst != nil && clusterCIDR.Contains(mustAddr(r.Dst.IP)) {
				t.Errorf("route %s is left", r)
			}
		}
		lo, lerr := h.LinkByName("lo")
		addrs, aerr := h.AddrList(lo, netlink.FAMILY_V4)
		if len(addrs) != 1 {
			t.Errorf("addresses of lo: %v", addrs)
		}
		return errors.Join(err, rerr, lerr, aerr)
	})
	if entries, err := os.ReadDir(m.cfg.ConfDir); err != nil || len(entries) != 0 {
		t.Errorf("CNI configuration left: %v, %v", entries, err)
	}
	var names []net.Interface
	err := p.Do(func() (err error) { names, err = net.Interfaces(); return err })
	if err != nil || len(names) != 1 {
		t.Errorf("links of the pod: %v, %v", names, err)
	}
}
