package integration

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/local"
)

// clusterWith is a cluster of three masters for one test, with agents and flags of its own.
func clusterWith(t *testing.T, agents int, flags ...string) *cluster {
	t.Helper()
	c := &cluster{dir: freshDir(t), servers: 3, agents: agents}
	c.begin(t, flags...)
	return c
}

// emptyCluster is one for one test, of which nothing runs yet.
func emptyCluster(t *testing.T, servers, agents int) *cluster {
	t.Helper()
	c := &cluster{dir: freshDir(t), servers: servers, agents: agents}
	c.endsWith(t)
	return c
}

func freshDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/tmp", fmt.Sprintf("bqt-%d-", os.Getpid()))
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// begin starts a cluster, and takes it away when the test ends.
func (c *cluster) begin(t *testing.T, flags ...string) {
	t.Helper()
	c.endsWith(t)
	if err := c.heal(flags...); err != nil {
		t.Fatal(err)
	}
	if err := c.importImages(); err != nil {
		t.Fatal(err)
	}
}

// endsWith takes a cluster away when the test ends.
func (c *cluster) endsWith(t *testing.T) {
	t.Helper()
	t.Cleanup(func() {
		if t.Failed() {
			c.printLogs(os.Stderr)
		}
		if err := c.down(); err != nil {
			t.Error(err)
		}
	})
}

// tryBarque runs the program under test, and returns its exit code and all that it prints.
func (c *cluster) tryBarque(t *testing.T, args ...string) (int, string) {
	t.Helper()
	code, out := c.quietly(t, args...)
	t.Logf("barque %s:\n%s", strings.Join(args, " "), strings.TrimSpace(out))
	return code, out
}

// quietly is tryBarque for what is asked again and again.
func (c *cluster) quietly(t *testing.T, args ...string) (int, string) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), program, args...).CombinedOutput()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	if exit != nil {
		return exit.ExitCode(), string(out)
	}
	return 0, string(out)
}

// refuses runs the program under test, which must fail and say so.
func (c *cluster) refuses(t *testing.T, code int, text string, args ...string) {
	t.Helper()
	if got, out := c.tryBarque(t, args...); got != code || !strings.Contains(out, text) {
		t.Errorf("barque %s: exit code %d, want %d and %q", strings.Join(args, " "), got, code, text)
	}
}

// members waits until the cluster has the servers among the machines, and no others, as voting members, and one of them leads.
func (c *cluster) members(t *testing.T, machines ...*local.Machine) {
	t.Helper()
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	client := clientFor(t, config)
	eventually(t, bound, fmt.Sprintf("the voting members are those of %d machines", len(machines)), func() error {
		var list membership.List
		if err := askJSON(t.Context(), client.Discovery().RESTClient(), membership.PathServers, &list); err != nil {
			return err
		}
		voters := map[string]bool{}
		for _, s := range list.Servers {
			if s.Name != "" && !s.Learner {
				voters[s.Name] = true
			}
		}
		servers := 0
		for _, m := range machines {
			if m.Role != local.RoleServer {
				continue
			}
			if servers++; !voters[m.Name] {
				return fmt.Errorf("%s does not vote: %+v", m.Name, list.Servers)
			}
		}
		if len(list.Servers) != servers {
			return fmt.Errorf("%+v", list.Servers)
		}
		return nil
	})
}

// without are the machines but one.
func without(machines []*local.Machine, m *local.Machine) (list []*local.Machine) {
	for _, o := range machines {
		if o != m {
			list = append(list, o)
		}
	}
	return list
}

// Servers leave one by one while somebody writes: a follower, then the leader. Nothing is lost, nothing is left of them, and
// they don't come back by themselves. The last one may not leave.
func TestServersLeave(t *testing.T) {
	c := clusterWith(t, 1)
	const ns = "default"
	c.kubectl(t, "create", "deployment", "web", "--image="+busyboxImage, "--replicas=3", "--", "sleep", "1000000")
	c.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	w := c.write(t, ns, "by-writer")
	w.goesOn(t)

	agent := c.Machines[len(c.Machines)-1]
	c.leaves(t, agent)
	c.noTrace(t, agent)
	c.refuses(t, 78, "has left the cluster", "agent", "--data-dir", agent.DataDir(), "--server", "https://127.0.0.1:6443")

	old := c.leader(t)
	follower := c.others(old)[0]
	c.apply(t, strings.NewReplacer("NODE", follower.Name, "IMAGE", busyboxImage).Replace(barePod))
	c.refuses(t, 1, "default/bare belong to no controller", "leave", "--data-dir", follower.DataDir())
	c.kubectl(t, "delete", "pod", "bare", "--now")
	c.leaves(t, follower)
	w.goesOn(t)
	c.members(t, without(c.Machines, follower)...)
	c.noTrace(t, follower)
	c.kubectl(t, "rollout", "status", "deployment/web", "--timeout=60s")
	c.refuses(t, 78, "has left the cluster", "server", "--data-dir", follower.DataDir(), "--advertise-address", "127.0.0.1")
	if code, out := c.tryBarque(t, "leave", "--purge", "--data-dir", follower.DataDir()); code != 0 {
		t.Error(out)
	}
	if _, err := os.Stat(follower.DataDir()); err == nil {
		t.Error("the data directory is there after --purge")
	}

	// The machine joins again as a new one.
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	if err := c.importImages(); err != nil {
		t.Fatal(err)
	}
	c.members(t, c.Machines...)
	c.leaves(t, c.leader(t))
	w.goesOn(t)
	w.well(t, "leave of a follower and of the leader", longestGap)

	// Of two, one may go, and the last one may not.
	var left []*local.Machine
	for _, m := range c.Machines {
		if m.Role == local.RoleServer && m.Running() {
			left = append(left, m)
		}
	}
	c.members(t, left...)
	c.kubectl(t, "delete", "deployment", "web")
	c.leaves(t, left[0])
	c.members(t, left[1])
	c.refuses(t, 1, "holds the cluster's only vote", "leave", "--data-dir", left[1].DataDir())
	c.kubectl(t, "create", "configmap", "alone")
	if !left[1].Running() {
		t.Error("the last server has ended")
	}
}

const barePod = `
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: default}
spec:
  nodeName: NODE
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: IMAGE, command: [sleep, "1000000"]}]
`

// leaves has a machine leave, whose process then ends.
func (c *cluster) leaves(t *testing.T, m *local.Machine) {
	t.Helper()
	if code, out := c.tryBarque(t, "leave", "--timeout", "2m", "--data-dir", m.DataDir()); code != 0 || !strings.Contains(out, "this machine has left the cluster") {
		t.Fatalf("%s does not leave: exit code %d", m.Name, code)
	}
	eventually(t, bound, "the process of "+m.Name+" ends", func() error {
		if m.Running() {
			return errors.New("it runs")
		}
		return nil
	})
}

// noTrace checks that neither a node nor a server of the machine's name is there.
func (c *cluster) noTrace(t *testing.T, m *local.Machine) {
	t.Helper()
	client := c.client(t)
	if _, err := client.CoreV1().Nodes().Get(t.Context(), m.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("node %s: %v", m.Name, err)
	}
	if _, err := client.CoordinationV1().Leases(metav1.NamespaceSystem).Get(t.Context(), "barque-apiserver-"+m.Name, metav1.GetOptions{}); !apierrors.IsNotFound(err) {
		t.Errorf("identity of %s: %v", m.Name, err)
	}
}

// A server that is gone is removed after the grace, and joins anew by itself when it comes back. One that an administrator removed
// does not.
func TestDeadServersAreRemoved(t *testing.T) {
	c := clusterWith(t, 0, "--hasty-removal", "--remove-dead-after=3s")
	w := c.write(t, "default", "by-writer")
	w.goesOn(t)
	dead := c.leader(t)
	rest := c.others(dead)
	if err := dead.Kill(); err != nil {
		t.Fatal(err)
	}
	c.members(t, rest...)
	c.kubectl(t, "create", "configmap", "while-away")
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	c.members(t, c.Machines...)
	c.has(t, dead, "while-away")
	if old, _ := filepath.Glob(filepath.Join(dead.DataDir(), "etcd.removed-*")); len(old) != 1 {
		t.Errorf("the old data of %s: %v", dead.Name, old)
	}

	// On request, one that lives isn't removed, and one that doesn't is, at once and for good.
	c.refuses(t, 1, "run `barque leave` on it", "server", "remove", dead.Name, "--kubeconfig", c.Kubeconfig())
	c.refuses(t, 1, "no such server", "server", "remove", "nobody", "--kubeconfig", c.Kubeconfig())
	if err := dead.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if code, _ := c.tryBarque(t, "server", "remove", dead.Name, "--kubeconfig", c.Kubeconfig()); code != 0 {
		t.Fatal("a dead server can't be removed")
	}
	c.members(t, rest...)
	w.goesOn(t)
	c.staysAway(t, dead)
	c.removeTheLost(t, dead)
	w.goesOn(t)
	w.well(t, "servers lost and removed", longestGap)
	if code, out := c.tryBarque(t, "server", "list", "--kubeconfig", c.Kubeconfig()); code != 0 || strings.Contains(out, dead.Name) {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// staysAway starts a server that an administrator removed: it is refused, and ends.
func (c *cluster) staysAway(t *testing.T, m *local.Machine) {
	t.Helper()
	if err := c.heal(); err == nil || !strings.Contains(err.Error(), "was removed from the cluster by an administrator") {
		t.Errorf("%s comes back: %v", m.Name, err)
	}
	c.members(t, c.others(m)...)
}

// removeTheLost lets a server join anew, waits until it is removed by itself once it is gone, and then removes it on request too: so
// it must not come back any more.
func (c *cluster) removeTheLost(t *testing.T, m *local.Machine) {
	t.Helper()
	if err := os.RemoveAll(m.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	c.members(t, c.Machines...)
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	c.members(t, c.others(m)...)
	if code, _ := c.tryBarque(t, "server", "remove", m.Name, "--kubeconfig", c.Kubeconfig()); code != 0 {
		t.Errorf("%s can't be removed any more", m.Name)
	}
	c.staysAway(t, m)
}

// has waits until a machine's own server knows a ConfigMap for sure.
func (c *cluster) has(t *testing.T, m *local.Machine, name string) {
	t.Helper()
	client := c.clientOf(t, m)
	eventually(t, bound, m.Name+" has "+name, func() error {
		_, err := client.CoreV1().ConfigMaps("default").Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
}

// Two of three servers are lost. The third answers what need not be new, and says that it is stale; told to recover, it
// goes on with all that was acknowledged. One of the lost comes back with its old data, the other without any.
func TestRecoverFromTheLossOfTheQuorum(t *testing.T) {
	c := clusterWith(t, 0)
	const before = 20
	survivor := c.Machines[2]
	lost := c.others(survivor)
	for i := range before {
		c.kubectl(t, "create", "configmap", fmt.Sprintf("before-%d", i))
	}
	c.has(t, survivor, fmt.Sprintf("before-%d", before-1))
	c.refuses(t, 1, "the cluster has a quorum", "recover", "--yes", "--data-dir", survivor.DataDir())
	for _, m := range lost {
		if err := m.PowerOff(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	config, err := c.MachineConfig(survivor)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, bound, "a stale answer says so", func() error { return staleAnswer(t.Context(), config) })

	// Somebody who does not know what to do starts it again. It does not get far, and can be told all the same.
	c.restart(t, survivor)
	eventually(t, bound, "the survivor is there again", func() error {
		if code, out := c.tryBarque(t, "recover", "--dry-run", "--data-dir", survivor.DataDir()); code != 0 {
			return errors.New(out)
		}
		return nil
	})
	c.refuses(t, 1, "nothing was changed", "recover", "--data-dir", survivor.DataDir())
	if code, out := c.tryBarque(t, "recover", "--yes", "--data-dir", survivor.DataDir()); code != 0 || !strings.Contains(out, "recovered: server "+survivor.Name) {
		t.Fatal("it does not recover")
	}
	c.members(t, survivor)
	w := c.write(t, "default", "by-writer")
	w.goesOn(t)

	if err := os.RemoveAll(lost[1].DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	c.members(t, c.Machines...)
	w.goesOn(t)
	if r := w.stop(); r.lost != "" {
		t.Error(r.lost)
	}
	for _, m := range c.Machines {
		for i := range before {
			c.has(t, m, fmt.Sprintf("before-%d", i))
		}
	}
	if old, _ := filepath.Glob(filepath.Join(lost[0].DataDir(), "etcd.removed-*")); len(old) != 1 {
		t.Errorf("the old data of %s: %v", lost[0].Name, old)
	}

	// With the process stopped it works too.
	for _, m := range c.Machines {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if code, _ := c.tryBarque(t, "recover", "--yes", "--data-dir", survivor.DataDir()); code != 0 {
		t.Fatal("it does not recover without its process")
	}
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	c.members(t, c.Machines...)
	for _, m := range c.Machines {
		c.has(t, m, "before-0")
	}
}

// restart kills a machine's process and starts it again as it was, whether it gets ready or not.
func (c *cluster) restart(t *testing.T, m *local.Machine) {
	t.Helper()
	p := invocationOf(t, m)
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	p.start(t)
}

// An invocation is how a machine's was started.
type invocation struct {
	machine *local.Machine
	args    []string
	group   string // its control group's directory
}

// invocationOf is the one that runs.
func invocationOf(t *testing.T, m *local.Machine) invocation {
	t.Helper()
	proc := fmt.Sprintf("/proc/%d/", m.PID())
	line, err := os.ReadFile(proc + "cmdline")
	if err != nil {
		t.Fatal(err)
	}
	groups, err := os.ReadFile(proc + "cgroup")
	if err != nil {
		t.Fatal(err)
	}
	_, group, _ := strings.Cut("\n"+strings.TrimSpace(string(groups)), "\n0::")
	return invocation{machine: m, args: strings.Split(strings.Trim(string(line), "\x00"), "\x00")[1:], group: unified(t) + group}
}

// start starts it again, with more flags than before; it ends with its cluster.
func (p invocation) start(t *testing.T, flags ...string) {
	t.Helper()
	dir, err := os.Open(p.group)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dir.Close() }()
	log, err := os.OpenFile(p.machine.LogFile(), os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	cmd := exec.Command(program, slices.Concat([]string{"machine"}, p.args, flags)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, "/"
	cmd.Env = append(os.Environ(), "BARQUE_NETNS="+p.machine.NetNS(), "BARQUE_HOSTNAME="+p.machine.Name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = cmd.Wait() }()
}

// unified is where the unified hierarchy of control groups is mounted.
func unified(t *testing.T) string {
	t.Helper()
	data, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 2 && fields[2] == "cgroup2" {
			return fields[1]
		}
	}
	t.Fatal("there is no unified hierarchy of control groups")
	return ""
}

// staleAnswer asks a server without a quorum for what need not be new.
func staleAnswer(ctx context.Context, config *rest.Config) error {
	client, err := rest.HTTPClientFor(config)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, config.Host+"/api/v1/namespaces/default/configmaps?resourceVersion=0", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if w := resp.Header.Get("Warning"); resp.StatusCode != http.StatusOK || !strings.Contains(w, "stale") {
		return fmt.Errorf("%s, warning %q", resp.Status, w)
	}
	return nil
}

// askJSON gets what is at a path.
func askJSON(ctx context.Context, client rest.Interface, path string, into any) error {
	data, err := client.Get().AbsPath(path).DoRaw(ctx)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}
