package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"

	"barque.dev/internal/local"
	"barque.dev/internal/pki/expiry"
)

const (
	// certLife is how long the certificates live in these tests. They are renewed when a third of it is left.
	certLife = 45 * time.Second
	// generations is how many certificates each machine is seen with for each purpose.
	generations = 4
)

// Every certificate of every machine is replaced again and again while the cluster works: clients write, one watch goes on through all of
// it, and nobody is restarted. Then machines that were off for longer than their certificates lived come back: a server by the keys
// that it has, an agent by a token, and all servers at once.
func TestShortLivedCertificates(t *testing.T) {
	c := clusterWith(t, 1, "--certificate-lifetime="+certLife.String())
	servers, agent := c.Machines[:3], c.Machines[3]
	pids := map[string]int{}
	for _, m := range c.Machines {
		pids[m.Name] = m.PID()
	}
	c.fresh(t)
	c.apply(t, strings.NewReplacer("NODE", agent.Name, "IMAGE", busyboxImage).Replace(barePod))
	w := c.writeByKubeconfig(t, "certs")
	watched := c.leader(t)
	seen := c.followWrites(t, watched, "certs")

	c.watchRenewals(t)
	for _, m := range c.Machines {
		if m.PID() != pids[m.Name] {
			t.Errorf("%s was restarted", m.Name)
		}
	}
	w.goesOn(t)
	c.listCerts(t, agent)
	c.logsAndExec(t)

	// One of each is off for longer than its certificates live.
	off := []*local.Machine{c.others(watched)[0], agent}
	processes := c.off(t, off...)
	w.goesOn(t)
	token := strings.TrimSpace(c.barque(t, "token", "create", "--usage", "agent", "--kubeconfig", c.fresh(t)))
	processes[0].start(t)
	processes[1].start(t, "--token", token[strings.LastIndex(token, "bq1."):])
	c.members(t, servers...)
	c.allWell(t, off...)
	c.logsAndExec(t)
	w.goesOn(t)
	n := w.stop(t)
	seen(t, n)

	// All servers are. The agent, which goes on, is left with a certificate that has expired.
	for _, p := range c.off(t, servers...) {
		p.start(t)
	}
	c.allWell(t, c.Machines...)
	w = c.writeByKubeconfig(t, "certs-afterwards")
	w.goesOn(t)
	w.stop(t)
}

// fresh is the kubeconfig, as new as any server's.
func (c *cluster) fresh(t *testing.T) string {
	t.Helper()
	if _, err := c.Config(); err != nil {
		t.Fatal(err)
	}
	return c.Kubeconfig()
}

// certificates are those that the cluster tells of, by a client that reads the kubeconfig anew.
func (c *cluster) certificates(ctx context.Context, t *testing.T) (r expiry.Report, err error) {
	t.Helper()
	config, err := c.Config()
	if err != nil {
		return r, err
	}
	err = askJSON(ctx, clientFor(t, config).Discovery().RESTClient(), expiry.Path, &r)
	return r, err
}

// watchRenewals waits until every certificate of every machine was seen in several generations, of which none had
// expired.
func (c *cluster) watchRenewals(t *testing.T) {
	t.Helper()
	expected := map[string]bool{c.Machines[3].Name + "/node": true, c.Machines[3].Name + "/node-serving": true}
	for _, m := range c.Machines[:3] {
		for _, name := range []string{"apiserver", "apiserver-kubelet-client", "front-proxy-client", "etcd-peer", "server-client", "node", "node-serving", "kubeconfig"} {
			expected[m.Name+"/"+name] = true
		}
	}
	prints := map[string]map[string]bool{}
	eventually(t, 8*certLife, "all certificates were renewed", func() error {
		r, err := c.certificates(t.Context(), t)
		if err != nil {
			return err
		}
		now := time.Now()
		for _, cert := range r.Certificates {
			key := cert.Machine + "/" + cert.Name
			if cert.Kind == expiry.Authority || cert.Problem != "" {
				continue
			}
			// Of an agent's it is known what it showed last.
			if now.After(cert.NotAfter) && key != c.Machines[3].Name+"/node" {
				t.Errorf("%s expired at %v", key, cert.NotAfter)
			}
			if cert.NotAfter.Sub(cert.NotBefore) > 2*certLife {
				t.Errorf("%s is valid from %v to %v", key, cert.NotBefore, cert.NotAfter)
			}
			if prints[key] == nil {
				prints[key] = map[string]bool{}
			}
			prints[key][cert.Fingerprint] = true
		}
		for key := range expected {
			if n := len(prints[key]); n < generations {
				return fmt.Errorf("%s was seen in %d of %d generations; silent: %v", key, n, generations, r.Silent)
			}
		}
		return nil
	})
}

// listCerts asks by the command, from outside and on each kind of machine.
func (c *cluster) listCerts(t *testing.T, agent *local.Machine) {
	t.Helper()
	eventually(t, bound, "barque certs finds nothing to complain of", func() error {
		if code, out := c.tryBarque(t, "certs", "--kubeconfig", c.fresh(t)); code != 0 {
			return fmt.Errorf("exit code %d: %s", code, out)
		}
		return nil
	})
	c.refuses(t, 1, "certificates want attention", "certs", "--within", "1h", "--kubeconfig", c.fresh(t))
	code, out := c.tryBarque(t, "certs", "--data-dir", c.Machines[1].DataDir())
	if code != 0 || !strings.Contains(out, c.Machines[0].Name) || !strings.Contains(out, "etcd-peer") {
		t.Errorf("by the socket of a server: exit code %d", code)
	}
	if code, out := c.tryBarque(t, "certs", "--data-dir", agent.DataDir()); code != 0 || !strings.Contains(out, "node-serving") {
		t.Errorf("by the socket of an agent: exit code %d", code)
	}
}

// logsAndExec goes by API server and node: each checks the other's certificate.
func (c *cluster) logsAndExec(t *testing.T) {
	t.Helper()
	c.fresh(t)
	eventually(t, bound, "a pod on the agent runs a command", func() error {
		c.fresh(t)
		out, err := c.tryKubectl("", "exec", "bare", "--", "echo", "here")
		if err != nil || !strings.Contains(out, "here") {
			return fmt.Errorf("%w: %s", err, out)
		}
		return nil
	})
}

// off stops machines, and waits until all certificates that they have have expired.
func (c *cluster) off(t *testing.T, machines ...*local.Machine) (processes []invocation) {
	t.Helper()
	for _, m := range machines {
		processes = append(processes, invocationOf(t, m))
	}
	for _, m := range machines {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	for _, m := range machines {
		eventually(t, 2*certLife, "the certificates of "+m.Name+" have expired", func() error {
			code, out := c.quietly(t, "certs", "--data-dir", m.DataDir(), "-o", "json")
			if code != 1 {
				return fmt.Errorf("exit code %d", code)
			}
			return allExpired(out)
		})
	}
	return processes
}

// allExpired tells which certificate of a machine's has not expired.
func allExpired(printed string) error {
	var r expiry.Report
	if err := json.NewDecoder(strings.NewReader(printed[strings.Index(printed, "{"):])).Decode(&r); err != nil {
		return err
	}
	leaves := 0
	for _, cert := range r.Certificates {
		if cert.Kind == expiry.Authority {
			continue
		}
		leaves++
		if cert.Attention != "expired" {
			return fmt.Errorf("%s: %s", cert.Name, time.Until(cert.NotAfter))
		}
	}
	if leaves == 0 {
		return fmt.Errorf("there are none: %s", printed)
	}
	return nil
}

// allWell waits until servers are ready and nodes are, too.
func (c *cluster) allWell(t *testing.T, machines ...*local.Machine) {
	t.Helper()
	eventually(t, 2*bound, "the servers are ready", func() error { return c.ServersReady(t.Context()) })
	eventually(t, 2*bound, "their nodes are Ready", func() error {
		for _, m := range machines {
			node, err := c.client(t).CoreV1().Nodes().Get(t.Context(), m.Name, metav1.GetOptions{})
			if err != nil {
				return err
			}
			for _, cond := range node.Status.Conditions {
				if cond.Type == corev1.NodeReady && (cond.Status != corev1.ConditionTrue || time.Since(cond.LastHeartbeatTime.Time) > 10*time.Minute) {
					return fmt.Errorf("%s: %s", m.Name, cond.Message)
				}
			}
		}
		return nil
	})
}

// A kubeWriter counts up in an object as a script with kubectl would: each time it reads the kubeconfig anew.
type kubeWriter struct {
	stop  func(t *testing.T) int // returns the last number that was acknowledged
	acked func() int
}

func (c *cluster) writeByKubeconfig(t *testing.T, name string) *kubeWriter {
	t.Helper()
	eventually(t, bound, "there is "+name+" to write to", func() error {
		_, err := c.client(t).CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Data: map[string]string{"n": "0"}}, metav1.CreateOptions{})
		return err
	})
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	var mu sync.Mutex
	var acked, failed int
	var last error
	tick := time.NewTicker(100 * time.Millisecond)
	var done sync.WaitGroup
	done.Go(func() {
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			err := c.count(ctx, t, name, acked+1)
			mu.Lock()
			if err == nil {
				acked++
			} else if ctx.Err() == nil {
				failed, last = failed+1, err
			}
			mu.Unlock()
		}
	})
	end := sync.OnceFunc(func() { cancel(); done.Wait() })
	t.Cleanup(end)
	return &kubeWriter{
		stop: func(t *testing.T) int {
			end()
			t.Logf("%d writes, %d attempts failed, the last: %v", acked, failed, last)
			return acked
		},
		acked: func() int { mu.Lock(); defer mu.Unlock(); return acked },
	}
}

// count writes a number.
func (c *cluster) count(ctx context.Context, t *testing.T, name string, n int) error {
	config, err := c.Config()
	if err != nil {
		return err
	}
	config.Timeout = 5 * time.Second
	patch := fmt.Sprintf(`{"data":{"n":"%d"}}`, n)
	_, err = clientFor(t, config).CoreV1().ConfigMaps("default").Patch(ctx, name, "application/merge-patch+json", []byte(patch), metav1.PatchOptions{})
	return err
}

// goesOn waits until some more writes were acknowledged.
func (w *kubeWriter) goesOn(t *testing.T) {
	t.Helper()
	from := w.acked()
	eventually(t, bound, "writes by the kubeconfig go on", func() error {
		if n := w.acked() - from; n < 5 {
			return fmt.Errorf("%d since", n)
		}
		return nil
	})
}

// followWrites watches the object by one server. What it returns ends that, and checks that every number up to the given one
// came once, in order.
func (c *cluster) followWrites(t *testing.T, m *local.Machine, name string) func(t *testing.T, upTo int) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	t.Cleanup(cancel)
	config, err := c.MachineConfig(m)
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = 0
	hour := int64(3600)
	w, err := clientFor(t, config).CoreV1().ConfigMaps("default").Watch(ctx, metav1.ListOptions{
		FieldSelector: "metadata.name=" + name, TimeoutSeconds: &hour})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var numbers []int
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for event := range w.ResultChan() {
			cm, ok := event.Object.(*corev1.ConfigMap)
			if !ok || event.Type == watch.Deleted {
				continue
			}
			n, _ := strconv.Atoi(cm.Data["n"])
			mu.Lock()
			numbers = append(numbers, n)
			mu.Unlock()
		}
	}()
	return func(t *testing.T, upTo int) {
		t.Helper()
		eventually(t, bound, "the watch tells of the last write", func() error {
			select {
			case <-ended:
				return fmt.Errorf("the watch ended")
			default:
			}
			mu.Lock()
			defer mu.Unlock()
			if len(numbers) == 0 || numbers[len(numbers)-1] < upTo {
				return fmt.Errorf("it tells of %d of %d", len(numbers), upTo)
			}
			return nil
		})
		cancel()
		<-ended
		for i := 1; i < len(numbers); i++ {
			if numbers[i] != numbers[i-1]+1 {
				t.Fatalf("after %d the watch told of %d", numbers[i-1], numbers[i])
			}
		}
	}
}
