package agenttest

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"barque.dev/internal/agent"
	"barque.dev/internal/runtime"
	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/cgroup"
	"barque.dev/internal/runtime/containerd"
	"barque.dev/internal/runtime/images"
	"barque.dev/internal/testkit"
	"barque.dev/internal/testkit/sweep"
)

const (
	nodeName = "node-1"
	busybox  = "busybox:test"
)

type machine struct {
	*testing.T
	client *fake.Clientset
	config agent.Config
	// base is the address of the node's API.
	base string
}

type anybody struct{}

func (anybody) AuthenticateRequest(*http.Request) (*authenticator.Response, bool, error) {
	return &authenticator.Response{User: &user.DefaultInfo{Name: "test"}}, true, nil
}

// newMachine starts a containerd with a busybox image, gone after the test.
func newMachine(t *testing.T) *machine {
	t.Helper()
	packed, err := bundle.Open()
	if err != nil {
		t.Fatal(err)
	}
	programs, err := packed.Unpack(filepath.Join(os.TempDir(), "bin"))
	if err != nil {
		t.Fatal(err)
	}
	data := sweep.Place(t)
	r, err := containerd.New(runtimeConfig(data, programs))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	cri, err := runtime.Dial(r.Endpoint(), runtime.Limits{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			log, _ := os.ReadFile(r.LogFile())
			t.Logf("containerd's log:\n%s", log[max(0, len(log)-20000):])
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		end, cancelEnd := context.WithTimeout(context.Background(), time.Minute)
		defer cancelEnd()
		if err := cri.Close(); err != nil {
			t.Error(err)
		}
		if err := r.Stop(end); err != nil {
			t.Error(err)
		}
		if err := cgroup.Remove(end, cgroupRoot(data)); err != nil {
			t.Error(err)
		}
		if err := unmountBelow(data); err != nil {
			t.Error(err)
		}
		if err := os.RemoveAll(data); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-ready:
	case err := <-done:
		done <- nil
		t.Fatalf("containerd does not run: %v", err)
	}
	importBusybox(t, r.Socket())

	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	pair := certificate.TLS.Certificates
	certificate.Close()
	m := &machine{T: t, client: fake.NewClientset()}
	m.config = agent.Config{
		NodeName: nodeName, NodeIPs: []string{"127.0.0.1"}, Client: m.client, Runtime: cri, Images: cri,
		RootDir: filepath.Join(data, "agent"), CgroupRoot: cgroupRoot(data), ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local",
		TLS: &tls.Config{Certificates: pair}, Authenticator: anybody{}, Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer(),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return m
}

func importBusybox(t *testing.T, socket string) {
	t.Helper()
	program, err := os.ReadFile("/bin/busybox")
	if err != nil {
		t.Fatalf("these tests need the package busybox-static: %v", err)
	}
	files := images.Layer{
		{Path: "bin/busybox", Mode: 0o755, Data: program},
		{Path: "tmp", Mode: os.ModeDir | os.ModeSticky | 0o777},
		{Path: "etc/passwd", Mode: 0o644, Data: []byte("root:x:0:0:root:/:/bin/sh\n")},
	}
	for _, name := range []string{"sh", "echo", "sleep", "cat", "hostname", "id", "test"} {
		files = append(files, images.File{Path: "bin/" + name, Mode: os.ModeSymlink | 0o777, Target: "busybox"})
	}
	var archive bytes.Buffer
	if err := images.WriteArchive(&archive, images.Image{Names: []string{busybox}, Layers: []images.Layer{files}, Config: ocispec.ImageConfig{Env: []string{"PATH=/bin"}, Cmd: []string{"sh"}}}); err != nil {
		t.Fatal(err)
	}
	store, err := images.Open(socket)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	if _, err := store.Import(t.Context(), &archive); err != nil {
		t.Fatal(err)
	}
}

func (m *machine) start() (stop func()) {
	m.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		m.Fatal(err)
	}
	m.config.Listener, m.base = l, "https://"+l.Addr().String()
	a, err := agent.New(m.config)
	if err != nil {
		m.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- a.Run(ctx, func() { close(ready) }) }()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil {
			m.Error(err)
		}
	}
	m.Cleanup(stop)
	select {
	case <-ready:
	case <-time.After(30 * time.Second):
		m.Fatal("agent is not ready")
	}
	return stop
}

func (m *machine) pod(name string) *corev1.Pod {
	p, err := m.client.CoreV1().Pods("default").Get(context.Background(), name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		m.Fatal(err)
	}
	return p
}

func (m *machine) eventually(what string, f func() bool) {
	m.Helper()
	if err := testkit.Poll(60*time.Second, testkit.Holds(f)); err != nil {
		list, _ := m.client.CoreV1().Pods("").List(context.Background(), metav1.ListOptions{})
		for i := range list.Items {
			m.Logf("pod %s: %+v", list.Items[i].Name, list.Items[i].Status)
		}
		events, _ := m.client.CoreV1().Events("").List(context.Background(), metav1.ListOptions{})
		for i := range events.Items {
			m.Logf("event %s: %s", events.Items[i].Reason, events.Items[i].Message)
		}
		m.Fatalf("not in time: %s", what)
	}
}

func (m *machine) ready(name string) bool {
	p := m.pod(name)
	if p == nil {
		return false
	}
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

func (m *machine) get(path string) string {
	m.Helper()
	c := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	reply, err := c.Get(m.base + path)
	if err != nil {
		m.Fatal(err)
	}
	defer reply.Body.Close()
	data, err := io.ReadAll(reply.Body)
	if err != nil || reply.StatusCode != http.StatusOK {
		m.Fatalf("GET %s: %s %s %v", path, reply.Status, data, err)
	}
	return string(data)
}

// exec runs a command in a container through the node's API, as kubectl does.
func (m *machine) exec(pod, container, stdin string, command ...string) string {
	m.Helper()
	q := url.Values{"command": command, "output": {"1"}, "error": {"1"}}
	if stdin != "" {
		q.Set("input", "1")
	}
	u, err := url.Parse(fmt.Sprintf("%s/exec/default/%s/%s?%s", m.base, pod, container, q.Encode()))
	if err != nil {
		m.Fatal(err)
	}
	e, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: m.base, TLSClientConfig: rest.TLSClientConfig{Insecure: true}}, http.MethodPost, u)
	if err != nil {
		m.Fatal(err)
	}
	var out, errs bytes.Buffer
	options := remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}
	if stdin != "" {
		options.Stdin = strings.NewReader(stdin)
	}
	if err := e.StreamWithContext(m.Context(), options); err != nil {
		m.Fatalf("exec %q: %v %s", command, err, errs.String())
	}
	return out.String()
}

func newPod(name string) *corev1.Pod {
	grace := int64(5)
	container := func(name, script string) corev1.Container {
		return corev1.Container{
			Name: name, Image: busybox, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", script},
			TerminationMessagePath: "/dev/termination-log", TerminationMessagePolicy: corev1.TerminationMessageReadFile,
			Resources: corev1.ResourceRequirements{
				Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("50m")},
				Limits:   corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("32Mi"), corev1.ResourceCPU: resource.MustParse("500m")},
			},
			VolumeMounts: []corev1.VolumeMount{{Name: "shared", MountPath: "/shared"}},
		}
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: "0b6b0b4e-2f0e-4d4e-9f55-4f7f5f9d5f01"}}
	p.Spec = corev1.PodSpec{
		NodeName: nodeName, HostNetwork: true, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: &grace, DNSPolicy: corev1.DNSDefault,
		Containers: []corev1.Container{
			container("writer", "trap 'exit 0' TERM; echo hello from $NAME; echo shared > /shared/file; while true; do sleep 0.2; done"),
			container("reader", "trap 'exit 0' TERM; while true; do sleep 0.2; done"),
		},
		Volumes: []corev1.Volume{
			{Name: "shared", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}},
			{Name: "settings", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		},
	}
	p.Spec.Containers[0].Env = []corev1.EnvVar{{Name: "NAME", ValueFrom: &corev1.EnvVarSource{FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.name"}}}}
	p.Spec.Containers[1].VolumeMounts = append(p.Spec.Containers[1].VolumeMounts, corev1.VolumeMount{Name: "settings", MountPath: "/settings"})
	p.Spec.Containers[1].ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{Exec: &corev1.ExecAction{Command: []string{"test", "-f", "/shared/file"}}}, PeriodSeconds: 1, TimeoutSeconds: 5, FailureThreshold: 1, SuccessThreshold: 1}
	return p
}

func TestPodLife(t *testing.T) {
	m := newMachine(t)
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings", Namespace: "default", ResourceVersion: "1"}, Data: map[string]string{"color": "blue"}}
	if _, err := m.client.CoreV1().ConfigMaps("default").Create(t.Context(), settings, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	stop := m.start()
	began := time.Now()
	if _, err := m.client.CoreV1().Pods("default").Create(t.Context(), newPod("web"), metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("ready", func() bool { return m.ready("web") })
	t.Logf("pod with two containers ready after %s", time.Since(began))

	if got := m.get("/containerLogs/default/web/writer"); got != "hello from web\n" {
		t.Errorf("log: %q", got)
	}
	if got := m.exec("web", "reader", "", "cat", "/shared/file", "/settings/color"); got != "shared\nblue" {
		t.Errorf("exec: %q", got)
	}
	if got := m.exec("web", "reader", "through stdin", "cat"); got != "through stdin" {
		t.Errorf("exec with stdin: %q", got)
	}
	if got := m.get("/stats/summary"); !strings.Contains(got, `"name":"writer"`) {
		t.Errorf("summary: %s", got)
	}
	if got := m.get("/metrics/resource"); !strings.Contains(got, `container_memory_working_set_bytes{container="writer",namespace="default",pod="web"}`) {
		t.Errorf("resource metrics: %s", got)
	}

	// The agent's restart touches nothing.
	id := m.pod("web").Status.ContainerStatuses[0].ContainerID
	stop()
	m.start()
	changed := settings.DeepCopy()
	changed.ResourceVersion, changed.Data["color"] = "2", "green"
	if _, err := m.client.CoreV1().ConfigMaps("default").Update(t.Context(), changed, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("new contents in the container", func() bool { return m.exec("web", "reader", "", "cat", "/settings/color") == "green" })
	if got := m.pod("web").Status.ContainerStatuses[0]; got.ContainerID != id || got.RestartCount != 0 {
		t.Errorf("after the agent's restart: %+v", got)
	}

	// A container that ends is started again, and its last words are kept.
	m.exec("web", "reader", "", "sh", "-c", "echo -n goodbye > /dev/termination-log; kill -TERM 1")
	m.eventually("restarted", func() bool {
		s := m.pod("web").Status.ContainerStatuses[0]
		return s.Name == "reader" && s.RestartCount == 1 && s.State.Running != nil && s.LastTerminationState.Terminated != nil
	})
	if last := m.pod("web").Status.ContainerStatuses[0].LastTerminationState.Terminated; last.Message != "goodbye" || last.ExitCode != 0 || last.Reason != "Completed" {
		t.Errorf("last termination: %+v", last)
	}

	p := m.pod("web")
	now, grace := metav1.Now(), int64(5)
	p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &now, &grace
	if _, err := m.client.CoreV1().Pods("default").Update(t.Context(), p, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	m.eventually("gone", func() bool { return m.pod("web") == nil })
	for _, left := range []string{filepath.Join(m.config.RootDir, "pods", string(p.UID)), filepath.Join(m.config.RootDir, "logs", "pods", "default_web_"+string(p.UID))} {
		if _, err := os.Stat(left); err == nil {
			t.Errorf("left behind: %s", left)
		}
	}
	if left, _ := filepath.Glob("/sys/fs/cgroup/*" + m.config.CgroupRoot + "/kubepods/*/pod*"); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
