package containerd

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/runtime/images/imagetest"
)

// TestStreams checks that the addresses that the runtime hands out work with the protocol of
// kubectl exec, attach and port-forward.
func TestStreams(t *testing.T) {
	n := newNode(t)
	n.start(t)
	imagetest.ImportBusybox(t, n.Socket())
	sandbox, container := n.runPod(t, "web", nil, "sleep", "1000")

	t.Run("exec", func(t *testing.T) {
		r, err := n.Exec(n.ctx, &cri.ExecRequest{ContainerId: container, Cmd: []string{"sh", "-c", "cat; echo bad >&2; exit 5"}, Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		var stdout, stderr bytes.Buffer
		err = stream(t, r.Url, remotecommand.StreamOptions{Stdin: strings.NewReader("through"), Stdout: &stdout, Stderr: &stderr})
		if stdout.String() != "through" || stderr.String() != "bad\n" || err == nil || !strings.Contains(err.Error(), "exit code 5") {
			t.Errorf("stdout %q, stderr %q, %v", &stdout, &stderr, err)
		}
	})
	t.Run("terminal", func(t *testing.T) {
		r, err := n.Exec(n.ctx, &cri.ExecRequest{ContainerId: container, Cmd: []string{"sh", "-c", "test -t 0 && echo tty"}, Stdin: true, Stdout: true, Tty: true})
		if err != nil {
			t.Fatal(err)
		}
		// A person at a terminal keeps his side open until the command has ended.
		keyboard, end := io.Pipe()
		defer func() { _ = end.Close() }()
		var stdout bytes.Buffer
		err = stream(t, r.Url, remotecommand.StreamOptions{Stdin: keyboard, Stdout: &stdout, Tty: true})
		if err != nil || stdout.String() != "tty\r\n" {
			t.Errorf("stdout %q, %v", &stdout, err)
		}
	})
	t.Run("attach", func(t *testing.T) { attach(t, n) })
	t.Run("portforward", func(t *testing.T) { forward(t, n, sandbox) })
}

// stream runs one exec or attach at the address.
func stream(t *testing.T, address string, o remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	executor, err := remotecommand.NewSPDYExecutor(&rest.Config{Host: u.Host}, http.MethodPost, u)
	if err != nil {
		t.Fatal(err)
	}
	return executor.StreamWithContext(t.Context(), o)
}

// attach talks to the first process of a container that was made to listen.
func attach(t *testing.T, n *node) {
	config := n.sandbox("listener")
	s, err := n.RunPodSandbox(n.ctx, &cri.RunPodSandboxRequest{Config: config})
	if err != nil {
		t.Fatal(err)
	}
	c, err := n.CreateContainer(n.ctx, &cri.CreateContainerRequest{
		PodSandboxId: s.PodSandboxId, SandboxConfig: config,
		Config: &cri.ContainerConfig{
			Metadata: &cri.ContainerMetadata{Name: "main"},
			Image:    &cri.ImageSpec{Image: imagetest.Busybox},
			Command:  []string{"sh", "-c", "while read line; do echo got $line; done"},
			Stdin:    true, StdinOnce: true,
			Linux: &cri.LinuxContainerConfig{SecurityContext: &cri.LinuxContainerSecurityContext{NamespaceOptions: config.Linux.SecurityContext.NamespaceOptions}},
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.StartContainer(n.ctx, &cri.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	r, err := n.Attach(n.ctx, &cri.AttachRequest{ContainerId: c.ContainerId, Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	var stdout bytes.Buffer
	if err := stream(t, r.Url, remotecommand.StreamOptions{Stdin: strings.NewReader("a\nb\n"), Stdout: &stdout}); err != nil {
		t.Fatal(err)
	}
	if stdout.String() != "got a\ngot b\n" {
		t.Errorf("stdout %q", &stdout)
	}
}

// forward reaches a server in the sandbox's network through the runtime.
func forward(t *testing.T, n *node, sandbox string) {
	server, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	go func() {
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "hello")
			_ = c.Close()
		}
	}()
	port := server.Addr().(*net.TCPAddr).Port
	r, err := n.PortForward(n.ctx, &cri.PortForwardRequest{PodSandboxId: sandbox, Port: []int32{int32(port)}})
	if err != nil {
		t.Fatal(err)
	}
	u, err := url.Parse(r.Url)
	if err != nil {
		t.Fatal(err)
	}
	tr, upgrader, err := spdy.RoundTripperFor(&rest.Config{Host: u.Host})
	if err != nil {
		t.Fatal(err)
	}
	conn, protocol, err := spdy.NewDialer(upgrader, &http.Client{Transport: tr}, http.MethodPost, u).Dial(portforward.PortForwardProtocolV1Name)
	if err != nil || protocol != portforward.PortForwardProtocolV1Name {
		t.Fatal(protocol, err)
	}
	defer func() { _ = conn.Close() }()
	headers := http.Header{}
	headers.Set(corev1.PortHeader, server.Addr().String()[strings.LastIndexByte(server.Addr().String(), ':')+1:])
	headers.Set(corev1.PortForwardRequestIDHeader, "0")
	headers.Set(corev1.StreamType, corev1.StreamTypeError)
	failures, err := conn.CreateStream(headers)
	if err != nil {
		t.Fatal(err)
	}
	_ = failures.Close()
	headers.Set(corev1.StreamType, corev1.StreamTypeData)
	data, err := conn.CreateStream(headers)
	if err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(20*time.Second, func() { _ = conn.Close() })
	defer timer.Stop()
	got, err := io.ReadAll(data)
	if err != nil || string(got) != "hello" {
		t.Errorf("read %q, %v", got, err)
	}
}
