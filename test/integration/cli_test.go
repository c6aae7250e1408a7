package integration

import (
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/local"
)

// barque runs the program as a user does and returns its exit code and what it printed.
func barque(t testing.TB, args ...string) (code int, out, errs string) {
	t.Helper()
	return execute(t, exec.Command(program, args...))
}

func execute(t testing.TB, cmd *exec.Cmd) (code int, out, errs string) {
	t.Helper()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(2*time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	_ = cmd.Wait()
	return cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()
}

// must runs the program, which must succeed.
func must(t testing.TB, args ...string) string {
	t.Helper()
	code, out, errs := barque(t, args...)
	if code != 0 {
		t.Fatalf("barque %s: code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// refused runs the program, which must fail with a last line that says want.
func refused(t testing.TB, want string, args ...string) {
	t.Helper()
	code, _, errs := barque(t, args...)
	lines := strings.Split(strings.TrimSpace(errs), "\n")
	if last := lines[len(lines)-1]; code == 0 || !strings.HasPrefix(last, "barque: ") || !strings.Contains(last, want) {
		t.Errorf("barque %s: code %d, want %q, got %q", strings.Join(args, " "), code, want, errs)
	}
}

// joining is a server on free ports of the host that tries to join the shared cluster.
func joining(t testing.TB, dir, token string) []string {
	t.Helper()
	return []string{"server", "--data-dir", dir, "--disable", "agent", "--bind-address", "127.0.0.1", "--log-level", "error", "--node-name", "guest",
		"--https-port", freePort(t), "--etcd-peer-port", freePort(t), "--join", shared.VIPURL(), "--token", token}
}

func freePort(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}

// Every kind of token that is no good is refused, through the virtual IP, by a sentence, and
// leaves nothing on the machine nor in the cluster.
func TestTokens(t *testing.T) {
	t.Parallel()
	config := "--kubeconfig=" + shared.Kubeconfig()
	create := func(flags ...string) string {
		return strings.TrimSpace(must(t, append([]string{"token", "create", config}, flags...)...))
	}
	good := create("--usage", "server", "--description", "a test of tokens")
	parts := strings.Split(good, ".")
	if len(parts) != 4 {
		t.Fatalf("token %q", good)
	}
	if list := must(t, "token", "list", config); !strings.Contains(list, parts[2]) || strings.Contains(list, parts[3]) {
		t.Errorf("the list should show the id and not the secret:\n%s", list)
	}
	agent := create("--usage", "agent", "--ttl", "1h")
	short := create("--ttl", "1ms")
	top := t.TempDir()
	dir := filepath.Join(top, "guest")
	refused(t, "may not be used to join as server", joining(t, dir, agent)...)
	refused(t, "token", joining(t, dir, short)...)
	refused(t, "token", joining(t, dir, strings.Join([]string{parts[0], parts[1], parts[2], "0000000000000000"}, "."))...)
	refused(t, "token", joining(t, dir, strings.Join([]string{parts[0], parts[1], "zzzzzz", parts[3]}, "."))...)
	refused(t, "another cluster", joining(t, dir, strings.Join([]string{parts[0], strings.Repeat("0", 64), parts[2], parts[3]}, "."))...)
	must(t, "token", "delete", config, parts[2])
	refused(t, "token", joining(t, dir, good)...)
	if entries, _ := os.ReadDir(top); len(entries) != 0 {
		t.Errorf("a server that was refused left %v", entries)
	}
	if nodes := shared.kubectl(t, "get", "nodes", "-o", "name"); strings.Contains(nodes, "guest") {
		t.Errorf("a server that was refused is in the cluster:\n%s", nodes)
	}
	must(t, "token", "delete", config, strings.Split(agent, ".")[2])
}

// A user who is not root is told so.
func TestNotRoot(t *testing.T) {
	t.Parallel()
	for want, args := range map[string][]string{
		"needs root": {"up", "--dir", "/tmp/bqt-none"},
		"add --disable agent for a control plane alone": {"server", "--data-dir", "/tmp/bqt-none"},
		"run with sudo": {"agent", "--data-dir", "/tmp/bqt-none", "--server", "https://127.0.0.1:1", "--token", "x"},
	} {
		file, err := os.Open(program)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/fd/3", args...) // the way to the program may be closed to others
		cmd.ExtraFiles = []*os.File{file}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		code, _, errs := execute(t, cmd)
		_ = file.Close()
		if code == 0 || !strings.Contains(errs, want) {
			t.Errorf("barque %v: code %d, want %q, got %q", args, code, want, errs)
		}
	}
	if _, err := os.Stat("/tmp/bqt-none"); err == nil {
		t.Error("something was left behind")
	}
}

func TestImageCommands(t *testing.T) {
	t.Parallel()
	list := must(t, "image", "list", "--dir", shared.dir)
	for _, m := range shared.Machines {
		if !strings.Contains(list, m.Name) || !strings.Contains(list, busyboxImage) {
			t.Errorf("%s and its busybox are not in:\n%s", m.Name, list)
		}
	}
	if own := must(t, "image", "list", "--data-dir", shared.Machines[0].DataDir()); !strings.Contains(own, busyboxImage) {
		t.Errorf("one machine's own list:\n%s", own)
	}
	refused(t, "no archive", "image", "import", "/nonexistent.tar", "--dir", shared.dir)
}

// traces is all that a local cluster could leave on the machine, apart from other clusters'.
func traces(t testing.TB, dir string) []string {
	t.Helper()
	id := ""
	if c, err := local.Load(dir); err == nil {
		id = c.ID
	}
	var found []string
	add := func(kind, name string) {
		if strings.Contains(name, dir) || id != "" && strings.Contains(name, id) {
			found = append(found, kind+" "+name)
		}
	}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		add("link", l.Name)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		add("mount", strings.Fields(line)[4])
	}
	for _, pattern := range []string{"/run/netns/*", "/run/barque/*", "/tmp/bqt-*", "/proc/[0-9]*"} {
		names, _ := filepath.Glob(pattern)
		for _, name := range names {
			if data, err := os.ReadFile(filepath.Join(name, "cmdline")); err == nil && strings.HasPrefix(name, "/proc/") {
				name += " " + strings.ReplaceAll(string(data), "\x00", " ")
			}
			add("file or process", name)
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() {
			add("control group", path)
		}
		return nil
	})
	return found
}

// `barque down` leaves nothing, whatever of a cluster there is.
func checkGone(t testing.TB, dir, id string) {
	t.Helper()
	for _, what := range traces(t, dir) {
		t.Errorf("left behind: %s", what)
	}
	for _, pattern := range []string{"/run/netns/*" + id + "*", "/sys/class/net/bq" + id + "*", "/sys/fs/cgroup/*/barque/" + id, "/sys/fs/cgroup/barque/" + id} {
		if names, _ := filepath.Glob(pattern); id != "" && len(names) > 0 {
			t.Errorf("left behind: %v", names)
		}
	}
}

// A cluster grows, with agents that join by token and restart without it; asked for less than
// there is, or for what there is, nothing changes; and in the end nothing is left.
func TestGrowAndVanish(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	must(t, "up", "--dir", dir, "--servers", "1", "--no-sample")
	must(t, "up", "--dir", dir, "--servers", "3", "--agents", "1", "--no-sample")
	c, err := local.Load(dir)
	if err != nil {
		t.Fatal(err)
	}
	lab := &cluster{Cluster: c, dir: dir, servers: 3}
	status := must(t, "status", "--dir", dir)
	if strings.Count(status, "Ready") != 4 || !strings.Contains(status, "leader    server-") {
		t.Errorf("status:\n%s", status)
	}
	refused(t, "has 3 servers and 1 agents", "up", "--dir", dir, "--servers", "1")
	before := pids(c)
	must(t, "up", "--dir", dir, "--servers", "3", "--agents", "1", "--no-sample")
	if after := pids(c); !slices.Equal(before, after) {
		t.Errorf("up again restarted machines: %v, then %v", before, after)
	}

	// The agent comes back by its certificate, and serves with one that the cluster signed.
	agent := c.Machines[3]
	if err := agent.Kill(); err != nil {
		t.Fatal(err)
	}
	code, out, errs := barque(t, "status", "--dir", dir)
	if code == 0 || !strings.Contains(out, "stopped") || !strings.Contains(errs, "1 of 4 machines") {
		t.Errorf("status without the agent: %d\n%s%s", code, out, errs)
	}
	must(t, "up", "--dir", dir, "--servers", "3", "--agents", "1", "--no-sample")
	eventually(t, 20*time.Second, "the agent's serving certificate", func() error {
		csrs, err := lab.client(t).CertificatesV1().CertificateSigningRequests().List(t.Context(), metav1.ListOptions{})
		if err != nil {
			return err
		}
		for i := range csrs.Items {
			if csrs.Items[i].Spec.SignerName == "kubernetes.io/kubelet-serving" && len(csrs.Items[i].Status.Certificate) > 0 {
				return nil
			}
		}
		return fmt.Errorf("none of %d requests is signed", len(csrs.Items))
	})
	servers, err := os.ReadFile(filepath.Join(agent.DataDir(), "servers.json"))
	if err != nil || strings.Count(string(servers), ":6443") != 3 {
		t.Errorf("the agent remembers the servers %s, %v", servers, err)
	}

	if len(traces(t, dir)) < 20 {
		t.Fatal("the search for traces finds next to nothing of a cluster that runs")
	}
	must(t, "down", "--dir", dir)
	checkGone(t, dir, c.ID)
	if out := must(t, "down", "--dir", dir); !strings.Contains(out, "there is no cluster") {
		t.Errorf("down again: %s", out)
	}
}

func pids(c *local.Cluster) (pids []int) {
	for _, m := range c.Machines {
		pids = append(pids, m.PID())
	}
	return pids
}

// clusterDir is a short directory, which does not exist, for a cluster that is gone afterwards.
func clusterDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", fmt.Sprintf("bqt-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := local.Down(ctx, dir, func(string, ...any) {}); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// `barque up` is killed at random moments: then `up` heals what there is, and `down` removes it.
func TestUpKilled(t *testing.T) {
	t.Parallel()
	dir := clusterDir(t)
	id := ""
	for i := range 5 {
		delay := time.Duration(rand.Int64N(int64(2500 * time.Millisecond)))
		cmd := exec.Command(program, "up", "--dir", dir, "--servers", "3", "--no-sample")
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		timer := time.AfterFunc(delay, func() { _ = cmd.Process.Kill() })
		_ = cmd.Wait()
		timer.Stop()
		if c, err := local.Load(dir); err == nil {
			id = c.ID
		}
		t.Logf("trial %d: killed after %v", i, delay)
		if i == 2 || i == 4 {
			must(t, "up", "--dir", dir, "--servers", "3", "--no-sample")
			must(t, "status", "--dir", dir)
		}
		if i%2 == 0 {
			must(t, "down", "--dir", dir)
			checkGone(t, dir, id)
		}
	}
}
