package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"barque.dev/examples"
	"barque.dev/internal/network/cni"
	"barque.dev/internal/network/namespace"
	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
	"barque.dev/internal/runtime/containerd"
	"barque.dev/internal/runtime/images"
)

// nodeAddress is the node's, in a network namespace that has no way out.
const nodeAddress = "192.0.2.10"

// nodeGroup is the control group below which the node's are, and nothing else.
func nodeGroup() string { return fmt.Sprintf("/barque-side-%d", os.Getpid()) }

// isolate gives the plane a network namespace of its own, which ends with this program or when the
// plane stops.
func (p *plane) isolate() error {
	type result struct {
		ns  *os.File
		err error
	}
	made := make(chan result)
	go func() {
		// The thread is in the new namespace, and ends with this goroutine, since it stays locked.
		runtime.LockOSThread()
		ns, err := newNetwork()
		made <- result{ns, err}
	}()
	r := <-made
	if r.err != nil {
		return fmt.Errorf("make a network namespace: %w", r.err)
	}
	p.Network = namespace.At(fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), r.ns.Fd()))
	p.cleanUps = append(p.cleanUps, r.ns.Close)
	return nil
}

// newNetwork moves the thread into a new network namespace with a loopback, an interface that leads
// nowhere, and a default route over that.
func newNetwork() (*os.File, error) {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return nil, err
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "eth0"}, PeerName: "nowhere"}); err != nil {
		return nil, fmt.Errorf("add eth0: %w", err)
	}
	for _, name := range []string{"lo", "nowhere", "eth0"} {
		link, err := netlink.LinkByName(name)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", name, err)
		}
		if name == "eth0" {
			address := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(nodeAddress), Mask: net.CIDRMask(24, 32)}}
			if err := netlink.AddrAdd(link, address); err != nil {
				return nil, fmt.Errorf("give eth0 an address: %w", err)
			}
		}
		if err := netlink.LinkSetUp(link); err != nil {
			return nil, fmt.Errorf("set %s up: %w", name, err)
		}
	}
	if err := netlink.RouteAdd(&netlink.Route{Gw: net.IPv4(192, 0, 2, 1)}); err != nil {
		return nil, fmt.Errorf("add a default route: %w", err)
	}
	return os.Open("/proc/thread-self/ns/net")
}

// runtimeAt is the containerd whose data is in a directory.
func runtimeAt(dir string, programs bundle.Programs) (*containerd.Runtime, error) {
	return containerd.New(containerd.Config{DataDir: dir, CgroupRoot: nodeGroup(), Programs: programs, Log: slog.New(slog.DiscardHandler)})
}

// endContainers ends all that a containerd runs and the containerd, and removes what they left on
// the machine.
func endContainers(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	rt, err := runtimeAt(dir, bundle.Programs{})
	if err != nil {
		return err
	}
	return errors.Join(rt.Stop(ctx), unmountBelow(filepath.Dir(dir)), cgroup.Remove(ctx, nodeGroup()))
}

// unmountBelow takes pods' volumes away.
func unmountBelow(dir string) error {
	info, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(info)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// importImage brings the image of the pods to a containerd.
func importImage(ctx context.Context, socket string) error {
	store, err := images.Open(socket)
	if err != nil {
		return err
	}
	defer func() { _ = store.Close() }()
	archive, err := examples.HelloImages()
	if err != nil {
		return err
	}
	defer func() { _ = archive.Close() }()
	_, err = store.Import(ctx, archive)
	return err
}

// startNode starts containerd and a kubelet beside stock's control plane.
func (st *stand) startNode(ctx context.Context) error {
	restore, err := keepSettings()
	if err != nil {
		return err
	}
	dir := filepath.Join(st.dir, "node")
	st.cleanUps = append(st.cleanUps, restore, func() error { return endContainers(filepath.Join(dir, "agent")) })
	rt, err := st.startContainerd(ctx, dir)
	if err != nil {
		return err
	}
	if err := importImage(ctx, rt.Socket()); err != nil {
		return err
	}
	network := cni.Network{Bridge: "pods", PodCIDR: netip.MustParsePrefix("10.42.0.0/24"), MTU: 1500, StateDir: filepath.Join(dir, "cni")}
	if err := cni.WriteConfig(rt.CNIConfDir(), network); err != nil {
		return err
	}
	if err := cgroup.Create(nodeGroup(), cgroup.Resources{}); err != nil {
		return err
	}
	kubeconfig, err := st.kubeconfig(st.members[0])
	if err != nil {
		return err
	}
	config, err := st.kubeletConfig(dir, rt.Endpoint())
	if err != nil {
		return err
	}
	return st.run("kubelet", st.members[0], false, []string{
		"--kubeconfig=" + kubeconfig, "--config=" + config, "--hostname-override=node-1", "--node-ip=" + nodeAddress,
		"--root-dir=" + filepath.Join(dir, "kubelet"), "--cert-dir=" + filepath.Join(dir, "pki"),
	})
}

// startContainerd starts what Barque's agent would start.
func (st *stand) startContainerd(ctx context.Context, dir string) (*containerd.Runtime, error) {
	packed, err := bundle.Open()
	if err != nil {
		return nil, err
	}
	programs, err := packed.Unpack(filepath.Join(dir, "bin"))
	if err != nil {
		return nil, err
	}
	rt, err := runtimeAt(filepath.Join(dir, "agent"), programs)
	if err != nil {
		return nil, err
	}
	running, cancel := context.WithCancel(context.WithoutCancel(ctx))
	ready, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- st.Network.Do(func() error { return rt.Run(running, func() { close(ready) }) }) }()
	st.cleanUps = append(st.cleanUps, func() error { cancel(); return <-ended })
	select {
	case <-ready:
		return rt, nil
	case err := <-ended:
		ended <- nil
		return rt, fmt.Errorf("start containerd: %w", err)
	case <-ctx.Done():
		return rt, ctx.Err()
	}
}

// kubeletConfig writes the kubelet's settings: stock's, but for where things are and for what this
// machine may lack.
func (st *stand) kubeletConfig(dir, endpoint string) (string, error) {
	settings := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"containerRuntimeEndpoint": endpoint, "cgroupDriver": "cgroupfs", "cgroupRoot": nodeGroup(),
		"failCgroupV1": false, "failSwapOn": false, "enforceNodeAllocatable": []string{"none"}, "makeIPTablesUtilChains": false,
		"podLogsDir": filepath.Join(dir, "logs"), "volumePluginDir": filepath.Join(dir, "plugins"), "staticPodPath": "",
		"resolvConf":     "",
		"authentication": map[string]any{"anonymous": map[string]any{"enabled": false}, "x509": map[string]any{"clientCAFile": st.files.Path("ca.crt")}, "webhook": map[string]any{"enabled": true}},
		// The disk is the machine's, and what is on it no business of this.
		"evictionHard":                map[string]string{"memory.available": "1Mi", "nodefs.available": "0%", "imagefs.available": "0%", "nodefs.inodesFree": "0%"},
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
	}
	if st.tuned {
		for name, value := range tunedKubelet {
			settings[name] = value
		}
	}
	data, err := json.Marshal(settings)
	if err != nil {
		return "", err
	}
	file := filepath.Join(st.dir, "kubelet.json")
	return file, os.WriteFile(file, data, 0o600)
}

// keepSettings remembers the kernel's settings that a kubelet changes, which are the whole machine's.
func keepSettings() (restore func() error, err error) {
	before := map[string][]byte{}
	for _, name := range []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys", "kernel/keys/root_maxbytes"} {
		file := filepath.Join("/proc/sys", name)
		if before[file], err = os.ReadFile(file); err != nil {
			return nil, err
		}
	}
	return func() error {
		var errs []error
		for file, value := range before {
			if now, err := os.ReadFile(file); err == nil && string(now) == string(value) {
				continue
			}
			errs = append(errs, os.WriteFile(file, value, 0))
		}
		return errors.Join(errs...)
	}, nil
}
