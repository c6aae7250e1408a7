package balance_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	clientset "k8s.io/client-go/kubernetes/fake"

	"barque.dev/internal/cluster/balance"
	"barque.dev/internal/testkit"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// backend is a server that counts, and can be stopped and started at its address.
type backend struct {
	t       *testing.T
	address string
	server  *httptest.Server
	hits    atomic.Int32
	status  atomic.Int32 // of all answers; 0: 200
	cut     atomic.Bool  // breaks connections instead of answering
}

func newBackend(t *testing.T) *backend {
	b := &backend{t: t}
	b.start("127.0.0.1:0")
	b.address = b.server.Listener.Addr().String()
	t.Cleanup(func() { b.stop() })
	return b
}

func (b *backend) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/readyz" {
		b.hits.Add(1)
	}
	_, _ = io.Copy(io.Discard, r.Body)
	if b.cut.Load() {
		panic(http.ErrAbortHandler)
	}
	if s := b.status.Load(); s != 0 {
		w.WriteHeader(int(s))
	}
	_, _ = io.WriteString(w, b.address)
}

func (b *backend) start(address string) {
	b.t.Helper()
	listener, err := net.Listen("tcp", address)
	if err != nil {
		b.t.Fatal(err)
	}
	b.server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: b}}
	b.server.Start()
}

func (b *backend) stop() {
	b.server.CloseClientConnections()
	b.server.Close()
}

type cluster struct {
	*balance.Balancer
	t        *testing.T
	backends []*backend
}

func newCluster(t *testing.T, config balance.Config) *cluster {
	c := &cluster{t: t}
	for range 3 {
		b := newBackend(t)
		c.backends = append(c.backends, b)
		config.Servers = append(config.Servers, b.address)
	}
	config.ProbeInterval = 5 * time.Millisecond
	var err error
	if c.Balancer, err = balance.New(config); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- c.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return c
}

func (c *cluster) do(method, body string) (string, int, error) {
	c.t.Helper()
	var reader io.Reader
	if body != "" {
		reader = strings.NewReader(body)
	}
	req, err := http.NewRequestWithContext(c.t.Context(), method, c.RESTConfig().Host+"/x", reader)
	if err != nil {
		c.t.Fatal(err)
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return "", 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	text, err := io.ReadAll(resp.Body)
	return string(text), resp.StatusCode, err
}

func (c *cluster) get() string {
	c.t.Helper()
	who, _, err := c.do(http.MethodGet, "")
	if err != nil {
		c.t.Fatal(err)
	}
	return who
}

func (c *cluster) backend(address string) *backend {
	c.t.Helper()
	for _, b := range c.backends {
		if b.address == address {
			return b
		}
	}
	c.t.Fatalf("no backend %s", address)
	return nil
}

// eventually waits until f holds.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	testkit.Eventually(t, 20*time.Second, what, testkit.Holds(f))
}

func TestKeepsToOneAndFailsOver(t *testing.T) {
	c := newCluster(t, balance.Config{Name: "n1"})
	first := c.get()
	for range 20 {
		if got := c.get(); got != first {
			t.Fatalf("moved from %s to %s without need", first, got)
		}
	}
	c.backend(first).stop()
	second := c.get()
	if second == first {
		t.Fatal("a dead server answered")
	}
	// A write whose connection cannot be made goes to the next server too. One that was sent on
	// a connection that just broke may fail, but no more than one.
	c.backend(second).stop()
	third, _, err := c.do(http.MethodPost, "body")
	if err != nil {
		third, _, err = c.do(http.MethodPost, "body")
	}
	if err != nil || third == second || third == first {
		t.Fatalf("write: %s, %v", third, err)
	}
	c.backend(first).start(first)
	eventually(t, "the client returns to its own server", func() bool { return c.get() == first })
	c.backend(second).start(second)
}

func TestAllDown(t *testing.T) {
	c := newCluster(t, balance.Config{Name: "n1"})
	for _, b := range c.backends {
		b.stop()
	}
	_, _, err := c.do(http.MethodGet, "")
	if err == nil {
		t.Fatal("no error")
	}
	for _, b := range c.backends {
		if !strings.Contains(err.Error(), b.address) {
			t.Errorf("the error does not name %s: %v", b.address, err)
		}
		b.start(b.address)
	}
	eventually(t, "recovery", func() bool { _, _, err := c.do(http.MethodGet, ""); return err == nil })
}

func TestWritesAreNotRepeated(t *testing.T) {
	c := newCluster(t, balance.Config{Name: "n1"})
	first := c.backend(c.get())
	first.hits.Store(0)
	first.cut.Store(true)
	if who, _, err := c.do(http.MethodPost, "body"); err == nil {
		t.Errorf("a write that a server may have seen was repeated at %s", who)
	}
	total := int32(0)
	for _, b := range c.backends {
		if b != first {
			total += b.hits.Load()
		}
	}
	if first.hits.Load() != 1 || total != 0 {
		t.Errorf("the write arrived %d and %d times", first.hits.Load(), total)
	}
	if who := c.get(); who == first.address {
		t.Error("a server that breaks connections answered")
	}
}

func TestUnavailable(t *testing.T) {
	c := newCluster(t, balance.Config{Name: "n1"})
	first := c.backend(c.get())
	first.status.Store(http.StatusServiceUnavailable)
	if who, status, err := c.do(http.MethodGet, ""); err != nil || status != http.StatusOK || who == first.address {
		t.Errorf("read: %s, %d, %v", who, status, err)
	}
	eventually(t, "a server that is not ready is left alone", func() bool {
		return slices.ContainsFunc(c.Status(), func(s balance.Status) bool { return s.Address == first.address && !s.Healthy })
	})
	if _, status, err := c.do(http.MethodPost, "x"); err != nil || status != http.StatusOK {
		t.Errorf("write: %d, %v", status, err)
	}
	// When all say so, the answer is passed on.
	for _, b := range c.backends {
		b.status.Store(http.StatusServiceUnavailable)
	}
	if _, status, err := c.do(http.MethodGet, ""); err != nil || status != http.StatusServiceUnavailable {
		t.Errorf("all unavailable: %d, %v", status, err)
	}
}

func TestSpread(t *testing.T) {
	count := map[string]int{}
	moved := 0
	for i := range 300 {
		config := balance.Config{Name: fmt.Sprintf("node-%d", i), Servers: []string{"10.0.0.1", "10.0.0.2:6443", "https://10.0.0.3:6443"}}
		b, err := balance.New(config)
		if err != nil {
			t.Fatal(err)
		}
		own := b.Status()[0].Address
		count[own]++
		if err := b.Set([]string{"10.0.0.1", "10.0.0.2"}); err != nil {
			t.Fatal(err)
		}
		if own != "10.0.0.3:6443" && b.Status()[0].Address != own {
			moved++
		}
	}
	for address, n := range count {
		if n < 60 {
			t.Errorf("%s has %d of 300 clients", address, n)
		}
	}
	if len(count) != 3 || moved > 0 {
		t.Errorf("%v; %d clients moved though their server stayed", count, moved)
	}
}

func TestPrefer(t *testing.T) {
	b, err := balance.New(balance.Config{Name: "n1", Servers: []string{"10.0.0.1", "10.0.0.2"}, Prefer: "127.0.0.1:6443"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Set([]string{"10.0.0.3"}); err != nil {
		t.Fatal(err)
	}
	if s := b.Status(); len(s) != 2 || s[0].Address != "127.0.0.1:6443" {
		t.Errorf("got %v", s)
	}
}

func TestConfigErrors(t *testing.T) {
	damaged := filepath.Join(t.TempDir(), "servers")
	if err := os.WriteFile(damaged, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, config := range map[string]balance.Config{
		"no server":    {},
		"odd server":   {Servers: []string{"a b"}},
		"odd URL":      {Servers: []string{"https://"}},
		"damaged file": {Servers: []string{"10.0.0.1"}, File: damaged},
	} {
		if _, err := balance.New(config); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestFollow(t *testing.T) {
	file := filepath.Join(t.TempDir(), "servers")
	client := clientset.NewClientset()
	b, err := balance.New(balance.Config{Name: "n1", Servers: []string{"10.0.0.1"}, File: file})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Follow(ctx, client) }()
	port, name := int32(6443), "https"
	slice := &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Name: "kubernetes", Namespace: "default", Labels: map[string]string{discoveryv1.LabelServiceName: "kubernetes"}},
		Endpoints:  []discoveryv1.Endpoint{{Addresses: []string{"10.0.0.1", "10.0.0.2"}}}, Ports: []discoveryv1.EndpointPort{{Name: &name, Port: &port}},
	}
	api := client.DiscoveryV1().EndpointSlices("default")
	if _, err := api.Create(ctx, slice, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	addresses := func() string {
		var out []string
		for _, s := range b.Status() {
			out = append(out, s.Address)
		}
		slices.Sort(out)
		return strings.Join(out, " ")
	}
	eventually(t, "two servers", func() bool { return addresses() == "10.0.0.1:6443 10.0.0.2:6443" })
	slice.Endpoints[0].Addresses = []string{"10.0.0.2", "10.0.0.3"}
	if _, err := api.Update(ctx, slice, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the other two", func() bool { return addresses() == "10.0.0.2:6443 10.0.0.3:6443" })
	// A cluster without servers is a mistake, not news.
	if err := api.Delete(ctx, slice.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	eventually(t, "the list on disk", func() bool {
		text, err := os.ReadFile(file)
		return err == nil && string(text) == `["10.0.0.2:6443","10.0.0.3:6443"]`
	})
	// A start with an outdated address knows the others.
	again, err := balance.New(balance.Config{Name: "n1", Servers: []string{"10.0.0.1"}, File: file})
	if err != nil || len(again.Status()) != 3 {
		t.Errorf("got %v, %v", again.Status(), err)
	}
}

func TestHTTP2WatchBreaks(t *testing.T) {
	// A stream over HTTP/2 whose server dies has the server looked after at once.
	started := make(chan struct{}, 1)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 2 {
			http.Error(w, "not HTTP/2", http.StatusHTTPVersionNotSupported)
			return
		}
		w.(http.Flusher).Flush()
		started <- struct{}{}
		<-r.Context().Done()
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	t.Cleanup(server.Close)
	pool := x509.NewCertPool()
	pool.AddCert(server.Certificate())
	// The test server's certificate does not have the name that API servers have.
	config := &tls.Config{InsecureSkipVerify: true, VerifyConnection: func(s tls.ConnectionState) error {
		if s.ServerName != "kubernetes.default.svc" {
			return fmt.Errorf("asked for %s", s.ServerName)
		}
		_, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: pool})
		return err
	}}
	b, err := balance.New(balance.Config{Servers: []string{server.URL}, TLS: config, ProbeInterval: 5 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, b.RESTConfig().Host+"/watch", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp, err := b.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != http.StatusOK {
		t.Fatal(resp.Status)
	}
	<-started
	_ = server.Listener.Close()
	server.CloseClientConnections()
	if _, err := io.ReadAll(resp.Body); err == nil {
		t.Error("the stream ended as if it were complete")
	}
	_ = resp.Body.Close()
	eventually(t, "the server is unhealthy", func() bool { return !b.Status()[0].Healthy })
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}
