package agenttest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
	"barque.dev/internal/runtime/containerd"
)

// sweepEnv makes this test binary a sweeper: containerd and its pods outlive whoever started them.
const sweepEnv = "BARQUE_TEST_SWEEP"

func TestMain(m *testing.M) {
	if dir := os.Getenv(sweepEnv); dir != "" {
		os.Exit(sweep(dir))
	}
	code, err := guarded(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// guarded runs the tests with a sweeper that waits for their end, however it comes.
func guarded(m *testing.M) (int, error) {
	dir, err := os.MkdirTemp("", "barque-agent-")
	if err != nil {
		return 1, err
	}
	program, err := os.Executable()
	if err != nil {
		return 1, err
	}
	sweeper := exec.Command(program)
	sweeper.Env = append(os.Environ(), sweepEnv+"="+dir)
	sweeper.Stdout, sweeper.Stderr = os.Stdout, os.Stderr
	sweeper.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	end, err := sweeper.StdinPipe()
	if err != nil {
		return 1, err
	}
	if err := sweeper.Start(); err != nil {
		return 1, err
	}
	if err := os.Setenv("TMPDIR", dir); err != nil {
		return 1, err
	}
	code := m.Run()
	if err := end.Close(); err != nil {
		return 1, err
	}
	return code, sweeper.Wait()
}

// sweep waits for the tests' end and removes what they left. Finding anything is a failure.
func sweep(dir string) int {
	_, _ = io.Copy(io.Discard, os.Stdin)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code := 0
	nodes, _ := filepath.Glob(filepath.Join(dir, "nodes", "*"))
	for _, data := range nodes {
		code = 1
		r, err := containerd.New(runtimeConfig(data, bundle.Programs{}))
		if err == nil {
			err = errors.Join(r.Stop(ctx), cgroup.Remove(ctx, cgroupRoot(data)), unmountBelow(data))
		}
		fmt.Fprintln(os.Stderr, "swept up after", data, err)
	}
	if err := os.RemoveAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	return code
}

// unmountBelow undoes the mounts of volumes.
func unmountBelow(dir string) error {
	pods, err := filepath.Glob(filepath.Join(dir, "agent", "pods", "*", "volumes", "*", "*"))
	if err != nil {
		return err
	}
	for _, p := range pods {
		if err := unix.Unmount(p, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return err
		}
	}
	return nil
}

func cgroupRoot(data string) string { return "/barque-test-" + filepath.Base(data) }

func runtimeConfig(data string, programs bundle.Programs) containerd.Config {
	return containerd.Config{
		DataDir: data, CgroupRoot: cgroupRoot(data), Programs: programs,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}
