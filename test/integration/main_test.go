// Package integration tests whole clusters: the binary that users run, started by the code of
// `barque up`, with real etcd, real containers and real networks. Its clients are stock kubectl
// and client-go. It needs root and bin/barque; `make integration` builds that.
package integration

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/local"
)

// shared is the cluster of three masters that most tests use; those that break things heal it.
var shared *cluster

func TestMain(m *testing.M) { os.Exit(testMain(m)) }

func testMain(m *testing.M) int {
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "integration tests can't run here:", err)
		return 1
	}
	c, err := up(3)
	if err != nil {
		fmt.Fprintln(os.Stderr, "start the shared cluster:", err)
		if c != nil {
			c.printLogs(os.Stderr)
			c.down()
		}
		return 1
	}
	shared = c
	code := m.Run()
	if code != 0 {
		c.printLogs(os.Stderr)
	}
	if err := c.down(); err != nil {
		fmt.Fprintln(os.Stderr, "take the shared cluster down:", err)
		return 1
	}
	return code
}

var (
	program string // bin/barque
	kubectl string // stock kubectl of the release that we serve
)

// prepare finds what the tests run, and says what is missing.
func prepare() error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("they need root")
	}
	root, err := filepath.Abs(filepath.Join("..", ".."))
	if err != nil {
		return err
	}
	if program = os.Getenv("BARQUE_PROGRAM"); program == "" {
		program = filepath.Join(root, "bin", "barque")
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w: run `make build` first", err)
	}
	kubectl = filepath.Join(root, ".cache", "kubectl")
	build := exec.Command("go", "build", "-o", kubectl, "k8s.io/kubernetes/cmd/kubectl")
	build.Dir = root
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build stock kubectl: %w: %s", err, out)
	}
	if err := os.RemoveAll(keptLogs()); err != nil {
		return err
	}
	return cleanUp()
}

// cleanUp removes what earlier runs that were killed left behind: clusters in directories that
// are named after a process which is gone.
func cleanUp() error {
	old, _ := filepath.Glob("/tmp/bqt-*")
	for _, dir := range old {
		pid, _, _ := strings.Cut(strings.TrimPrefix(dir, "/tmp/bqt-"), "-")
		if _, err := os.Stat("/proc/" + pid); err == nil {
			continue
		}
		if err := local.Down(context.Background(), dir, func(string, ...any) {}); err != nil {
			return fmt.Errorf("clean up after an earlier run: %w", err)
		}
	}
	return nil
}

// cluster is a local cluster under test.
type cluster struct {
	*local.Cluster
	dir     string
	servers int
	agents  int
	own     string // the machines' program, if not the program under test
}

// up starts a cluster in a directory of its own; its name is short since sockets are in it.
func up(servers int, flags ...string) (*cluster, error) {
	dir, err := os.MkdirTemp("/tmp", fmt.Sprintf("bqt-%d-", os.Getpid()))
	if err != nil {
		return nil, err
	}
	c := &cluster{dir: dir, servers: servers}
	if err := c.heal(flags...); err != nil {
		return c, err
	}
	return c, c.importImages()
}

// ownCluster is a cluster of three masters for one test, which may do to it what it likes.
func ownCluster(t *testing.T) *cluster {
	t.Helper()
	c, err := up(3)
	if c != nil {
		t.Cleanup(func() {
			if t.Failed() {
				c.printLogs(os.Stderr)
			}
			if err := c.down(); err != nil {
				t.Error(err)
			}
		})
	}
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// heal runs `barque up` on the cluster's directory and waits until all is well.
func (c *cluster) heal(flags ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	progress, err := c.up(ctx, flags...)
	if err != nil {
		return err
	}
	return c.WaitNodes(ctx, progress)
}

// up runs `barque up`, which waits for the servers, and not for nodes.
func (c *cluster) up(ctx context.Context, flags ...string) (progress func(format string, args ...any), err error) {
	started := time.Now()
	progress = func(format string, args ...any) {
		fmt.Printf("  up %5.1fs  %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
	}
	lc, err := local.Up(ctx, local.Options{
		Dir: c.dir, Servers: c.servers, Agents: c.agents, Program: cmp.Or(c.own, program), ServerFlags: flags, Progress: progress, Log: slog.Default(),
	})
	if lc != nil {
		c.Cluster = lc
	}
	return progress, err
}

func (c *cluster) down() error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return local.Down(ctx, c.dir, func(string, ...any) {})
}

// keptLogs is where the logs of clusters in which a test failed are kept, a directory each.
func keptLogs() string { return filepath.Join("..", "..", ".cache", "integration-logs") }

// printLogs shows the last lines of every machine's log, and keeps the logs whole in .cache, since
// whoever reads a failure wants to see the tests' own words first.
func (c *cluster) printLogs(w io.Writer) {
	const lines, width = 5, 300
	kept := filepath.Join(keptLogs(), filepath.Base(c.dir))
	_ = os.MkdirAll(kept, 0o755)
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
	for _, name := range logs {
		data, err := os.ReadFile(name)
		if err != nil {
			continue
		}
		_ = os.WriteFile(filepath.Join(kept, filepath.Base(name)), data, 0o644)
		all := strings.Split(strings.TrimSpace(string(data)), "\n")
		_, _ = fmt.Fprintf(w, "--- %s (whole in .cache/integration-logs/%s)\n", filepath.Base(name), filepath.Base(c.dir))
		for _, line := range all[max(0, len(all)-lines):] {
			_, _ = fmt.Fprintln(w, line[:min(len(line), width)])
		}
	}
}

// client speaks to the API at the virtual IP.
func (c *cluster) client(t testing.TB) kubernetes.Interface {
	t.Helper()
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	return clientFor(t, config)
}

// clientOf speaks to one server's API.
func (c *cluster) clientOf(t testing.TB, m *local.Machine) kubernetes.Interface {
	t.Helper()
	config, err := c.MachineConfig(m)
	if err != nil {
		t.Fatal(err)
	}
	return clientFor(t, config)
}

func clientFor(t testing.TB, config *rest.Config) kubernetes.Interface {
	t.Helper()
	config.QPS, config.Burst = 1000, 1000
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

// kubectl runs stock kubectl and returns what it prints; it must succeed.
func (c *cluster) kubectl(t testing.TB, args ...string) string {
	t.Helper()
	out, err := c.tryKubectl("", args...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

// tryKubectl runs stock kubectl with input.
func (c *cluster) tryKubectl(input string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, kubectl, append([]string{"--kubeconfig", c.Kubeconfig()}, args...)...)
	cmd.Stdin = strings.NewReader(input)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	return out.String(), err
}

// apply creates what a manifest says.
func (c *cluster) apply(t testing.TB, manifest string) {
	t.Helper()
	if out, err := c.tryKubectl(manifest, "apply", "-f", "-"); err != nil {
		t.Fatalf("kubectl apply: %v\n%s", err, out)
	}
}

// namespace makes a namespace for one test; it is deleted afterwards.
func (c *cluster) namespace(t testing.TB) string {
	t.Helper()
	name := "t-" + strings.ToLower(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '-'
	}, t.Name()))
	name = strings.TrimRight(name[:min(len(name), 60)], "-")
	c.kubectl(t, "create", "namespace", name)
	t.Cleanup(func() {
		if out, err := c.tryKubectl("", "delete", "namespace", name, "--wait", "--timeout=90s"); err != nil {
			why, _ := c.tryKubectl("", "get", "namespace", name, "-o", "jsonpath={.status.conditions}")
			left, _ := c.tryKubectl("", "-n", name, "get", "pods", "-o", "yaml")
			t.Errorf("delete namespace %s: %v\n%s%s\n%s", name, err, out, why, left)
		}
	})
	return name
}

// eventually waits until check returns nil.
func eventually(t testing.TB, timeout time.Duration, what string, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within %v: %v", what, timeout, err)
		}
		<-tick.C
	}
}
