package agenttest

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
	"barque.dev/internal/runtime/containerd"
	"barque.dev/internal/testkit/sweep"
)

// TestMain cleans up after the tests even when they are killed: containerd and its pods outlive
// whoever started them.
func TestMain(m *testing.M) {
	os.Exit(sweep.Main(m, func(ctx context.Context, data string) error {
		r, err := containerd.New(runtimeConfig(data, bundle.Programs{}))
		if err != nil {
			return err
		}
		return errors.Join(r.Stop(ctx), cgroup.Remove(ctx, cgroupRoot(data)), unmountBelow(data))
	}))
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
