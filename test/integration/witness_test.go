package integration

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/cluster/membership"
	"barque.dev/internal/local"
)

// witnessName is what the witness of a test is called.
const witnessName = "witness"

// Two servers and a witness bear the loss of any one of the three: of the server that leads, machine and all, with a StatefulSet's pod
// on it, and of the witness. The witness never answers for the cluster, and may leave.
func TestTwoServersAndAWitness(t *testing.T) {
	c := emptyCluster(t, 2, 1)
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	if err := c.importImages(); err != nil {
		t.Fatal(err)
	}
	w := c.startWitness(t, strings.TrimSpace(c.barque(t, "token", "create", "--usage", "server", "--kubeconfig", c.Kubeconfig())))
	c.witnessed(t, "yes")
	writer := c.write(t, "default", "by-writer")
	writer.goesOn(t)
	t.Logf("the witness has %d MiB resident, %d MiB of it anonymous", w.resident(t, "VmRSS"), w.resident(t, "RssAnon"))

	c.apply(t, strings.ReplaceAll(pinnedSets, "IMAGE", busyboxImage))
	c.kubectl(t, "rollout", "status", "statefulset/db", "--timeout=60s")
	old := c.leader(t)
	before := c.podsOf(t, "app=db")
	if err := old.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	writer.goesOn(t)
	survivor := c.otherServer(t, old)
	eventually(t, bound, survivor.Name+" leads", func() error {
		if name, err := c.holder(t.Context(), c.clientOf(t, survivor)); err != nil || name != survivor.Name {
			return fmt.Errorf("%q does: %w", name, err)
		}
		return nil
	})
	c.onlyThoseOf(t, old, before)
	if err := c.heal(); err != nil {
		t.Fatal(err)
	}
	c.witnessed(t, "yes")
	if code, out := c.tryBarque(t, "status", "--kubeconfig", c.Kubeconfig()); !strings.Contains(out, witnessName) {
		t.Errorf("exit code %d: %s", code, out)
	}

	// The witness is lost, and comes back by what it has.
	w.end(t, syscall.SIGKILL)
	c.witnessed(t, "no")
	writer.goesOn(t)
	w = c.startWitness(t, "")
	c.witnessed(t, "yes")

	// It leaves. Two servers remain, of which neither may go while the other is dead.
	if code, out := c.tryBarque(t, "leave", "--data-dir", w.dir); code != 0 || !strings.Contains(out, "has left the cluster") {
		t.Errorf("it does not leave: exit code %d", code)
	}
	w.end(t, 0)
	c.members(t, c.Machines...)
	writer.goesOn(t)
	writer.well(t, "a server and the witness lost", longestGap)
}

// pinnedSets is a StatefulSet that may be on any machine, a pod on each.
const pinnedSets = `
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: default}
spec:
  replicas: 3
  podManagementPolicy: Parallel
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      topologySpreadConstraints:
      - {maxSkew: 1, topologyKey: kubernetes.io/hostname, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: db}}}
      containers: [{name: main, image: IMAGE, command: [sleep, "1000000"]}]
`

// podsOf are the running pods by name.
func (c *cluster) podsOf(t *testing.T, selector string) map[string]corev1.Pod {
	t.Helper()
	list, err := c.client(t).CoreV1().Pods("default").List(t.Context(), metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	pods := map[string]corev1.Pod{}
	for i := range list.Items {
		pods[list.Items[i].Name] = list.Items[i]
	}
	return pods
}

// onlyThoseOf waits until the pods that were on a lost machine run elsewhere, and checks that no other one was made anew or
// restarted: the machines that are left have not been without most of those who hear them.
func (c *cluster) onlyThoseOf(t *testing.T, lost *local.Machine, before map[string]corev1.Pod) {
	t.Helper()
	moved := 0
	eventually(t, bound, "the pods of "+lost.Name+" run elsewhere", func() error {
		moved = 0
		now := c.podsOf(t, "app=db")
		if len(now) < len(before) {
			return fmt.Errorf("there are %d of %d", len(now), len(before))
		}
		for name, pod := range now {
			was := before[name]
			switch {
			case podReady(&pod) != nil:
				return errors.New(describe(&pod))
			case was.Spec.NodeName == lost.Name && pod.Spec.NodeName == lost.Name:
				return fmt.Errorf("%s is there", name)
			case was.Spec.NodeName == lost.Name:
				moved++
			}
		}
		return nil
	})
	if moved == 0 {
		t.Errorf("nothing was on %s", lost.Name)
	}
	for name, pod := range c.podsOf(t, "app=db") {
		if was := before[name]; was.Spec.NodeName != lost.Name && (was.UID != pod.UID || statusOf(&pod, "main").RestartCount > 0) {
			t.Errorf("%s, on %s, was made anew or restarted", name, was.Spec.NodeName)
		}
	}
}

// otherServer is the one of two.
func (c *cluster) otherServer(t *testing.T, m *local.Machine) *local.Machine {
	t.Helper()
	for _, o := range c.others(m) {
		if o.Role == local.RoleServer {
			return o
		}
	}
	t.Fatal("there is no other server")
	return nil
}

// witnessed waits until three vote, one of them the witness, which answers or not and does not lead.
func (c *cluster) witnessed(t *testing.T, answers string) {
	t.Helper()
	rest := c.client(t).Discovery().RESTClient()
	eventually(t, bound, "two servers and a witness vote", func() error {
		var list membership.List
		if err := askJSON(t.Context(), rest, membership.PathServers, &list); err != nil {
			return err
		}
		votes, witnesses := 0, 0
		for _, s := range list.Servers {
			if !s.Learner {
				votes++
			}
			if s.Witness != "" && s.Name == witnessName && !s.Leader && s.Answers == (answers == "yes") {
				witnesses++
			}
		}
		if votes != 3 || witnesses != 1 || len(list.Servers) != 3 {
			return fmt.Errorf("%+v", list.Servers)
		}
		return nil
	})
	if code, out := c.tryBarque(t, "server", "list", "--kubeconfig", c.Kubeconfig()); code != 0 || !strings.Contains(out, "witness") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// A witness is a process on the agent's machine, with a data directory of its own.
type witness struct {
	cmd   *exec.Cmd
	dir   string
	ended chan struct{}
}

// startWitness starts the witness: it joins by the token, or comes back without one.
func (c *cluster) startWitness(t *testing.T, token string) *witness {
	t.Helper()
	m := c.Machines[len(c.Machines)-1]
	w := &witness{dir: filepath.Join(c.dir, witnessName), ended: make(chan struct{})}
	args := []string{"machine", "server", "--witness", "--data-dir", w.dir, "--node-name", witnessName, "--advertise-address", m.IP.String()}
	if token != "" {
		args = append(args, "--join", "https://"+c.Machines[0].IP.String()+":6443", "--token", token)
	}
	log, err := os.OpenFile(filepath.Join(c.dir, witnessName+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = log.Close() }()
	w.cmd = exec.Command(program, args...)
	w.cmd.Stdout, w.cmd.Stderr = log, log
	w.cmd.Env = append(os.Environ(), "BARQUE_NETNS="+m.NetNS(), "BARQUE_HOSTNAME="+witnessName)
	if err := w.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = w.cmd.Wait(); close(w.ended) }()
	kill := sync.OnceFunc(func() { _ = w.cmd.Process.Kill(); <-w.ended })
	t.Cleanup(func() {
		kill()
		if text, err := os.ReadFile(filepath.Join(c.dir, witnessName+".log")); t.Failed() && err == nil {
			t.Logf("the witness:\n%s", text[max(0, len(text)-4000):])
		}
	})
	return w
}

// end ends the witness by a signal, or, by none, waits until it has ended.
func (w *witness) end(t *testing.T, s syscall.Signal) {
	t.Helper()
	if s != 0 {
		if err := w.cmd.Process.Signal(s); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, bound, "the witness ends", func() error {
		select {
		case <-w.ended:
			return nil
		default:
			return errors.New("it runs")
		}
	})
}

// resident is how much memory the witness has, in MiB, by a name of /proc/PID/status.
func (w *witness) resident(t *testing.T, name string) int {
	t.Helper()
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == name+":" {
			kib, err := strconv.Atoi(fields[1])
			if err != nil {
				t.Fatal(err)
			}
			return kib >> 10
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}
