package containerd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/runtime"
	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
)

// politeness is how long ending pods through the runtime may take before they are ended
// without it.
const politeness = 20 * time.Second

// Stop ends everything that this data directory's containerd runs, and containerd itself:
// first in good order, with the network told of each pod's end, then by force. It takes away
// the mounts and the run directory, and, if CgroupRoot is not "/", the control groups of pods
// and daemon. Images and the rest of the data directory stay. It works after a crash of any
// part, and succeeds if there is nothing to do. It fails if another process still runs the
// node and does not stop until ctx ends.
func (r *Runtime) Stop(ctx context.Context) error {
	if !exists(r.cfg.DataDir) {
		return r.Clean(ctx)
	}
	unlock, err := r.lock(ctx, true)
	if err != nil {
		return err
	}
	defer unlock()
	if old, ok := readRecord(r.data("containerd.pid")); ok {
		p, err := old.find()
		if err != nil {
			return err
		}
		if p != nil {
			defer p.close()
			polite, cancel := context.WithTimeout(ctx, politeness)
			if err := r.endPods(polite); err != nil {
				r.cfg.Log.Warn("ending pods by force", "error", err)
			}
			cancel()
			if err := p.end(ctx, stopGrace); err != nil {
				return fmt.Errorf("stop containerd: %w", err)
			}
		}
	}
	return r.Clean(ctx)
}

// endPods stops and removes every pod sandbox through the runtime.
func (r *Runtime) endPods(ctx context.Context) error {
	client, err := runtime.Dial(r.Endpoint(), runtime.Limits{})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	list, err := client.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	var group errgroup.Group
	group.SetLimit(16)
	for _, s := range list.GetItems() {
		group.Go(func() error {
			_, err := client.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: s.GetId()})
			if err != nil {
				return err
			}
			_, err = client.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: s.GetId()})
			return err
		})
	}
	return group.Wait()
}

// Clean ends by force what Stop ends: it kills whatever process of this data directory's
// containerd is left, and removes its traces. It asks nobody, and so it is also what is needed
// when a whole machine is to vanish at once.
func (r *Runtime) Clean(ctx context.Context) error {
	if old, ok := readRecord(r.data("containerd.pid")); ok {
		p, err := old.find()
		if err != nil {
			return err
		}
		if p != nil {
			err := errors.Join(p.signal(unix.SIGKILL), p.wait(ctx))
			p.close()
			if err != nil {
				return fmt.Errorf("kill containerd: %w", err)
			}
		}
	}
	if err := r.killLeftOver(ctx); err != nil {
		return err
	}
	groups := []string{cgroup.PodsRoot(r.cfg.CgroupRoot), r.daemonGroup()}
	if r.cfg.CgroupRoot != "/" {
		for _, g := range groups {
			if err := errors.Join(cgroup.Kill(ctx, g), cgroup.Remove(ctx, g)); err != nil {
				return err
			}
		}
	}
	if err := errors.Join(unmountBelow(r.cfg.RunDir), unmountBelow(r.cfg.DataDir)); err != nil {
		return err
	}
	if err := os.RemoveAll(r.cfg.RunDir); err != nil {
		return fmt.Errorf("remove containerd's run directory: %w", err)
	}
	if err := os.Remove(r.data("containerd.pid")); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove containerd's pid file: %w", err)
	}
	// Ours alone if this was the last node on the machine with a long data directory.
	_ = os.Remove("/run/barque")
	return nil
}

// clearDeadState removes the state of running pods if none of their processes is left, as
// after a reboot or a power cut of a virtual machine: containerd then sees containers that
// have ended, rather than ones that it fails to reach.
func (r *Runtime) clearDeadState(ctx context.Context) error {
	left, err := r.leftOver()
	if err != nil || len(left) > 0 {
		return err
	}
	if !exists(r.stateDir()) {
		return nil
	}
	r.cfg.Log.Info("no pod survived; clearing the state of running pods", "dir", r.cfg.RunDir)
	for _, dir := range []string{r.stateDir(), filepath.Join(r.cfg.RunDir, "runc"), filepath.Join(r.cfg.RunDir, "s")} {
		if err := unmountBelow(dir); err != nil {
			return err
		}
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("clear the state of running pods: %w", err)
		}
	}
	return r.makeDirs()
}

// killLeftOver kills shims and containers, until none is left or ctx ends.
func (r *Runtime) killLeftOver(ctx context.Context) error {
	for {
		left, err := r.leftOver()
		if err != nil {
			return err
		}
		if len(left) == 0 {
			return nil
		}
		for _, pid := range left {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of a pod: %w", pid, err)
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%d processes of pods do not end: %w", len(left), context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// leftOver lists the processes of shims that serve this daemon, and of containers whose
// bundles are in its state directory.
func (r *Runtime) leftOver() ([]int, error) {
	ids, err := r.bundles()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var left []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		// Reading fails for a process that has just ended.
		args, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cmdline"))
		groups, _ := os.ReadFile(filepath.Join("/proc", e.Name(), "cgroup"))
		if !isShim(string(args), r.Socket()) && !inBundle(string(groups), ids) {
			continue
		}
		// One that has ended, and only waits for its parent, is as good as gone.
		if _, err := startTime(pid); err == nil {
			left = append(left, pid)
		}
	}
	return left, nil
}

// bundles lists the ids of the containers in the state directory.
func (r *Runtime) bundles() (map[string]bool, error) {
	entries, err := os.ReadDir(filepath.Join(r.stateDir(), "io.containerd.runtime.v2.task", Namespace))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("list running containers: %w", err)
	}
	ids := make(map[string]bool, len(entries))
	for _, e := range entries {
		ids[e.Name()] = true
	}
	return ids, nil
}

// isShim reports whether a command line, its arguments ended by NUL bytes, is that of a shim
// of the daemon at socket.
func isShim(cmdline, socket string) bool {
	args := strings.Split(strings.TrimSuffix(cmdline, "\x00"), "\x00")
	if filepath.Base(args[0]) != bundle.Shim {
		return false
	}
	for i, arg := range args[:len(args)-1] {
		if arg == "-address" && args[i+1] == socket {
			return true
		}
	}
	return false
}

// inBundle reports whether a process whose /proc/PID/cgroup is given is in the group of one of
// the containers: runc names a container's group by its id, and what is inside may make groups
// below it.
func inBundle(groups string, ids map[string]bool) bool {
	for line := range strings.Lines(groups) {
		fields := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(fields) < 3 {
			continue
		}
		for element := range strings.SplitSeq(fields[2], "/") {
			if ids[element] {
				return true
			}
		}
	}
	return false
}
