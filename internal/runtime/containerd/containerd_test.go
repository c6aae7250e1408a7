package containerd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/runtime"
	"barque.dev/internal/runtime/cgroup"
	"barque.dev/internal/runtime/images"
	"barque.dev/internal/runtime/images/imagetest"
	"barque.dev/internal/testkit"
)

// sandbox describes a pod, in the node's own network unless the node has one for pods.
func (n *node) sandbox(name string) *cri.PodSandboxConfig {
	network := cri.NamespaceMode_NODE
	if n.podNetwork {
		network = cri.NamespaceMode_POD
	}
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: "uid-" + name},
		LogDirectory: n.data("logs"),
		Linux: &cri.LinuxPodSandboxConfig{
			CgroupParent: cgroup.Pod(n.cfg.CgroupRoot, cgroup.BestEffort, "uid-"+name),
			SecurityContext: &cri.LinuxSandboxSecurityContext{
				NamespaceOptions: &cri.NamespaceOption{Network: network, Pid: cri.NamespaceMode_CONTAINER},
				Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

// runPod runs a pod of one container and returns the ids of its sandbox and container.
func (n *node) runPod(t *testing.T, name string, mounts []*cri.Mount, command ...string) (sandbox, container string) {
	t.Helper()
	config := n.sandbox(name)
	if err := cgroup.Create(config.Linux.CgroupParent, cgroup.Resources{}); err != nil {
		t.Fatal(err)
	}
	s, err := n.RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.CreateContainer(n.ctx, &cri.CreateContainerRequest{
		PodSandboxId:  s.PodSandboxId,
		SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"},
			Image:    &cri.ImageSpec{Image: imagetest.Busybox},
			Command:  command,
			LogPath:  name + ".log",
			Mounts:   mounts,
			Linux: &cri.LinuxContainerConfig{
				Resources:       &cri.LinuxContainerResources{CpuShares: 256, MemoryLimitInBytes: 64 << 20, OomScoreAdj: 1000},
				SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions, Seccomp: &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}},
			},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.StartContainer(n.ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	return s.PodSandboxId, c.ContainerId
}

// exec runs a command in a container and returns what it printed.
func (n *node) exec(t *testing.T, container string, command ...string) string {
	t.Helper()
	r, err := n.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: command, Timeout: 20})
	if err != nil {
		t.Fatal(err)
	}
	if r.ExitCode != 0 {
		t.Fatalf("%q ended with %d: %s", command, r.ExitCode, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

// state returns what CRI says a container is doing.
func (n *node) state(t *testing.T, container string) *cri.ContainerStatus {
	t.Helper()
	r, err := n.ContainerStatus(n.ctx, &cri.ContainerStatusRequest{ContainerId: container})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}

// pid returns the daemon's process.
func (n *node) pid(t *testing.T) int {
	t.Helper()
	r, ok := readRecord(n.data("containerd.pid"))
	if !ok {
		t.Fatal("there is no pid file")
	}
	return r.PID
}

// eventually waits for something that this machine's other processes do.
func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	testkit.Eventually(t, 30*time.Second, what, testkit.Holds(check))
}

func TestPod(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.start(t)
	imagetest.ImportBusybox(t, n.Socket())

	sandbox, container := n.runPod(t, "web", nil, "sh", "-c", "echo hello; echo oops >&2; exec sleep 1000")
	if got := n.exec(t, container, "cat", "/proc/1/comm"); got != "sleep" {
		t.Errorf("process 1 is %q, want sleep", got)
	}
	if got := n.exec(t, container, "sh", "-c", "echo $((6*7))"); got != "42" {
		t.Errorf("exec printed %q", got)
	}
	r, err := n.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"sh", "-c", "exit 7"}})
	if err != nil || r.ExitCode != 7 {
		t.Errorf("exit code %d, %v; want 7", r.GetExitCode(), err)
	}
	_, err = n.ExecSync(n.ctx, &cri.ExecSyncRequest{ContainerId: container, Cmd: []string{"sleep", "100"}, Timeout: 1})
	if !errors.Is(err, runtime.ErrTimeout) {
		t.Errorf("a command that takes too long gives %v", err)
	}
	eventually(t, "the log has two lines", func() bool {
		log, _ := os.ReadFile(n.data("logs/web.log"))
		return strings.Contains(string(log), " stdout F hello\n") && strings.Contains(string(log), " stderr F oops\n")
	})
	usage, err := cgroup.Usage(cgroup.Pod(n.cfg.CgroupRoot, cgroup.BestEffort, "uid-web"))
	if err != nil || usage.Pids != 2 {
		t.Errorf("the pod's group holds %d processes, %v; want pause and sleep", usage.Pids, err)
	}

	if _, err := n.StopContainer(n.ctx, &cri.StopContainerRequest{ContainerId: container}); err != nil {
		t.Fatal(err)
	}
	if s := n.state(t, container); s.State != cri.ContainerState_CONTAINER_EXITED || s.ExitCode != 137 {
		t.Errorf("after stopping: %v, exit code %d", s.State, s.ExitCode)
	}
	if _, err := n.RemovePodSandbox(n.ctx, &cri.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		t.Fatal(err)
	}
	_, err = n.ContainerStatus(n.ctx, &cri.ContainerStatusRequest{ContainerId: container})
	if !errors.Is(err, runtime.ErrNotFound) || !strings.Contains(fmt.Sprint(err), container) {
		t.Errorf("asking for a removed container gives %v", err)
	}
}

// TestDaemonDies checks that containers do not notice that containerd dies, and that it is
// started again and knows them.
func TestDaemonDies(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.start(t)
	imagetest.ImportBusybox(t, n.Socket())
	_, container := n.runPod(t, "web", nil, "sleep", "1000")
	before := n.exec(t, container, "cat", "/proc/uptime", "/proc/1/stat")

	old := n.pid(t)
	if err := unix.Kill(old, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new containerd runs", func() bool {
		r, ok := readRecord(n.data("containerd.pid"))
		return ok && r.PID != old
	})
	if err := n.WaitReady(n.ctx); err != nil {
		t.Fatal(err)
	}
	if s := n.state(t, container); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after containerd's death the container is %v", s.State)
	}
	after := n.exec(t, container, "cat", "/proc/uptime", "/proc/1/stat")
	if a, b := processStart(before), processStart(after); a != b {
		t.Errorf("process 1 started at %s before and %s after", a, b)
	}
}

// processStart picks the start time of process 1 out of what was read in the container.
func processStart(text string) string {
	lines := strings.Split(text, "\n")
	_, start, err := parseStat(lines[len(lines)-1])
	return fmt.Sprint(start, err)
}

// TestServerRestarts checks that a server that comes back goes on with the containerd that
// runs, restarts it if its configuration changed, and harms no container either way.
func TestServerRestarts(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	stop := n.start(t)
	imagetest.ImportBusybox(t, n.Socket())
	_, container := n.runPod(t, "web", nil, "sleep", "1000")
	first := n.pid(t)

	stop()
	if err := unix.Kill(first, 0); err != nil {
		t.Fatalf("containerd ended with its server: %v", err)
	}
	stop = n.start(t)
	if second := n.pid(t); second != first {
		t.Errorf("containerd was restarted for nothing: process %d, then %d", first, second)
	}
	stop()

	n.cfg.CNIBinDirs = []string{"/opt/cni/bin"}
	n.start(t)
	if third := n.pid(t); third == first {
		t.Error("containerd goes on with an old configuration")
	}
	if s := n.state(t, container); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after containerd's restart the container is %v", s.State)
	}
	if got := n.exec(t, container, "echo", "alive"); got != "alive" {
		t.Errorf("exec printed %q", got)
	}
}

// TestPowerCut checks that a node whose every process vanished starts again, and knows that
// its containers have ended.
func TestPowerCut(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	stop := n.start(t)
	imagetest.ImportBusybox(t, n.Socket())
	_, container := n.runPod(t, "web", nil, "sleep", "1000")
	stop()
	if err := cgroup.Kill(n.ctx, n.cfg.CgroupRoot); err != nil {
		t.Fatal(err)
	}

	n.start(t)
	if s := n.state(t, container); s.State != cri.ContainerState_CONTAINER_EXITED {
		t.Errorf("after the power cut the container is %v", s.State)
	}
	if _, again := n.runPod(t, "next", nil, "sleep", "1000"); n.exec(t, again, "echo", "up") != "up" {
		t.Error("no pod can be run after the power cut")
	}
}

// TestTwoNodes checks that two containerds on one machine do not get into each other's way.
func TestTwoNodes(t *testing.T) {
	checkLeaks(t)
	a, b := newNode(t), newNode(t)
	a.start(t)
	stopB := b.start(t)
	imagetest.ImportBusybox(t, a.Socket())
	imagetest.ImportBusybox(t, b.Socket())
	_, ca := a.runPod(t, "same", nil, "sleep", "1000")
	b.runPod(t, "same", nil, "sleep", "1000")
	stopB()
	if err := b.Stop(b.ctx); err != nil {
		t.Fatal(err)
	}
	if s := a.state(t, ca); s.State != cri.ContainerState_CONTAINER_RUNNING {
		t.Errorf("stopping one node ended a container of the other (%v)", s.State)
	}
}

// TestOneServer checks that a second server on the same data directory is refused.
func TestOneServer(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.start(t)
	second, err := New(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	err = second.Run(n.ctx, func() { t.Error("the second server got ready") })
	if err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("the second server gives %v", err)
	}
	short, cancel := context.WithTimeout(n.ctx, 50*time.Millisecond)
	defer cancel()
	if err := second.Stop(short); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("stopping under a running server gives %v", err)
	}
}

// TestDoesNotStart checks that a containerd that cannot start is an error that says why.
func TestDoesNotStart(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	if err := os.MkdirAll(n.cfg.DataDir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A file where containerd wants a directory.
	if err := os.MkdirAll(n.data("containerd"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.data("containerd"), "io.containerd.metadata.v1.bolt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	err := n.Run(n.ctx, func() { t.Error("it got ready") })
	if err == nil || !strings.Contains(err.Error(), "io.containerd.metadata.v1.bolt") {
		t.Errorf("the error does not say what is wrong: %v", err)
	}
}

func TestEvents(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.start(t)
	imagetest.ImportBusybox(t, n.Socket())
	ctx, cancel := context.WithCancel(n.ctx)
	subscribed, done := make(chan struct{}), make(chan error, 1)
	var types []cri.ContainerEventType
	go func() {
		done <- n.Events(ctx, func() { close(subscribed) }, func(e *cri.ContainerEventResponse) error {
			// A pod's sandbox has events of its own, with the sandbox's id.
			if e.ContainerId != e.PodSandboxStatus.GetId() {
				types = append(types, e.ContainerEventType)
			}
			if e.ContainerEventType == cri.ContainerEventType_CONTAINER_STOPPED_EVENT {
				cancel()
			}
			return nil
		})
	}()
	<-subscribed
	n.runPod(t, "short", nil, "sh", "-c", "exit 3")
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	want := []cri.ContainerEventType{cri.ContainerEventType_CONTAINER_CREATED_EVENT, cri.ContainerEventType_CONTAINER_STARTED_EVENT, cri.ContainerEventType_CONTAINER_STOPPED_EVENT}
	if fmt.Sprint(types) != fmt.Sprint(want) {
		t.Errorf("events %v, want %v", types, want)
	}
}

// TestBidirectionalMount checks that a mount that a container makes in a volume below the data
// directory reaches the machine.
func TestBidirectionalMount(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.start(t)
	imagetest.ImportBusybox(t, n.Socket())
	volume := n.data("volume")
	if err := os.MkdirAll(volume, 0o755); err != nil {
		t.Fatal(err)
	}
	config := n.sandbox("mounter")
	config.Linux.SecurityContext.Privileged = true
	s, err := n.RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.CreateContainer(n.ctx, &cri.CreateContainerRequest{
		PodSandboxId: s.PodSandboxId, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"},
			Image:    &cri.ImageSpec{Image: imagetest.Busybox},
			Command:  []string{"sh", "-c", "busybox mount -t tmpfs none /volume && echo shared >/volume/file && exec sleep 1000"},
			Mounts:   []*cri.Mount{{ContainerPath: "/volume", HostPath: volume, Propagation: cri.MountPropagation_PROPAGATION_BIDIRECTIONAL}},
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{
				Privileged: true, NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions,
			}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.StartContainer(n.ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the container's mount is seen outside", func() bool {
		data, _ := os.ReadFile(filepath.Join(volume, "file"))
		return string(data) == "shared\n"
	})
}

func TestImages(t *testing.T) {
	checkLeaks(t)
	n := newNode(t)
	n.start(t)
	store, err := images.Open(n.Socket())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = store.Close() }()
	image := images.Image{
		Names:  []string{"example.test/app:one", "app"},
		Layers: []images.Layer{{{Path: "file", Mode: 0o644, Data: []byte("content")}}},
	}
	var archive bytes.Buffer
	if err := images.WriteArchive(&archive, image); err != nil {
		t.Fatal(err)
	}
	imported, err := store.Import(n.ctx, bytes.NewReader(archive.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	if len(imported) != 2 || imported[0].Name != "example.test/app:one" || imported[1].Name != "docker.io/library/app:latest" || imported[0].Size == 0 {
		t.Errorf("imported %+v", imported)
	}
	names := func() string {
		list, err := store.List(n.ctx)
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, i := range list {
			all = append(all, i.Name)
		}
		return strings.Join(all, " ")
	}
	if got := names(); got != images.PauseName+" docker.io/library/app:latest example.test/app:one" {
		t.Errorf("the images are %s", got)
	}
	if err := store.Remove(n.ctx, "app"); err != nil {
		t.Fatal(err)
	}
	if err := store.Remove(n.ctx, "app"); !errdefs.IsNotFound(err) {
		t.Errorf("removing an image twice gives %v", err)
	}
	r, err := n.ImageStatus(n.ctx, &cri.ImageStatusRequest{Image: &cri.ImageSpec{Image: "example.test/app:one"}})
	if err != nil || r.Image == nil {
		t.Errorf("taking away one name took the image away: %v, %v", r, err)
	}
	if !r.GetImage().GetPinned() {
		t.Error("an image that was imported is not pinned")
	}
	if err := store.Remove(n.ctx, "example.test/app:one"); err != nil {
		t.Fatal(err)
	}
	if got := names(); got != images.PauseName {
		t.Errorf("after removing, the images are %s", got)
	}
	for name, bad := range map[string]struct {
		data []byte
		why  string
	}{
		"nothing":    {nil, "ends too early"},
		"no archive": {bytes.Repeat([]byte("hello "), 1000), "docker save"},
		"half":       {archive.Bytes()[:archive.Len()/2], "ends too early"},
	} {
		if got, err := store.Import(n.ctx, bytes.NewReader(bad.data)); err == nil || !strings.Contains(err.Error(), bad.why) {
			t.Errorf("importing %s gives %v, %v; want %q", name, got, err, bad.why)
		}
	}
}
