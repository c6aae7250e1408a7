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

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
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
	"barque.dev/internal/runtime/images/imagetest"
	"barque.dev/internal/testkit"
	"barque.dev/internal/testkit/fakeclient"
	"barque.dev/internal/testkit/sweep"
)

const nodeName = "node-1"

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
	imagetest.ImportBusybox(t, r.Socket())

	certificate := httptest.NewUnstartedServer(nil)
	certificate.StartTLS()
	pair := certificate.TLS.Certificates
	certificate.Close()
	m := &machine{T: t, client: fakeclient.Clientset()}
	m.config = agent.Config{
		NodeName: nodeName, NodeIPs: []string{"127.0.0.1"}, Client: m.client, Runtime: cri, Images: cri,
		RootDir: filepath.Join(data, "agent"), CgroupRoot: cgroupRoot(data), ClusterDNS: []string{"10.43.0.10"}, ClusterDomain: "cluster.local",
		TLS: &tls.Config{Certificates: pair}, Authenticator: anybody{}, Authorizer: authorizerfactory.NewAlwaysAllowAuthorizer(),
		Log: slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
	}
	return m
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

// run makes a pod as define defines it.
func (m *machine) run(name, image, script string, pullSecrets ...string) {
	m.Helper()
	m.create(m.define(name, image, script, pullSecrets...))
}

// define returns a pod of one container, called main, in the node's network.
func (m *machine) define(name, image, script string, pullSecrets ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: types.UID("uid-" + name)}}
	p.Spec = corev1.PodSpec{
		NodeName: nodeName, HostNetwork: true, RestartPolicy: corev1.RestartPolicyAlways, TerminationGracePeriodSeconds: new(int64), DNSPolicy: corev1.DNSDefault,
		Containers: []corev1.Container{{Name: "main", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", script}}},
	}
	for _, s := range pullSecrets {
		p.Spec.ImagePullSecrets = append(p.Spec.ImagePullSecrets, corev1.LocalObjectReference{Name: s})
	}
	return p
}

func (m *machine) create(p *corev1.Pod) {
	m.Helper()
	if _, err := m.client.CoreV1().Pods("default").Create(m.Context(), p, metav1.CreateOptions{}); err != nil {
		m.Fatal(err)
	}
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
