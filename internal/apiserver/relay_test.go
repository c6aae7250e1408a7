package apiserver_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	toolsforward "k8s.io/client-go/tools/portforward"
	toolsremote "k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/utils/ptr"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/apiserver/relay"
	"barque.dev/internal/pki"
)

// kubelet is a node's kubelet whose containers echo.
type kubelet struct{}

const streamTimeout = 10 * time.Second

// ExecInContainer copies its input to its output, and its command to its errors.
func (k *kubelet) ExecInContainer(_ context.Context, _, _, container string, cmd []string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	if tty {
		size := <-resize
		fmt.Fprintf(out, "%dx%d\n", size.Width, size.Height)
	}
	if in != nil {
		if _, err := io.Copy(out, in); err != nil {
			return err
		}
	}
	if errs != nil {
		fmt.Fprintf(errs, "%s runs %q", container, cmd)
	}
	if slices.Contains(cmd, "false") {
		return exitError(3)
	}
	return nil
}

func (k *kubelet) AttachContainer(ctx context.Context, name, uid, container string, in io.Reader, out, errs io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) error {
	return k.ExecInContainer(ctx, name, uid, container, []string{"attach"}, in, out, errs, tty, resize, 0)
}

// PortForward answers every connection with what it gets, in capitals.
func (k *kubelet) PortForward(_ context.Context, _, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	buf := make([]byte, 1024)
	n, err := stream.Read(buf)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(stream, "%d %s", port, bytes.ToUpper(buf[:n]))
	return err
}

// exitError is the exit code of a command.
type exitError int

func (e exitError) Error() string   { return fmt.Sprintf("exit code %d", int(e)) }
func (e exitError) String() string  { return e.Error() }
func (e exitError) Exited() bool    { return true }
func (e exitError) ExitStatus() int { return int(e) }

func (k *kubelet) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if len(req.TLS.PeerCertificates) == 0 || req.TLS.PeerCertificates[0].Subject.CommonName != pki.UserKubeletClient {
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	parts := strings.Split(strings.Trim(req.URL.Path, "/"), "/")
	switch parts[0] {
	case "exec", "attach":
		opts, err := remotecommand.NewOptions(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		protocols := []string{"v4.channel.k8s.io"}
		if parts[0] == "exec" {
			remotecommand.ServeExec(w, req, k, parts[2], "", parts[3], req.URL.Query()["command"], opts, streamTimeout, streamTimeout, protocols)
		} else {
			remotecommand.ServeAttach(w, req, k, parts[2], "", parts[3], opts, streamTimeout, streamTimeout, protocols)
		}
	case "portForward":
		opts, err := portforward.NewV4Options(req)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		portforward.ServePortForward(w, req, k, parts[2], "", opts, streamTimeout, streamTimeout, []string{"portforward.k8s.io"})
	case "containerLogs":
		if req.URL.Query().Get("previous") != "" {
			http.Error(w, "previous terminated container not found", http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%s\n", req.URL)
	default:
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprintf(w, `%s %s <a href="/other">link</a>`, req.Method, req.URL)
	}
}

// withNode starts a control plane with a node whose kubelet echoes, a pod on it, and a service before it.
func withNode(t *testing.T) (*cluster, kubernetes.Interface) {
	t.Helper()
	k := &kubelet{}
	var shown tls.Certificate
	c := start(t, func(cfg *apiserver.Config) {
		// The authorities are those that start has just made.
		cfg.Kubelet = relay.Config{TLS: &tls.Config{MinVersion: tls.VersionTLS12}}
		cfg.Kubelet.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			_, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return (&net.Dialer{}).DialContext(ctx, network, net.JoinHostPort("127.0.0.1", port))
		}
		authorities := cfg.TLS.ClientCAs
		cfg.Kubelet.TLS.RootCAs = authorities
		cfg.Kubelet.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &shown, nil
		}
	})
	shown = issue(t, c.pki.Cluster, pki.Client(pki.UserKubeletClient, pki.GroupMasters))
	serving := issue(t, c.pki.Cluster, pki.KubeletServing("n", nil, []netip.Addr{netip.MustParseAddr("10.9.9.9")}))
	server := httptest.NewUnstartedServer(k)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{serving}, ClientCAs: c.pki.Cluster.Pool(), ClientAuth: tls.VerifyClientCertIfGiven}
	server.StartTLS()
	t.Cleanup(server.Close)
	port := server.Listener.Addr().(*net.TCPAddr).Port
	c.wait(t)
	client := c.client(t)
	makeNodeObjects(t, client, port)
	return c, client
}

func makeNodeObjects(t *testing.T, client kubernetes.Interface, port int) {
	t.Helper()
	ctx := t.Context()
	create := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	_, err := client.CoreV1().Nodes().Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n"}, Status: corev1.NodeStatus{
		Addresses:       []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: "n.example"}, {Type: corev1.NodeInternalIP, Address: "10.9.9.9"}},
		DaemonEndpoints: corev1.NodeDaemonEndpoints{KubeletEndpoint: corev1.DaemonEndpoint{Port: int32(port)}},
	}}, metav1.CreateOptions{})
	create(err)
	_, err = client.CoreV1().ServiceAccounts("default").Create(ctx, &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, metav1.CreateOptions{})
	create(err)
	pod, err := client.CoreV1().Pods("default").Create(ctx, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: corev1.PodSpec{
		NodeName: "n", Containers: []corev1.Container{{Name: "a", Image: "a"}, {Name: "b", Image: "b"}},
	}}, metav1.CreateOptions{})
	create(err)
	pod.Status.PodIP = "10.42.0.7"
	pod.Status.PodIPs = []corev1.PodIP{{IP: "10.42.0.7"}}
	_, err = client.CoreV1().Pods("default").UpdateStatus(ctx, pod, metav1.UpdateOptions{})
	create(err)
	_, err = client.CoreV1().Services("default").Create(ctx, &corev1.Service{ObjectMeta: metav1.ObjectMeta{Name: "s"}, Spec: corev1.ServiceSpec{
		Ports: []corev1.ServicePort{{Name: "web", Port: 80}, {Name: "none", Port: 81}},
	}}, metav1.CreateOptions{})
	create(err)
	target := &corev1.ObjectReference{Kind: "Pod", Namespace: "default", Name: "p"}
	_, err = client.DiscoveryV1().EndpointSlices("default").Create(ctx, &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Name: "s-1", Labels: map[string]string{discoveryv1.LabelServiceName: "s"}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: ptr.To("web"), Port: ptr.To(int32(port))}},
		Endpoints: []discoveryv1.Endpoint{
			{Addresses: []string{"10.42.0.7"}, TargetRef: target},
			{Addresses: []string{"10.42.0.8"}, TargetRef: target}, // not the pod's
			{Addresses: []string{"10.42.0.9"}, Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(false)}, TargetRef: target},
		},
	}, metav1.CreateOptions{})
	create(err)
}

// executors are the two ways in which clients speak.
func executors(t *testing.T, config *rest.Config, u *url.URL) map[string]toolsremote.Executor {
	t.Helper()
	s, err := toolsremote.NewSPDYExecutor(config, "POST", u)
	if err != nil {
		t.Fatal(err)
	}
	ws, err := toolsremote.NewWebSocketExecutor(config, "GET", u.String())
	if err != nil {
		t.Fatal(err)
	}
	old, err := toolsremote.NewWebSocketExecutorForProtocols(config, "GET", u.String(), "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	return map[string]toolsremote.Executor{"SPDY": s, "WebSocket v5": ws, "WebSocket v4": old}
}

func TestExec(t *testing.T) {
	c, _ := withNode(t)
	config := c.config(t, pki.UserAdmin, pki.GroupMasters)
	at := func(path string) *url.URL {
		u, err := url.Parse(c.url + "/api/v1/namespaces/default/pods/p/" + path)
		if err != nil {
			t.Fatal(err)
		}
		return u
	}
	input := strings.Repeat("0123456789", 10_000)
	for name, e := range executors(t, config, at("exec?container=b&stdin=1&stdout=1&stderr=1&command=echo&command=x")) {
		if name == "WebSocket v4" {
			continue // cannot close its input, so that the other end would wait
		}
		var out, errs bytes.Buffer
		err := e.StreamWithContext(t.Context(), toolsremote.StreamOptions{Stdin: strings.NewReader(input), Stdout: &out, Stderr: &errs})
		if err != nil || out.String() != input || errs.String() != `b runs ["echo" "x"]` {
			t.Errorf("%s: %v: %d bytes of output; %q", name, err, out.Len(), errs.String())
		}
	}
	for name, e := range executors(t, config, at("exec?container=a&stdout=1&stderr=1&command=false")) {
		var out, errs bytes.Buffer
		err := e.StreamWithContext(t.Context(), toolsremote.StreamOptions{Stdout: &out, Stderr: &errs})
		if err == nil || !strings.Contains(err.Error(), "exit code 3") {
			t.Errorf("%s: a failing command ends with %v (%q)", name, err, errs.String())
		}
	}
	for name, e := range executors(t, config, at("attach?container=a&stdout=1&tty=1")) {
		var out bytes.Buffer
		err := e.StreamWithContext(t.Context(), toolsremote.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: &sizes{}})
		if err != nil || out.String() != "80x24\n" {
			t.Errorf("%s: attach: %v: %q", name, err, out.String())
		}
	}
	for path, want := range map[string]string{
		"exec?container=nothing&command=x": "container nothing is not valid for pod p",
		"exec?command=x":                   "a container name must be specified for pod p, choose one of: [a b]",
	} {
		for name, e := range executors(t, config, at(path)) {
			err := e.StreamWithContext(t.Context(), toolsremote.StreamOptions{Stdout: io.Discard})
			if err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%s %s: %v, want %s", name, path, err, want)
			}
		}
	}
}

// sizes is a terminal that is resized once.
type sizes struct{ done bool }

func (s *sizes) Next() *toolsremote.TerminalSize {
	if s.done {
		return nil
	}
	s.done = true
	return &toolsremote.TerminalSize{Width: 80, Height: 24}
}

// To look is not to enter: a WebSocket begins with GET, but needs the right to create.
func TestExecNeedsCreate(t *testing.T) {
	c, _ := withNode(t)
	for kind, body := range map[string]string{
		"clusterroles":        `{"metadata":{"name":"look"},"rules":[{"apiGroups":[""],"resources":["pods/exec"],"verbs":["get"]}]}`,
		"clusterrolebindings": `{"metadata":{"name":"look"},"roleRef":{"apiGroup":"rbac.authorization.k8s.io","kind":"ClusterRole","name":"look"},"subjects":[{"kind":"User","name":"jane"}]}`,
	} {
		if a := do(t, c.admin(t), "POST", c.url+"/apis/rbac.authorization.k8s.io/v1/"+kind, strings.NewReader(body), "Content-Type", "application/json"); a.code != 201 {
			t.Fatal(a)
		}
	}
	a := do(t, c.http(t, "jane"), "GET", c.url+"/api/v1/namespaces/default/pods/p/exec?command=x&container=a", nil)
	if s := status(t, a); a.code != 403 || !strings.Contains(s.Message, `cannot create resource "pods/exec"`) {
		t.Errorf("%d %s", a.code, s.Message)
	}
}

func TestPortForward(t *testing.T) {
	c, _ := withNode(t)
	config := c.config(t, pki.UserAdmin, pki.GroupMasters)
	u, err := url.Parse(c.url + "/api/v1/namespaces/default/pods/p/portforward")
	if err != nil {
		t.Fatal(err)
	}
	transport, upgrader, err := spdy.RoundTripperFor(config)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, err := toolsforward.NewSPDYOverWebsocketDialerForStreaming(u, config)
	if err != nil {
		t.Fatal(err)
	}
	for name, dialer := range map[string]httpstream.Dialer{
		"SPDY": spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u), "WebSocket": tunnel,
	} {
		stop, ready := make(chan struct{}), make(chan struct{})
		forwarder, err := toolsforward.NewOnAddressesForStreaming(dialer, []string{"127.0.0.1"}, []string{"0:8080"}, stop, ready, io.Discard, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- forwarder.ForwardPorts() }()
		select {
		case <-ready:
		case err := <-ended:
			t.Fatalf("%s: %v", name, err)
		}
		ports, err := forwarder.GetPorts()
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(conn, "hello")
			got, err := io.ReadAll(conn)
			if err != nil || string(got) != "8080 HELLO" {
				t.Errorf("%s: %q (%v)", name, got, err)
			}
			conn.Close()
		}
		close(stop)
		<-ended
	}
}

func TestLogs(t *testing.T) {
	c, client := withNode(t)
	text, err := client.CoreV1().Pods("default").GetLogs("p", &corev1.PodLogOptions{
		Container: "b", Follow: true, TailLines: ptr.To(int64(5)), Timestamps: true, SinceSeconds: ptr.To(int64(9)),
	}).DoRaw(t.Context())
	if want := "/containerLogs/default/p/b?follow=true&sinceSeconds=9&tailLines=5&timestamps=true\n"; err != nil || string(text) != want {
		t.Errorf("%v %q, want %q", err, text, want)
	}
	base := c.url + "/api/v1/namespaces/default/pods/p/log"
	for query, want := range map[string]string{
		"":                          "a container name must be specified for pod p, choose one of: [a b]",
		"?container=a&tailLines=-1": `PodLogOptions "p" is invalid: tailLines: Invalid value: -1: must be greater than or equal to 0`,
		"?container=a&previous=1":   "previous terminated container not found\n",
	} {
		a := do(t, c.admin(t), "GET", base+query, nil)
		if s := status(t, a); s.Message != want {
			t.Errorf("%q: %d %q, want %q", query, a.code, s.Message, want)
		}
	}
	if a := do(t, c.admin(t), "POST", base, nil); a.code != 405 {
		t.Errorf("POST: %d", a.code)
	}
}

func TestLogsOverWebSocket(t *testing.T) {
	c, _ := withNode(t)
	const want = "/containerLogs/default/p/a\n"
	for protocol, decode := range map[string]func(string) ([]byte, error){
		"":                     func(s string) ([]byte, error) { return []byte(s), nil },
		"binary.k8s.io":        func(s string) ([]byte, error) { return []byte(s), nil },
		"base64.binary.k8s.io": base64.StdEncoding.DecodeString,
	} {
		var offered []string
		if protocol != "" {
			offered = []string{protocol}
		}
		ws, err := c.dialWatchIn(t, "/api/v1/namespaces/default/pods/p/log?container=a", offered)
		if err != nil {
			t.Fatalf("%q: %v", protocol, err)
		}
		var log []byte
		for {
			m, err := receive(ws)
			if errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%q: %v", protocol, err)
			}
			part, err := decode(string(m.payload))
			if err != nil {
				t.Fatalf("%q: %v", protocol, err)
			}
			log = append(log, part...)
		}
		if string(log) != want {
			t.Errorf("%q: %q, want %q", protocol, log, want)
		}
	}
}

func TestProxy(t *testing.T) {
	c, client := withNode(t)
	node, err := client.CoreV1().Nodes().Get(t.Context(), "n", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	port := node.Status.DaemonEndpoints.KubeletEndpoint.Port
	get := func(path string) answer {
		return do(t, c.admin(t), "POST", c.url+"/api/v1"+path, strings.NewReader("x"))
	}
	if a := get("/nodes/n/proxy/pods?x=1"); a.code != 200 || !strings.HasPrefix(a.body, "POST /pods?x=1") || !strings.Contains(a.body, `href="/api/v1/nodes/n/proxy/other"`) {
		t.Errorf("node: %v", a)
	}
	if a := do(t, c.admin(t), "HEAD", c.url+"/api/v1/nodes/n/proxy/pods", nil); a.code != 200 || a.body != "" {
		t.Errorf("HEAD: %v", a)
	}
	// What pods and services answer here is that they do not know the API server: its certificate is for kubelets alone.
	for path, code := range map[string]int{
		fmt.Sprintf("/namespaces/default/pods/https:p:%d/proxy/a/", port): 401,
		"/namespaces/default/services/https:s:web/proxy/":                 401,
		"/namespaces/default/services/https:s:80/proxy/":                  401,
		"/namespaces/default/services/s:81/proxy/":                        503,
		"/namespaces/default/services/s:82/proxy/":                        503,
		"/namespaces/default/services/kubernetes/proxy/":                  503,
		"/nodes/missing/proxy/":                                           404,
	} {
		if a := get(path); a.code != code {
			t.Errorf("%s: %d, want %d: %s", path, a.code, code, a.body)
		}
	}
}
