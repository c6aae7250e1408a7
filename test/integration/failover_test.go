package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/cluster/vip"
	"barque.dev/internal/local"
	"barque.dev/internal/runtime"
)

// bound is how long a step may take on a machine that is busy with other things; what it takes on
// an idle one the tests log.
const bound = 2 * time.Minute

// longestGap bounds the time without an acknowledged write at the virtual IP.
const longestGap = 5 * time.Second

const failoverManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, namespace: NS}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: IMAGE
        command: [sh, -c, "echo ok >/tmp/index.html; httpd -p 8080 -h /tmp; while :; do touch /life/$POD.$NODE.$UID; usleep 20000; done"]
        readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}
        env:
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        volumeMounts: [{name: life, mountPath: /life}]
      volumes: [{name: life, hostPath: {path: LIFE}}]
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: NS}
spec: {type: NodePort, selector: {app: web}, ports: [{port: 80, targetPort: 8080, nodePort: 31999}]}
---
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: db, namespace: NS}
spec:
  replicas: 3
  podManagementPolicy: Parallel
  serviceName: db
  selector: {matchLabels: {app: db}}
  template:
    metadata: {labels: {app: db}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: main
        image: IMAGE
        command: [sh, -c, "touch /life/start-$POD.$NODE.$UID; while :; do touch /life/$POD.$NODE.$UID; usleep 20000; done"]
        env:
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: NODE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
        - {name: UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        volumeMounts: [{name: life, mountPath: /life}]
      volumes: [{name: life, hostPath: {path: LIFE}}]
`

const staysManifest = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: stays, namespace: NS}
spec:
  selector: {matchLabels: {app: stays}}
  template:
    metadata: {labels: {app: stays}}
    spec:
      terminationGracePeriodSeconds: 0
      nodeSelector: {kubernetes.io/hostname: MACHINE}
      containers:
      - name: main
        image: IMAGE
        command: [sh, -c, "while :; do touch /life/$POD.$UID; usleep 20000; done"]
        env:
        - {name: POD, valueFrom: {fieldRef: {fieldPath: metadata.name}}}
        - {name: UID, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}
        volumeMounts: [{name: life, mountPath: /life}]
      volumes: [{name: life, hostPath: {path: LIFE}}]
`

// disaster is a cluster of its own that runs an application while it is broken.
type disaster struct {
	*cluster
	ns, life string
	doubled  func() (time.Duration, time.Time)
}

// TestFailover breaks a cluster in one way after the other; it is whole again after each.
func TestFailover(t *testing.T) {
	t.Parallel()
	c := ownCluster(t)
	d := &disaster{cluster: c, ns: "failover", life: filepath.Join(c.dir, "life")}
	if err := os.Mkdir(d.life, 0o777); err != nil {
		t.Fatal(err)
	}
	d.kubectl(t, "create", "namespace", d.ns)
	d.apply(t, strings.NewReplacer("NS", d.ns, "IMAGE", busyboxImage, "LIFE", d.life).Replace(failoverManifest))
	d.allReady(t)
	d.doubled = d.watchVIP(t)
	for _, step := range []struct {
		name string
		run  func(*testing.T)
	}{
		{"leader's process is killed", d.processKilled},
		{"leader freezes and wakes", d.leaderFreezes},
		{"follower's machine is lost", func(t *testing.T) { d.machineLost(t, d.others(d.leader(t))[0]) }},
		{"leader's machine is lost", func(t *testing.T) { d.machineLost(t, d.leader(t)) }},
		{"a machine is cut off", d.cutOff},
		{"quorum is lost", d.quorumLost},
		{"all servers are killed", d.allKilled},
		{"a server loses its data", d.dataLost},
	} {
		if !t.Run(step.name, step.run) {
			break
		}
	}
	if two, at := d.doubled(); two > vip.Good {
		t.Errorf("a machine claimed the virtual IP for %v after another one had, at %s", two, at.Format(time.StampMilli))
	} else {
		t.Logf("a machine claimed the virtual IP for %v at most after another one had", two)
	}
}

// pods are the application's, by name; those that are being deleted are left out.
func (d *disaster) pods(ctx context.Context, client kubernetes.Interface, app string) (map[string]*corev1.Pod, error) {
	list, err := client.CoreV1().Pods(d.ns).List(ctx, metav1.ListOptions{LabelSelector: "app=" + app})
	if err != nil {
		return nil, err
	}
	pods := map[string]*corev1.Pod{}
	for i := range list.Items {
		if p := &list.Items[i]; p.DeletionTimestamp == nil {
			pods[p.Name] = p
		}
	}
	return pods, nil
}

// ready tells whether three pods are ready on machines other than without.
func (d *disaster) ready(t *testing.T, client kubernetes.Interface, app, without string) error {
	pods, err := d.pods(t.Context(), client, app)
	if err != nil {
		return err
	}
	n := 0
	for _, p := range pods {
		if podReady(p) == nil && p.Spec.NodeName != without {
			n++
		}
	}
	if n != 3 || len(pods) != 3 {
		return fmt.Errorf("%d of %d pods of %s are ready", n, len(pods), app)
	}
	return nil
}

func (d *disaster) allReady(t *testing.T) {
	t.Helper()
	client := d.client(t)
	eventually(t, bound, "the application is ready", func() error {
		return errors.Join(d.ready(t, client, "web", ""), d.ready(t, client, "db", ""))
	})
	// Before that an agent does not count on a server that came back, and the next that is lost
	// would be the second one missing.
	eventually(t, bound, "every server is known", func() error {
		known, err := client.DiscoveryV1().EndpointSlices("default").Get(t.Context(), "kubernetes", metav1.GetOptions{})
		if err == nil && len(known.Endpoints) != len(d.Machines) {
			err = fmt.Errorf("%d of %d", len(known.Endpoints), len(d.Machines))
		}
		return err
	})
}

// containers are the IDs of the application's containers, by pod, with how often they were restarted.
func (d *disaster) containers(t *testing.T) map[string]string {
	t.Helper()
	ids := map[string]string{}
	for _, app := range []string{"web", "db"} {
		pods, err := d.pods(t.Context(), d.client(t), app)
		if err != nil {
			t.Fatal(err)
		}
		for name, p := range pods {
			if len(p.Status.ContainerStatuses) == 1 {
				ids[name] = fmt.Sprint(p.Spec.NodeName, p.Status.ContainerStatuses[0].ContainerID, p.Status.ContainerStatuses[0].RestartCount)
			}
		}
	}
	return ids
}

func (d *disaster) sameContainers(t *testing.T, before map[string]string) {
	t.Helper()
	after := d.containers(t)
	for name, id := range before {
		if after[name] != id {
			t.Errorf("pod %s was %s and is %s", name, id, after[name])
		}
	}
}

// alive checks that every pod of the application leaves signs of life, wherever it is.
func (d *disaster) alive(t *testing.T, pods map[string]string) {
	t.Helper()
	since := time.Now()
	for name := range pods {
		eventually(t, bound, "pod "+name+" runs", func() error {
			for _, at := range lives(d.life, name) {
				if at.After(since) {
					return nil
				}
			}
			return errors.New("no sign of life")
		})
	}
}

func (d *disaster) healed(t *testing.T) {
	t.Helper()
	if err := d.heal(); err != nil {
		t.Fatal(err)
	}
	d.allReady(t)
}

// schedulerWorks shows that scheduler, controllers and agents work: new pods come up.
func (d *disaster) schedulerWorks(t *testing.T, name string) {
	t.Helper()
	d.kubectl(t, "-n", d.ns, "create", "deployment", name, "--image="+busyboxImage, "--replicas=2", "--", "sleep", "1000000")
	d.kubectl(t, "-n", d.ns, "rollout", "status", "deployment/"+name, "--timeout=60s")
	d.kubectl(t, "-n", d.ns, "delete", "deployment", name, "--wait=false")
}

func (d *disaster) processKilled(t *testing.T) {
	before := d.containers(t)
	w := d.write(t, d.ns, "by-writer-killed")
	w.goesOn(t)
	old := d.leader(t)
	killed := time.Now()
	if err := old.Kill(); err != nil {
		t.Fatal(err)
	}
	w.goesOn(t)
	d.kubectl(t, "get", "nodes")
	eventually(t, bound, "another server leads", func() error {
		if name, err := d.holder(t.Context(), d.client(t)); err != nil || name == old.Name {
			return fmt.Errorf("%s leads: %w", name, err)
		}
		return nil
	})
	t.Logf("the leader's lease moved after %v", time.Since(killed).Round(time.Millisecond))
	d.schedulerWorks(t, "after-kill")
	d.alive(t, before)
	w.well(t, "kill -9 of the leader", longestGap)
	d.healed(t)
	d.sameContainers(t, before)
}

func (d *disaster) leaderFreezes(t *testing.T) {
	before := d.containers(t)
	w := d.write(t, d.ns, "by-writer-frozen")
	w.goesOn(t)
	old := d.leader(t)
	// An agent that wakes finds that it was without the others for longer than its bound: what
	// must not run twice is stopped on its machine, and starts anew.
	maps.DeleteFunc(before, func(pod, where string) bool {
		return strings.HasPrefix(pod, "db-") && strings.HasPrefix(where, old.Name)
	})
	signal(t, old, syscall.SIGSTOP)
	frozen := time.Now()
	w.goesOn(t)
	d.kubectl(t, "-n", d.ns, "create", "deployment", "frozen", "--image="+busyboxImage, "--replicas=4", "--", "sleep", "1000000")
	client := d.client(t)
	placed := map[string]string{}
	eventually(t, bound, "pods are placed by another leader", func() error {
		pods, err := d.pods(t.Context(), client, "frozen")
		if err != nil {
			return err
		}
		for name, p := range pods {
			if p.Spec.NodeName != "" {
				placed[name] = p.Spec.NodeName
			}
		}
		if len(placed) < 4 || time.Since(frozen) < 5*time.Second {
			return fmt.Errorf("%d placed", len(placed))
		}
		return nil
	})
	signal(t, old, syscall.SIGCONT)
	mine := d.clientOf(t, old)
	eventually(t, bound, "the server that woke knows who leads", func() error {
		if name, err := d.holder(t.Context(), mine); err != nil || name == old.Name {
			return fmt.Errorf("%s leads: %w", name, err)
		}
		return nil
	})
	w.goesOn(t)
	w.well(t, "SIGSTOP of the leader", longestGap)
	d.kubectl(t, "-n", d.ns, "rollout", "status", "deployment/frozen", "--timeout=60s")
	pods, err := d.pods(t.Context(), client, "frozen")
	if err != nil {
		t.Fatal(err)
	}
	for name, p := range pods {
		if placed[name] != p.Spec.NodeName || len(pods) != 4 {
			t.Errorf("pod %s was placed on %q and is on %q, one of %d", name, placed[name], p.Spec.NodeName, len(pods))
		}
	}
	d.kubectl(t, "-n", d.ns, "delete", "deployment", "frozen", "--wait=false")
	d.healed(t)
	d.sameContainers(t, before)
}

func (d *disaster) machineLost(t *testing.T, m *local.Machine) {
	longest := visit(t, "http://"+d.VIP.String()+":31999/")
	w := d.write(t, d.ns, "by-writer-lost-"+m.Name)
	w.goesOn(t)
	old := d.uidsOn(t, m)
	lost := time.Now()
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.goesOn(t)
	d.replaced(t, m, lost)
	d.isLost(t, m, true)
	w.well(t, "loss of "+m.Name, longestGap)
	if gap := longest(); gap > 2*longestGap {
		t.Errorf("the application did not answer at the virtual IP for %v", gap)
	} else {
		t.Logf("the application did not answer at the virtual IP for %v", gap.Round(time.Millisecond))
	}
	d.kubectl(t, "-n", d.ns, "create", "configmap", "while-away-"+m.Name)
	d.healed(t)
	d.isLost(t, m, false)
	d.caughtUp(t, m, "while-away-"+m.Name)
	d.gone(t, m, old)
}

// replaced waits until the application is whole without the machine.
func (d *disaster) replaced(t *testing.T, m *local.Machine, since time.Time) {
	t.Helper()
	client := d.client(t)
	for _, app := range []string{"web", "db"} {
		eventually(t, bound, "the lost pods of "+app+" run elsewhere", func() error { return d.ready(t, client, app, m.Name) })
		t.Logf("%s is whole without %s after %v", app, m.Name, time.Since(since).Round(10*time.Millisecond))
	}
}

// isLost waits until the node is called lost, or is back and ready.
func (d *disaster) isLost(t *testing.T, m *local.Machine, want bool) {
	t.Helper()
	client := d.client(t)
	eventually(t, bound, fmt.Sprintf("node %s is lost: %t", m.Name, want), func() error {
		node, err := client.CoreV1().Nodes().Get(t.Context(), m.Name, metav1.GetOptions{})
		if err != nil {
			return err
		}
		tainted, ready := false, false
		for _, taint := range node.Spec.Taints {
			tainted = tainted || taint.Key == corev1.TaintNodeOutOfService || taint.Key == corev1.TaintNodeUnreachable
		}
		for _, cond := range node.Status.Conditions {
			ready = ready || cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue
		}
		if tainted != want || ready == want {
			return fmt.Errorf("ready %t, taints %v", ready, node.Spec.Taints)
		}
		return nil
	})
}

// caughtUp checks that the machine's own server, asked for a consistent read, knows an object.
func (d *disaster) caughtUp(t *testing.T, m *local.Machine, name string) {
	t.Helper()
	client := d.clientOf(t, m)
	eventually(t, bound, m.Name+" catches up", func() error {
		_, err := client.CoreV1().ConfigMaps(d.ns).Get(t.Context(), name, metav1.GetOptions{})
		return err
	})
}

func (d *disaster) uidsOn(t *testing.T, m *local.Machine) map[string]bool {
	t.Helper()
	list, err := d.client(t).CoreV1().Pods(d.ns).List(t.Context(), metav1.ListOptions{FieldSelector: "spec.nodeName=" + m.Name})
	if err != nil {
		t.Fatal(err)
	}
	uids := map[string]bool{}
	for i := range list.Items {
		uids[string(list.Items[i].UID)] = true
	}
	return uids
}

// gone waits until nothing is left of pods on a machine.
func (d *disaster) gone(t *testing.T, m *local.Machine, uids map[string]bool) {
	t.Helper()
	socket, err := m.ContainerdSocket()
	if err != nil {
		t.Fatal(err)
	}
	cri, err := runtime.Dial(socket, runtime.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cri.Close() }()
	eventually(t, bound, "the containers of replaced pods are removed from "+m.Name, func() error {
		list, err := cri.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return err
		}
		for _, s := range list.GetItems() {
			if uids[s.GetMetadata().GetUid()] {
				return fmt.Errorf("%s is still there: %s", s.GetMetadata().GetName(), s.GetState())
			}
		}
		return nil
	})
}

// cutOff pulls the cable of the machine that runs db-0.
func (d *disaster) cutOff(t *testing.T) {
	pods, err := d.pods(t.Context(), d.client(t), "db")
	if err != nil {
		t.Fatal(err)
	}
	var m *local.Machine
	for _, m = range d.Machines {
		if m.Name == pods["db-0"].Spec.NodeName {
			break
		}
	}
	// A pod of a Deployment that can be nowhere else.
	d.apply(t, strings.NewReplacer("NS", d.ns, "IMAGE", busyboxImage, "LIFE", d.life, "MACHINE", m.Name).Replace(staysManifest))
	d.kubectl(t, "-n", d.ns, "rollout", "status", "deployment/stays", "--timeout=60s")
	stays, err := d.pods(t.Context(), d.client(t), "stays")
	if err != nil {
		t.Fatal(err)
	}
	old := d.uidsOn(t, m)
	cut := time.Now()
	d.plugged(t, m, false)
	d.replaced(t, m, cut)
	// What must not run twice stopped on the cut machine before it started elsewhere.
	moved := 0
	for i := range 3 {
		moved += d.neverTwice(t, fmt.Sprintf("db-%d", i), m, cut)
	}
	if moved == 0 {
		t.Error("no pod of the StatefulSet moved")
	}
	for name := range stays {
		d.alive(t, map[string]string{name: ""})
	}
	d.plugged(t, m, true)
	d.isLost(t, m, false)
	d.allReady(t)
	d.gone(t, m, old)
	d.kubectl(t, "-n", d.ns, "delete", "deployment", "stays", "--wait=false")
}

// neverTwice checks the signs of life of a pod that moved away from m, and returns 1 if it did.
func (d *disaster) neverTwice(t *testing.T, pod string, m *local.Machine, cut time.Time) int {
	t.Helper()
	now, err := d.client(t).CoreV1().Pods(d.ns).Get(t.Context(), pod, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var last time.Time
	for where, at := range lives(d.life, pod) {
		if strings.HasPrefix(where, m.Name+".") && at.After(cut) && at.After(last) {
			last = at
		}
	}
	if last.IsZero() {
		return 0
	}
	// It may be running, and so ready, before its first command is done.
	var began time.Time
	eventually(t, patience, pod+"'s sign of its start on "+now.Spec.NodeName, func() error {
		at, ok := lives(d.life, "start-"+pod)[now.Spec.NodeName+"."+string(now.UID)]
		if !ok {
			return errors.New("there is none")
		}
		began = at
		return nil
	})
	t.Logf("%s ran on %s until %v after the cut, and from %v on %s", pod, m.Name,
		last.Sub(cut).Round(time.Millisecond), began.Sub(cut).Round(time.Millisecond), now.Spec.NodeName)
	if now.Spec.NodeName == m.Name || !began.After(last) {
		t.Errorf("%s ran twice: on %s until %v, and on %s from %v", pod, m.Name, last, now.Spec.NodeName, began)
	}
	return 1
}

func (d *disaster) quorumLost(t *testing.T) {
	m := d.Machines[0]
	pid := m.PID()
	d.kubectl(t, "-n", d.ns, "create", "configmap", "before-loss")
	d.caughtUp(t, m, "before-loss")
	config, err := d.MachineConfig(m)
	if err != nil {
		t.Fatal(err)
	}
	config.Timeout = 10 * time.Second
	client := clientFor(t, config)
	maps := client.CoreV1().ConfigMaps(d.ns)
	for _, o := range d.others(m) {
		if err := o.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	// Those that the loss hits under way are told to ask again.
	request := func(verb string) *rest.Request {
		return client.CoreV1().RESTClient().Verb(verb).MaxRetries(0).Namespace(d.ns).Resource("configmaps")
	}
	refused := func(what string, err error) error {
		if !apierrors.IsServiceUnavailable(err) {
			return fmt.Errorf("%s: %v", what, err)
		}
		return nil
	}
	eventually(t, bound, "without quorum the server refuses", func() error {
		get := request("GET").Name("before-loss").Do(t.Context()).Error()
		list := request("GET").Do(t.Context()).Error()
		create := request("POST").Body(&corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "x-"}}).Do(t.Context()).Error()
		ready, err := client.Discovery().RESTClient().Get().MaxRetries(0).AbsPath("/readyz").DoRaw(t.Context())
		if err == nil {
			err = fmt.Errorf("/readyz says %s", ready)
		} else {
			err = nil
		}
		return errors.Join(refused("get", get), refused("list", list), refused("create", create), err)
	})
	began := time.Now()
	if err := refused("get by a patient client", func() error {
		_, err := maps.Get(t.Context(), "before-loss", metav1.GetOptions{})
		return err
	}()); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("a client learns after %v that there is no quorum", took)
	}
	if _, err := maps.Get(t.Context(), "before-loss", metav1.GetOptions{ResourceVersion: "0"}); err != nil {
		t.Errorf("a read that need not be consistent: %v", err)
	}
	d.healed(t)
	if m.PID() != pid {
		t.Errorf("%s was restarted", m.Name)
	}
	d.caughtUp(t, m, "before-loss")
}

func (d *disaster) allKilled(t *testing.T) {
	before := d.containers(t)
	d.kubectl(t, "-n", d.ns, "create", "configmap", "before-all")
	for _, m := range d.Machines {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	d.healed(t)
	for _, m := range d.Machines {
		d.caughtUp(t, m, "before-all")
	}
	d.alive(t, before)
}

func (d *disaster) dataLost(t *testing.T) {
	m := d.others(d.leader(t))[0]
	if err := m.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(m.DataDir()); err != nil {
		t.Fatal(err)
	}
	if err := d.heal(); err != nil {
		t.Fatal(err)
	}
	d.isLost(t, m, false)
	d.caughtUp(t, m, "before-all")
	if err := d.importImages(); err != nil {
		t.Fatal(err)
	}
	d.allReady(t)
}
