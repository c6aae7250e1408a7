package integration

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"

	"barque.dev/internal/local"
	"barque.dev/internal/network/namespace"
	"barque.dev/internal/runtime/images"
)

// netprobeImage holds test/integration/netprobe, beside busybox's applets.
const netprobeImage = "barque.dev/test/netprobe:1"

// importNetprobe builds the image and puts it on every machine.
func importNetprobe(t *testing.T, c *cluster) {
	t.Helper()
	binary := filepath.Join(t.TempDir(), "netprobe")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", binary, "./netprobe")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build netprobe: %v\n%s", err, out)
	}
	data, err := os.ReadFile(binary)
	if err != nil {
		t.Fatal(err)
	}
	var archive bytes.Buffer
	err = images.WriteArchive(&archive, images.Image{
		Names:  []string{netprobeImage},
		Layers: []images.Layer{{{Path: "bin/netprobe", Mode: 0o755, Data: data}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/bin/netprobe"}, Cmd: []string{"serve"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Machines {
		socket, err := m.ContainerdSocket()
		if err != nil {
			t.Fatal(err)
		}
		store, err := images.Open(socket)
		if err != nil {
			t.Fatal(err)
		}
		_, err = store.Import(t.Context(), bytes.NewReader(archive.Bytes()))
		_ = store.Close()
		if err != nil {
			t.Fatalf("import netprobe on %s: %v", m.Name, err)
		}
	}
}

// netLab is a namespace with netprobes: two on the first machine (echo-1, twin-1) and one on each
// other (echo-2, …), all labelled app=echo.
type netLab struct {
	*cluster
	ns     string
	api    kubernetes.Interface
	config *rest.Config
	pods   map[string]*corev1.Pod
}

func newNetLab(t *testing.T, c *cluster) *netLab {
	t.Helper()
	importNetprobe(t, c)
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	l := &netLab{cluster: c, ns: c.namespace(t), api: c.client(t), config: config, pods: map[string]*corev1.Pod{}}
	var names []string
	for i, m := range c.Machines {
		name := fmt.Sprintf("echo-%d", i+1)
		l.create(t, l.probe(name, m, "app", "echo"))
		names = append(names, name)
	}
	l.create(t, l.probe("twin-1", c.Machines[0], "app", "echo"))
	for _, name := range append(names, "twin-1") {
		l.pods[name] = l.awaitReady(t, name)
	}
	return l
}

// probe describes a netprobe on a machine (nil for any); labels are pairs.
func (l *netLab) probe(name string, m *local.Machine, labels ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: name, Labels: map[string]string{"name": name}}}
	for i := 0; i+1 < len(labels); i += 2 {
		p.Labels[labels[i]] = labels[i+1]
	}
	zero := int64(0)
	p.Spec.TerminationGracePeriodSeconds = &zero
	p.Spec.Containers = []corev1.Container{{
		Name: "netprobe", Image: netprobeImage,
		Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}, {Name: "echo", ContainerPort: 8081, Protocol: corev1.ProtocolUDP}},
	}}
	if m != nil {
		p.Spec.NodeName = m.Name
	}
	return p
}

// withReadiness lets the pod's own switch say whether it is ready.
func withReadiness(p *corev1.Pod) *corev1.Pod {
	probe := &corev1.Probe{PeriodSeconds: 1, FailureThreshold: 1}
	probe.HTTPGet = &corev1.HTTPGetAction{Path: "/ready"}
	probe.HTTPGet.Port.StrVal, probe.HTTPGet.Port.Type = "http", 1
	p.Spec.Containers[0].ReadinessProbe = probe
	return p
}

func (l *netLab) create(t testing.TB, p *corev1.Pod) {
	t.Helper()
	eventually(t, 10*time.Second, "create pod "+p.Name, func() error { // its service account may not be there yet
		_, err := l.api.CoreV1().Pods(l.ns).Create(t.Context(), p, metav1.CreateOptions{})
		return err
	})
}

func (l *netLab) awaitReady(t testing.TB, name string) *corev1.Pod {
	t.Helper()
	var pod *corev1.Pod
	ready := false
	defer func() {
		if !ready {
			out, _ := l.tryKubectl("", "describe", "pod", "-n", l.ns, name)
			t.Log(out)
		}
	}()
	eventually(t, bound, "pod "+name+" ready", func() (err error) {
		if pod, err = l.api.CoreV1().Pods(l.ns).Get(t.Context(), name, metav1.GetOptions{}); err != nil {
			return err
		}
		if !isReady(pod) {
			return fmt.Errorf("it is not: %s %+v", pod.Status.Phase, pod.Status.ContainerStatuses)
		}
		return nil
	})
	ready = true
	return pod
}

func isReady(p *corev1.Pod) bool {
	for _, c := range p.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue
		}
	}
	return false
}

// run executes netprobe in a pod and returns its output.
func (l *netLab) run(ctx context.Context, pod string, stdin io.Reader, args ...string) (string, error) {
	req := l.api.CoreV1().RESTClient().Post().Resource("pods").Namespace(l.ns).Name(pod).SubResource("exec").
		VersionedParams(&corev1.PodExecOptions{Command: append([]string{"/bin/netprobe"}, args...), Stdin: stdin != nil, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	exec, err := remotecommand.NewSPDYExecutor(l.config, http.MethodPost, req.URL())
	if err != nil {
		return "", err
	}
	var out, errs bytes.Buffer
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err = exec.StreamWithContext(ctx, remotecommand.StreamOptions{Stdin: stdin, Stdout: &out, Stderr: &errs})
	if err != nil {
		err = fmt.Errorf("netprobe %s in %s: %w: %s", strings.Join(args, " "), pod, err, errs.String())
	}
	return strings.TrimSpace(out.String()), err
}

// must is run for what has to succeed.
func (l *netLab) must(t testing.TB, pod string, args ...string) string {
	t.Helper()
	out, err := l.run(t.Context(), pod, nil, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// service creates a service for the pods with the labels (pairs), after edit has changed it.
func (l *netLab) service(t testing.TB, name string, edit func(*corev1.Service), selector ...string) *corev1.Service {
	t.Helper()
	s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: name}}
	http, echo := corev1.ServicePort{Name: "http", Port: 80}, corev1.ServicePort{Name: "echo", Port: 81, Protocol: corev1.ProtocolUDP}
	http.TargetPort.Type, http.TargetPort.StrVal = 1, "http"
	echo.TargetPort.Type, echo.TargetPort.StrVal = 1, "echo"
	s.Spec.Ports = []corev1.ServicePort{http, echo}
	for i := 0; i+1 < len(selector); i += 2 {
		if s.Spec.Selector == nil {
			s.Spec.Selector = map[string]string{}
		}
		s.Spec.Selector[selector[i]] = selector[i+1]
	}
	if edit != nil {
		edit(s)
	}
	created, err := l.api.CoreV1().Services(l.ns).Create(t.Context(), s, metav1.CreateOptions{})
	if err != nil {
		t.Fatalf("create service %s: %v", name, err)
	}
	return created
}

// answers waits until the URL answers on a machine; services reach the kernel a moment later
// than the API. It returns who answers, and whom that one saw.
func (l *netLab) answers(t testing.TB, m *local.Machine, url string) (host, from string) {
	t.Helper()
	eventually(t, 15*time.Second, url, func() (err error) {
		host, from, err = l.get(t.Context(), m, url)
		return err
	})
	return host, from
}

// get asks once, from a machine, or from the host where m is nil.
func (l *netLab) get(ctx context.Context, m *local.Machine, url string) (host, from string, err error) {
	client := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: dialFrom(m)}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return "", "", err
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", "", err
	}
	defer func() { _ = resp.Body.Close() }()
	var n int
	_, err = fmt.Fscan(resp.Body, &host, &from, &n)
	return host, from, err
}

// dialFrom makes connections from inside a machine, or from the host where m is nil.
func dialFrom(m *local.Machine) func(context.Context, string, string) (net.Conn, error) {
	dialer := &net.Dialer{Timeout: 3 * time.Second}
	if m == nil {
		return dialer.DialContext
	}
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = machineNamespace(m).Do(func() error {
			conn, err = dialer.DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// machineNamespace is where a machine's sockets are.
func machineNamespace(m *local.Machine) namespace.Namespace {
	return namespace.At("/run/netns/" + m.NetNS())
}
