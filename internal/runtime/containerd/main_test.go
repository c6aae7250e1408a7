package containerd

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"barque.dev/internal/runtime"
	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
	"barque.dev/internal/testkit/sweep"
)

// TestMain cleans up after the tests even when they are killed: a containerd and its pods outlive
// whoever started them.
func TestMain(m *testing.M) {
	os.Exit(sweep.Main(m, func(ctx context.Context, data string) error {
		r, err := New(testConfig(data))
		if err != nil {
			return err
		}
		return errors.Join(r.Stop(ctx), cgroup.Remove(ctx, r.cfg.CgroupRoot))
	}))
}

// testConfig is the configuration of a test's node. All of it follows from the data directory.
func testConfig(data string) Config {
	return Config{
		DataDir:    data,
		CgroupRoot: "/barque-test-" + filepath.Base(data),
		Log:        slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})),
	}
}

// node is a containerd for one test.
type node struct {
	*Runtime
	*runtime.Client
	ctx context.Context
	// podNetwork gives pods a network of their own, which has to be configured first.
	podNetwork bool
}

// checkLeaks fails the test if it leaves goroutines behind.
func checkLeaks(t *testing.T) {
	t.Helper()
	before := goleak.IgnoreCurrent()
	t.Cleanup(func() { goleak.VerifyNone(t, before) })
}

// newNode makes the data directory of a node, not yet started, which is gone after the test.
func newNode(t *testing.T) *node {
	t.Helper()
	packed, err := bundle.Open()
	if err != nil {
		t.Fatal(err)
	}
	data := sweep.Place(t)
	cfg := testConfig(data)
	if cfg.Programs, err = packed.Unpack(filepath.Join(os.TempDir(), "bin")); err != nil {
		t.Fatal(err)
	}
	r, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	client, err := runtime.Dial(r.Endpoint(), runtime.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	n := &node{Runtime: r, Client: client, ctx: t.Context()}
	t.Cleanup(func() { n.remove(t) })
	return n
}

// remove stops the node and checks that nothing is left of it.
func (n *node) remove(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if err := n.Stop(ctx); err != nil {
		t.Error(err)
	}
	n.checkGone(ctx, t)
	if t.Failed() {
		log, _ := os.ReadFile(n.LogFile())
		t.Logf("containerd's log:\n%s", log)
	}
	if err := os.RemoveAll(n.cfg.DataDir); err != nil {
		t.Error(err)
	}
}

// checkGone fails the test if the node left processes, mounts, control groups or sockets.
func (n *node) checkGone(ctx context.Context, t *testing.T) {
	t.Helper()
	if left, err := n.leftOver(); err != nil || len(left) > 0 {
		t.Errorf("processes are left: %v, %v", left, err)
	}
	all, err := mounts()
	if err != nil {
		t.Error(err)
	}
	for _, m := range all {
		if within(m.path, n.cfg.DataDir) || within(m.path, n.cfg.RunDir) {
			t.Errorf("a mount is left: %s", m.path)
		}
	}
	if exists(n.cfg.RunDir) {
		t.Errorf("the run directory is left: %s", n.cfg.RunDir)
	}
	for _, group := range []string{n.daemonGroup(), cgroup.PodsRoot(n.cfg.CgroupRoot)} {
		if found, err := cgroup.Exists(group); found || err != nil {
			t.Errorf("control group %s is left (%v)", group, err)
		}
	}
	if err := cgroup.Remove(ctx, n.cfg.CgroupRoot); err != nil {
		t.Error(err)
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		if args, _ := os.ReadFile(p); strings.Contains(string(args), n.cfg.DataDir+"/") && !strings.Contains(string(args), ".test") {
			t.Errorf("a process is left: %q", args)
		}
	}
}

// start runs the node until the returned function is called, which returns Run's error.
func (n *node) start(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(n.ctx)
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- n.Run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-done:
		cancel()
		t.Fatalf("containerd does not run: %v", err)
	}
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
	t.Cleanup(stop)
	return stop
}
