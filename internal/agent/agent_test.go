package agent_test

import (
	"context"
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	certificatesv1 "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/client-go/kubernetes/fake"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent"
	"barque.dev/internal/agent/cri/critest"
	"barque.dev/internal/agent/live"
	runtimecgroup "barque.dev/internal/runtime/cgroup"
	"barque.dev/internal/testkit"
	"barque.dev/internal/testkit/fakeclient"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*loggingT).flushDaemon"),
		goleak.IgnoreTopFunction("k8s.io/klog/v2.(*flushDaemon).run.func1"))
}

const (
	nodeName = "node-1"
	image    = "docker.io/library/web:1"
)

// cluster is an agent with a runtime and an API server in memory.
type cluster struct {
	*testing.T
	client  *fake.Clientset
	runtime *critest.Runtime
	root    string
	config  agent.Config
}

type everybody struct{}

func (everybody) AuthenticateRequest(*http.Request) (*authenticator.Response, bool, error) {
	return &authenticator.Response{User: &user.DefaultInfo{Name: "test"}}, true, nil
}

var _ authorizer.Authorizer = authorizerfactory.NewAlwaysAllowAuthorizer()

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{T: t, client: fakeclient.Clientset(), runtime: critest.New(image), root: t.TempDir()}
	c.config = agent.Config{
		NodeName: nodeName, NodeIPs: []string{"192.0.2.7"}, Client: c.client, Runtime: c.runtime, Images: c.runtime,
		RootDir: c.root, CgroupRoot: fmt.Sprintf("/barque-test-%d", os.Getpid()),
		ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local",
		TLS: &tls.Config{}, Authenticator: everybody{}, Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer(),
		Log: slog.New(slog.NewTextHandler(t.Output(), nil)),
	}
	t.Cleanup(func() { removeCgroups(t, c.config.CgroupRoot) })
	return c
}

func removeCgroups(t *testing.T, name string) {
	if err := runtimecgroup.Remove(context.Background(), name); err != nil {
		t.Error(err)
	}
}

// start runs the agent until stop is called or the test ends.
func (c *cluster) start() (stop func()) {
	c.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		c.Fatal(err)
	}
	c.config.Listener = listener
	a, err := agent.New(c.config)
	if err != nil {
		c.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.Run(ctx, func() { close(ready) }) }()
	var stopped atomic.Bool
	stop = func() {
		if stopped.Swap(true) {
			return
		}
		cancel()
		if err := <-done; err != nil {
			c.Errorf("agent: %v", err)
		}
	}
	c.Cleanup(stop)
	select {
	case <-ready:
	case err := <-done:
		c.Fatalf("agent ended: %v", err)
	case <-time.After(20 * time.Second):
		c.Fatal("agent is not ready")
	}
	return stop
}

// eventually waits until the condition holds.
func (c *cluster) eventually(what string, f func() bool) {
	c.Helper()
	if err := testkit.Poll(15*time.Second, testkit.Holds(f)); err != nil {
		for _, p := range c.pods() {
			c.Logf("pod %s: %+v", p.Name, p.Status)
		}
		c.Logf("runtime: %v", c.runtime.Calls())
		c.Fatalf("not in time: %s", what)
	}
}

func (c *cluster) pods() []corev1.Pod {
	list, err := c.client.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
	if err != nil {
		c.Fatal(err)
	}
	return list.Items
}

func (c *cluster) pod(name string) *corev1.Pod {
	p, err := c.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		c.Fatal(err)
	}
	return p
}

func (c *cluster) create(p *corev1.Pod) *corev1.Pod {
	c.Helper()
	p, err := c.client.CoreV1().Pods(p.Namespace).Create(context.Background(), p, metav1.CreateOptions{})
	if err != nil {
		c.Fatal(err)
	}
	return p
}

// delete asks for the pod's end as the API server does: by setting its deletion time.
func (c *cluster) delete(name string, grace int64) {
	c.Helper()
	p := c.pod(name)
	at := metav1.NewTime(time.Now().Add(time.Duration(grace) * time.Second))
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &grace
	if _, err := c.client.CoreV1().Pods("default").Update(context.Background(), p, metav1.UpdateOptions{}); err != nil {
		c.Fatal(err)
	}
}

func newPod(name string, names ...string) *corev1.Pod {
	grace := int64(30)
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name), CreationTimestamp: metav1.Now()},
		Spec:       corev1.PodSpec{NodeName: nodeName, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSClusterFirst},
	}
	for _, n := range names {
		p.Spec.Containers = append(p.Spec.Containers, corev1.Container{
			Name: n, Image: image, ImagePullPolicy: corev1.PullIfNotPresent, TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
		})
	}
	return p
}

func condition(p *corev1.Pod, kind corev1.PodConditionType) corev1.ConditionStatus {
	for _, c := range p.Status.Conditions {
		if c.Type == kind {
			return c.Status
		}
	}
	return ""
}

func (c *cluster) isReady(name string) func() bool {
	return func() bool {
		p := c.pod(name)
		return p != nil && p.Status.Phase == corev1.PodRunning && condition(p, corev1.PodReady) == corev1.ConditionTrue
	}
}

func TestNodeIsRegistered(t *testing.T) {
	c := newCluster(t)
	c.config.Taints = []corev1.Taint{{Key: "example.com/new", Effect: corev1.TaintEffectNoSchedule}}
	c.config.Labels = map[string]string{"role": "web"}
	c.start()
	n, err := c.client.CoreV1().Nodes().Get(t.Context(), nodeName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if n.Labels[corev1.LabelHostname] != nodeName || n.Labels["role"] != "web" || len(n.Spec.Taints) != 1 {
		t.Errorf("labels %v, taints %v", n.Labels, n.Spec.Taints)
	}
	if n.Status.NodeInfo.KubeletVersion != agent.DefaultVersion || n.Status.NodeInfo.ContainerRuntimeVersion != "fake://1.0" {
		t.Errorf("versions: %+v", n.Status.NodeInfo)
	}
	if n.Status.Capacity.Pods().Value() != agent.DefaultMaxPods || n.Status.Capacity.Cpu().IsZero() || n.Status.Allocatable.Memory().Cmp(*n.Status.Capacity.Memory()) >= 0 {
		t.Errorf("capacity %v, allocatable %v", n.Status.Capacity, n.Status.Allocatable)
	}
	for _, cond := range n.Status.Conditions {
		if want := cond.Type == corev1.NodeReady; (cond.Status == corev1.ConditionTrue) != want && cond.Type != corev1.NodeDiskPressure {
			t.Errorf("condition %s is %s: %s", cond.Type, cond.Status, cond.Message)
		}
	}
	c.eventually("lease", func() bool {
		l, err := c.client.CoordinationV1().Leases(corev1.NamespaceNodeLease).Get(t.Context(), nodeName, metav1.GetOptions{})
		return err == nil && l.Spec.HolderIdentity != nil && *l.Spec.HolderIdentity == nodeName && *l.Spec.LeaseDurationSeconds == 40
	})
}

func TestPodRunsAndEnds(t *testing.T) {
	c := newCluster(t)
	c.start()
	p := newPod("web", "a", "b")
	p.Spec.Containers[0].Env = []corev1.EnvVar{
		{Name: "IP", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "status.podIP"}}},
		{Name: "GREETING", Value: "at $(IP)"},
	}
	p.Spec.Containers[0].Command = []string{"serve", "$(GREETING)"}
	c.create(p)
	c.eventually("ready", c.isReady("web"))
	got := c.pod("web")
	if got.Status.PodIP == "" || got.Status.HostIP != "192.0.2.7" || got.Status.QOSClass != corev1.PodQOSBestEffort || got.Status.StartTime == nil {
		t.Errorf("status: %+v", got.Status)
	}
	for _, kind := range []corev1.PodConditionType{corev1.PodScheduled, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReadyToStartContainers} {
		if condition(got, kind) != corev1.ConditionTrue {
			t.Errorf("condition %s is %q", kind, condition(got, kind))
		}
	}
	if s := got.Status.ContainerStatuses; len(s) != 2 || s[0].Name != "a" || !s[0].Ready || s[0].State.Running == nil || !strings.HasPrefix(s[0].ContainerID, "fake://") {
		t.Errorf("container statuses: %+v", s)
	}
	if cmd := c.runtime.Config("a").GetCommand(); !slices.Equal(cmd, []string{"serve", "at " + got.Status.PodIP}) {
		t.Errorf("command %q", cmd)
	}
	calls := strings.Join(c.runtime.Calls(), ",")
	if !strings.Contains(calls, "RunPodSandbox web,CreateContainer a,StartContainer a,CreateContainer b,StartContainer b") {
		t.Errorf("order of calls: %s", calls)
	}
	if _, err := os.Stat(filepath.Join(c.root, "pods", "uid-web", "etc-hosts")); err != nil {
		t.Error(err)
	}

	c.delete("web", 30)
	c.eventually("gone", func() bool { return c.pod("web") == nil })
	if all, _ := c.runtime.Sandboxes(); all != 0 {
		t.Errorf("%d sandboxes are left", all)
	}
	if _, err := os.Stat(filepath.Join(c.root, "pods", "uid-web")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the pod's folder is still there: %v", err)
	}
}

func TestRestartWithBackoff(t *testing.T) {
	c := newCluster(t)
	c.start()
	c.create(newPod("crash", "a"))
	c.eventually("running", c.isReady("crash"))
	c.runtime.Exit("a", 3)
	c.eventually("first restart at once", func() bool {
		s := c.pod("crash").Status.ContainerStatuses
		return len(s) == 1 && s[0].RestartCount == 1 && s[0].State.Running != nil && s[0].LastTerminationState.Terminated != nil && s[0].LastTerminationState.Terminated.ExitCode == 3
	})
	c.runtime.Exit("a", 4)
	c.eventually("back-off", func() bool {
		s := c.pod("crash").Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CrashLoopBackOff" && strings.HasPrefix(s[0].State.Waiting.Message, "back-off 10s restarting failed container=a pod=crash_default(uid-crash)")
	})
	if c.pod("crash").Status.Phase != corev1.PodRunning {
		t.Errorf("phase %s", c.pod("crash").Status.Phase)
	}
}

func TestAgentRestartLeavesContainersAlone(t *testing.T) {
	c := newCluster(t)
	stop := c.start()
	c.create(newPod("web", "a"))
	c.eventually("ready", c.isReady("web"))
	id := c.pod("web").Status.ContainerStatuses[0].ContainerID
	stop()
	if got := c.runtime.Running(); !slices.Equal(got, []string{"a"}) {
		t.Fatalf("after the agent's end %v run", got)
	}
	before := len(c.runtime.Calls())
	c.start()
	c.create(newPod("other", "b"))
	c.eventually("other pod", c.isReady("other"))
	for _, call := range c.runtime.Calls()[before:] {
		if strings.HasSuffix(call, " a") || strings.Contains(call, " a ") || strings.HasSuffix(call, " web") {
			t.Errorf("call %q about a pod that was running", call)
		}
	}
	if got := c.pod("web"); got.Status.ContainerStatuses[0].ContainerID != id || got.Status.ContainerStatuses[0].RestartCount != 0 {
		t.Errorf("status after the restart: %+v", got.Status.ContainerStatuses[0])
	}
}

func TestOrphansAreEnded(t *testing.T) {
	c := newCluster(t)
	stop := c.start()
	c.create(newPod("web", "a"))
	c.eventually("ready", c.isReady("web"))
	stop()
	if err := c.client.CoreV1().Pods("default").Delete(t.Context(), "web", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	c.start()
	c.eventually("sandbox is gone", func() bool { all, _ := c.runtime.Sandboxes(); return all == 0 })
	c.eventually("folder is gone", func() bool {
		_, err := os.Stat(filepath.Join(c.root, "pods", "uid-web"))
		return errors.Is(err, os.ErrNotExist)
	})
}

func TestInitContainersAndSidecars(t *testing.T) {
	c := newCluster(t)
	c.start()
	p := newPod("app", "main")
	always := corev1.ContainerRestartPolicyAlways
	base := p.Spec.Containers[0]
	first, side, second := base, base, base
	first.Name, side.Name, second.Name = "first", "side", "second"
	side.RestartPolicy = &always
	p.Spec.InitContainers = []corev1.Container{first, side, second}
	p.Spec.RestartPolicy = corev1.RestartPolicyNever
	c.create(p)
	c.eventually("first init container", func() bool { return slices.Equal(c.runtime.Running(), []string{"first"}) })
	c.eventually("pending", func() bool { return c.pod("app").Status.Phase == corev1.PodPending })
	c.runtime.Exit("first", 0)
	c.eventually("sidecar and second", func() bool { return slices.Equal(c.runtime.Running(), []string{"second", "side"}) })
	c.runtime.Exit("second", 0)
	c.eventually("ready", c.isReady("app"))
	c.runtime.Exit("main", 0)
	c.eventually("succeeded", func() bool { return c.pod("app").Status.Phase == corev1.PodSucceeded })
	if r := c.runtime.Running(); len(r) != 0 {
		t.Errorf("still running: %v", r)
	}
	c.eventually("sandbox is stopped", func() bool { _, ready := c.runtime.Sandboxes(); return ready == 0 })
}

func TestMissingConfigMapThenThere(t *testing.T) {
	c := newCluster(t)
	c.start()
	p := newPod("web", "a")
	p.Spec.Containers[0].EnvFrom = []corev1.EnvFromSource{{ConfigMapRef: &corev1.ConfigMapEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}
	c.create(p)
	c.eventually("waits for the config map", func() bool {
		s := c.pod("web").Status.ContainerStatuses
		return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "CreateContainerConfigError"
	})
	if _, err := c.client.CoreV1().ConfigMaps("default").Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "default"}, Data: map[string]string{"COLOR": "blue"}}, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("ready", c.isReady("web"))
	found := false
	for _, e := range c.runtime.Config("a").GetEnvs() {
		found = found || e.GetKey() == "COLOR" && string(e.GetValue()) == "blue"
	}
	if !found {
		t.Error("the variable is missing")
	}
}

func TestConfigMapVolumeFollowsChanges(t *testing.T) {
	c := newCluster(t)
	cm := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "default", ResourceVersion: "1"}, Data: map[string]string{"color": "blue"}}
	if _, err := c.client.CoreV1().ConfigMaps("default").Create(t.Context(), cm, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.start()
	p := newPod("web", "a")
	p.Spec.Volumes = []corev1.Volume{{Name: "v", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "v", MountPath: "/etc/settings"}}
	c.create(p)
	c.eventually("ready", c.isReady("web"))
	file := filepath.Join(c.root, "pods", "uid-web", "volumes", "kubernetes.io~configmap", "v", "color")
	if data, err := os.ReadFile(file); err != nil || string(data) != "blue" {
		t.Fatalf("%q, %v", data, err)
	}
	cm = cm.DeepCopy()
	cm.ResourceVersion, cm.Data["color"] = "2", "green"
	if _, err := c.client.CoreV1().ConfigMaps("default").Update(t.Context(), cm, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("new contents", func() bool { data, err := os.ReadFile(file); return err == nil && string(data) == "green" })
}

// TestImageVolume: what a pod mounts as an image is pulled for the pod and handed to the runtime, which
// mounts it; a container whose volume cannot be had waits as for its own image.
func TestImageVolume(t *testing.T) {
	c := newCluster(t)
	c.runtime.Fail("PullImage", errors.New("registry is down"))
	c.start()
	p := newPod("web", "a", "b")
	p.Spec.Volumes = []corev1.Volume{{Name: "files", VolumeSource: corev1.VolumeSource{Image: &corev1.ImageVolumeSource{Reference: "example.com/files:1", PullPolicy: corev1.PullIfNotPresent}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "files", MountPath: "/all"}, {Name: "files", MountPath: "/part", SubPath: "docs/one"}}
	c.create(p)
	c.eventually("the one that mounts it waits, the other runs", func() bool {
		s := c.pod("web").Status.ContainerStatuses
		return len(s) == 2 && s[1].State.Running != nil && s[0].State.Waiting != nil && strings.HasPrefix(s[0].State.Waiting.Reason, "ErrImagePull")
	})
	c.eventually("back-off", func() bool {
		s := c.pod("web").Status.ContainerStatuses
		return s[0].State.Waiting != nil && s[0].State.Waiting.Reason == "ImagePullBackOff" && strings.Contains(s[0].State.Waiting.Message, "example.com/files:1")
	})
	c.runtime.Fail("PullImage", nil)
	p = p.DeepCopy()
	p.Name, p.UID = "more", "uid-more"
	p.Spec.Containers[0].Name = "c"
	c.create(p)
	c.eventually("ready", c.isReady("more"))
	mounts := c.runtime.Config("c").GetMounts()
	find := func(path string) *runtimeapi.Mount {
		for _, m := range mounts {
			if m.GetContainerPath() == path {
				return m
			}
		}
		t.Fatalf("nothing is mounted at %s: %v", path, mounts)
		return nil
	}
	for path, sub := range map[string]string{"/all": "", "/part": "docs/one"} {
		m := find(path)
		if m.GetImage().GetImage() != "sha256:example.com/files:1" || m.GetImageSubPath() != sub || !m.GetReadonly() || m.GetHostPath() != "" {
			t.Errorf("%s: %v", path, m)
		}
	}
}

func TestImageTroubles(t *testing.T) {
	c := newCluster(t)
	c.runtime.Fail("PullImage", errors.New("registry is down"))
	c.start()
	bad := newPod("bad", "a")
	bad.Spec.Containers[0].Image = "UPPER//case"
	never := newPod("never", "b")
	never.Spec.Containers[0].Image, never.Spec.Containers[0].ImagePullPolicy = "example.com/none:1", corev1.PullNever
	pull := newPod("pull", "c")
	pull.Spec.Containers[0].Image = "example.com/some:1"
	for _, p := range []*corev1.Pod{bad, never, pull} {
		c.create(p)
	}
	for name, want := range map[string]string{"bad": "InvalidImageName", "never": "ErrImageNeverPull", "pull": "ImagePullBackOff"} {
		c.eventually(name+" waits with "+want, func() bool {
			s := c.pod(name).Status.ContainerStatuses
			return len(s) == 1 && s[0].State.Waiting != nil && s[0].State.Waiting.Reason == want && c.pod(name).Status.Phase == corev1.PodPending
		})
	}
}

func TestAdmission(t *testing.T) {
	c := newCluster(t)
	c.start()
	p := newPod("ports", "a")
	p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 8080}}
	c.create(p)
	c.eventually("ready", c.isReady("ports"))
	q := newPod("clash", "b")
	q.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 81, HostPort: 8080}}
	c.create(q)
	c.eventually("rejected", func() bool {
		s := c.pod("clash").Status
		return s.Phase == corev1.PodFailed && s.Reason == "NodePorts"
	})
}

func TestProbes(t *testing.T) {
	c := newCluster(t)
	var healthy, ready atomic.Bool
	healthy.Store(true)
	c.runtime.OnExec(func(_ string, cmd []string) (int32, string) {
		ok := cmd[0] == "live" && healthy.Load() || cmd[0] == "ready" && ready.Load()
		if ok {
			return 0, ""
		}
		return 1, "no"
	})
	c.start()
	p := newPod("web", "a")
	exec := func(name string) *corev1.Probe {
		return &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{name}}}, PeriodSeconds: 1, FailureThreshold: 1, SuccessThreshold: 1}
	}
	p.Spec.Containers[0].LivenessProbe, p.Spec.Containers[0].ReadinessProbe = exec("live"), exec("ready")
	c.create(p)
	c.eventually("running, not ready", func() bool {
		got := c.pod("web")
		return got.Status.Phase == corev1.PodRunning && condition(got, corev1.PodReady) == corev1.ConditionFalse
	})
	ready.Store(true)
	c.eventually("ready", c.isReady("web"))
	healthy.Store(false)
	c.eventually("restarted", func() bool {
		s := c.pod("web").Status.ContainerStatuses
		if s[0].RestartCount >= 1 {
			healthy.Store(true)
			return true
		}
		return false
	})
}

func TestGracefulEnd(t *testing.T) {
	c := newCluster(t)
	c.runtime.OnSignal(func(name string) (int32, bool) { return 0, name != "deaf" })
	c.start()
	p := newPod("web", "deaf")
	p.Spec.Containers[0].Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{Exec: &corev1.ExecAction{Command: []string{"bye"}}}}
	c.create(p)
	c.eventually("ready", c.isReady("web"))
	c.delete("web", 600)
	c.eventually("is being stopped", func() bool {
		return slices.ContainsFunc(c.runtime.Calls(), func(s string) bool { return strings.HasPrefix(s, "StopContainer deaf 600") })
	})
	if c.pod("web") == nil {
		t.Fatal("gone before its containers ended")
	}
	// Less grace than before counts at once.
	c.delete("web", 1)
	c.eventually("gone", func() bool { return c.pod("web") == nil })
	calls := c.runtime.Calls()
	if hook, stop := slices.Index(calls, "ExecSync deaf"), slices.Index(calls, "StopContainer deaf 600"); hook < 0 || hook > stop {
		t.Errorf("the pre-stop hook came not before the signal: %v", calls)
	}
}

// A pod that is deleted while the runtime is at work for it leaves nothing behind: calls that
// change the runtime's state are carried to their end.
func TestDeletedWhileStarting(t *testing.T) {
	for _, call := range []string{"RunPodSandbox", "StartContainer"} {
		t.Run(call, func(t *testing.T) {
			c := newCluster(t)
			reached, release := c.runtime.Hold(call)
			c.start()
			c.create(newPod("early", "main"))
			<-reached
			c.delete("early", 30)
			c.create(newPod("late", "main"))
			c.eventually("the agent has seen what came after the deletion", func() bool { return c.pod("late").Status.StartTime != nil })
			release()
			c.eventually("the pod is gone", func() bool { return c.pod("early") == nil })
			c.eventually("the other runs", c.isReady("late"))
			if n := c.runtime.Interrupted(); n != 0 {
				t.Errorf("%d calls were interrupted", n)
			}
			if all, _ := c.runtime.Sandboxes(); all != 1 || len(c.runtime.Running()) != 1 {
				t.Errorf("%d sandboxes and containers %v are left", all, c.runtime.Running())
			}
		})
	}
}

func TestFence(t *testing.T) {
	c := newCluster(t)
	var reachable atomic.Bool
	reachable.Store(true)
	transport := roundTripper(func(r *http.Request) (*http.Response, error) {
		if !reachable.Load() {
			return nil, errors.New("no route to host")
		}
		body := &beats{sent: r.Body, alive: &reachable}
		return &http.Response{StatusCode: http.StatusOK, Body: body, Request: r}, nil
	})
	// Long, so that its margin is more than a busy machine takes to run a goroutine.
	const bound = 5 * time.Second
	c.config.FenceBound = bound
	c.config.LiveServers = func() []live.Server {
		return []live.Server{{URL: "https://192.0.2.1:6443", Client: &http.Client{Transport: transport}}}
	}
	c.start()
	once := newPod("once", "once")
	once.Annotations = map[string]string{"barque.dev/run-once": "true"}
	c.create(once)
	c.create(newPod("free", "free"))
	c.eventually("both ready", func() bool { return c.isReady("once")() && c.isReady("free")() })

	cut := time.Now()
	reachable.Store(false)
	c.eventually("fenced", func() bool { return slices.Equal(c.runtime.Running(), []string{"free"}) })
	if took := time.Since(cut); took > bound {
		t.Errorf("the pod was stopped %s after the cut, past the bound", took)
	}
	if !slices.Contains(c.runtime.Calls(), "StopContainer once 0") {
		t.Errorf("not by SIGKILL: %v", c.runtime.Calls())
	}
	reachable.Store(true)
	c.eventually("runs again", func() bool { return slices.Equal(c.runtime.Running(), []string{"free", "once"}) })
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// beats is a live connection's stream: a line now and then while the server is alive.
type beats struct {
	sent  io.ReadCloser
	alive *atomic.Bool
}

// Read sends the agent's own beats back, as a server does.
func (b *beats) Read(p []byte) (int, error) {
	n, err := b.sent.Read(p)
	if !b.alive.Load() {
		return 0, errors.New("connection reset")
	}
	return n, err
}

func (b *beats) Close() error { return b.sent.Close() }

// TestTrustBundleVolume: a pod waits for the bundle it needs, and sees what it becomes.
func TestTrustBundleVolume(t *testing.T) {
	c := newCluster(t)
	c.start()
	p := newPod("web", "a")
	name := "roots"
	p.Spec.Volumes = []corev1.Volume{{Name: "trust", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{
		Sources: []corev1.VolumeProjection{{ClusterTrustBundle: &corev1.ClusterTrustBundleProjection{Name: &name, Path: "roots.pem"}}},
	}}}}
	p.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "trust", MountPath: "/trust"}}
	c.create(p)
	c.eventually("the pod's event says what is missing", func() bool {
		list, err := c.client.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(list.Items, func(e corev1.Event) bool {
			return e.Reason == "FailedMount" && strings.Contains(e.Message, `"roots" not found`)
		})
	})
	b := &certificatesv1.ClusterTrustBundle{ObjectMeta: metav1.ObjectMeta{Name: name}}
	set := func(content string) string {
		b.Spec.TrustBundle = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(content)}))
		return b.Spec.TrustBundle
	}
	shown := func(want string) func() bool {
		file := filepath.Join(c.root, "pods", string(p.UID), "volumes", "kubernetes.io~projected", "trust", "roots.pem")
		return func() bool { got, err := os.ReadFile(file); return err == nil && string(got) == want }
	}
	first := set("first")
	if _, err := c.client.CertificatesV1().ClusterTrustBundles().Create(t.Context(), b, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("ready", c.isReady("web"))
	c.eventually("the bundle is there", shown(first))
	second := set("second")
	if _, err := c.client.CertificatesV1().ClusterTrustBundles().Update(t.Context(), b, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	c.eventually("the bundle is the new one", shown(second))
	c.delete("web", 1)
	c.eventually("gone, and its volumes with it", func() bool { return c.pod("web") == nil })
}
