package containerd

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/runtime/images/imagetest"
)

// startApart runs the node in a network namespace of its own, as `barque up` runs machines,
// until the test ends.
func (n *node) startApart(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithCancel(n.ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() {
		// The thread belongs to the namespace from here on, and ends with the goroutine.
		runtime.LockOSThread()
		if err := enterNewNetwork(); err != nil {
			done <- err
			return
		}
		done <- n.Run(ctx, func() { close(ready) })
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("containerd does not run: %v", err)
	}
}

// enterNewNetwork moves this thread into a new network namespace.
func enterNewNetwork() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}

// TestPodNetwork checks that the runtime gives pods addresses by the CNI plugin in the bundle,
// inside the namespace that the server runs in, and takes them away again.
func TestPodNetwork(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.startApart(t)
	imagetest.ImportBusybox(t, n.Socket())
	status, err := n.Status(n.ctx, &cri.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range status.Status.Conditions {
		if c.Type == cri.NetworkReady && c.Status {
			t.Error("the network is ready before it is configured")
		}
	}
	conf := fmt.Sprintf(`{"cniVersion": "1.1.0", "name": "barque", "plugins": [{"type": "barque-cni", "bridge": "pods", "podCIDR": "10.199.7.0/24", "mtu": 1400, "stateDir": %q, "capabilities": {"portMappings": true}}]}`, n.data("addresses"))
	if err := os.WriteFile(filepath.Join(n.CNIConfDir(), "10-barque.conflist"), []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	eventually(t, "containerd notices the network", func() bool {
		status, err := n.Status(n.ctx, &cri.StatusRequest{})
		return err == nil && status.Status.Conditions[1].Status
	})

	n.podNetwork = true
	sandbox, container := n.runPod(t, "a", nil, "sleep", "1000")
	s, err := n.PodSandboxStatus(n.ctx, &cri.PodSandboxStatusRequest{PodSandboxId: sandbox})
	if err != nil {
		t.Fatal(err)
	}
	ip := s.Status.Network.Ip
	if !strings.HasPrefix(ip, "10.199.7.") {
		t.Fatalf("the pod has the address %q", ip)
	}
	if got := n.exec(t, container, "busybox", "ip", "-4", "addr", "show", "eth0"); !strings.Contains(got, " "+ip+"/") {
		t.Errorf("the pod's interface does not have the address %s:\n%s", ip, got)
	}
	n.exec(t, container, "busybox", "ping", "-c1", "-W5", "10.199.7.1")
	lease := filepath.Join(n.data("addresses"), "leases", ip)
	if !exists(lease) {
		t.Errorf("nothing at %s says that the address is taken", lease)
	}
	if _, err := n.RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Fatal(err)
	}
	if exists(lease) {
		t.Error("the removed pod's address is still taken")
	}
}
