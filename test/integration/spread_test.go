package integration

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/local"
)

// Clients come by a load balancer that knows nothing but addresses and /readyz. One server after the other is restarted as an
// administrator would: no request fails, none is tried twice, watches lose nothing, and in the end every server has clients again.
func TestClientsSpread(t *testing.T) {
	lb := startBalancer(t)
	c := emptyCluster(t, 3, 0)
	progress, err := c.up(t.Context(), "--api-dns-name", lb.name(), "--connection-age", "10s", "--shutdown-delay-duration", "2s")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range c.Machines {
		lb.add(t, m)
	}
	if err := c.WaitNodes(t.Context(), progress); err != nil {
		t.Fatal(err)
	}
	if config, err := c.Config(); err != nil || config.Host != "https://"+lb.name() {
		t.Fatalf("the kubeconfig points at %s: %v", config.Host, err)
	}
	eventually(t, bound, "the load balancer has all servers", func() error { return lb.ready(len(c.Machines)) })
	c.kubectl(t, "get", "nodes")

	clients := make([]*reader, 9)
	for i := range clients {
		clients[i] = readBy(t, c.ownConnection(t))
	}
	follow := follows(t, c.ownConnection(t), "default")
	writer := c.ownConnection(t).CoreV1().ConfigMaps("default")
	for i, m := range c.Machines {
		name := fmt.Sprintf("restart-%d", i)
		p, began := invocationOf(t, m), time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), bound)
		if err := m.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		cancel()
		t.Logf("%s has stopped after %v", m.Name, time.Since(began).Round(time.Millisecond))
		eventually(t, bound, "it is written", func() error {
			_, err := writer.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			return err
		})
		p.start(t)
		eventually(t, bound, "all servers are ready", func() error { return lb.ready(len(c.Machines)) })
		t.Logf("it is ready again after %v", time.Since(began).Round(time.Millisecond))
		eventually(t, bound, "the watch has seen it", func() error { return follow(name) })
		eventually(t, bound, "every server has clients", lb.balanced)
		t.Logf("connections after %v, and ever: %s", time.Since(began).Round(time.Millisecond), lb.counts())
	}
	for i, r := range clients {
		if n := r.done(t); n == 0 {
			t.Errorf("client %d has read nothing", i)
		}
	}
}

// ownConnection speaks to the API by a connection that no other client has, as another process would.
func (c *cluster) ownConnection(t *testing.T) kubernetes.Interface {
	t.Helper()
	config, err := c.Config()
	if err != nil {
		t.Fatal(err)
	}
	config.Dial = new(net.Dialer).DialContext // client-go shares connections between those that dial alike
	return clientFor(t, config)
}

// reader asks one thing after the other.
type reader struct {
	stop  context.CancelFunc
	ended chan error
	count atomic.Int64
}

// readBy reads by a client until done is called, or a request fails.
func readBy(t *testing.T, client kubernetes.Interface) *reader {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	r := &reader{stop: stop, ended: make(chan error, 1)}
	go func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			if _, err := client.CoreV1().Namespaces().Get(ctx, "default", metav1.GetOptions{}); err != nil {
				if ctx.Err() != nil {
					err = nil
				}
				r.ended <- err
				return
			}
			r.count.Add(1)
			<-tick.C
		}
	}()
	return r
}

// done ends it, and tells how many requests were answered; all that were made.
func (r *reader) done(t *testing.T) int64 {
	t.Helper()
	r.stop()
	if err := <-r.ended; err != nil {
		t.Errorf("after %d requests: %v", r.count.Load(), err)
	}
	return r.count.Load()
}

// follows watches the namespace's ConfigMaps; the function that it returns tells whether one was seen to be made.
func follows(t *testing.T, client kubernetes.Interface, ns string) func(name string) error {
	t.Helper()
	list, err := client.CoreV1().ConfigMaps(ns).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	var seen sync.Map
	go func() {
		version := list.ResourceVersion
		for t.Context().Err() == nil {
			w, err := client.CoreV1().ConfigMaps(ns).Watch(t.Context(), metav1.ListOptions{ResourceVersion: version})
			if err != nil {
				continue
			}
			for event := range w.ResultChan() {
				if m, ok := event.Object.(*corev1.ConfigMap); ok {
					version = m.ResourceVersion
					seen.Store(m.Name, true)
				}
			}
		}
	}()
	return func(name string) error {
		if _, ok := seen.Load(name); !ok {
			return fmt.Errorf("%s was not", name)
		}
		return nil
	}
}

// balancer is a load balancer as many have it: by turns it passes connections to the machines whose /readyz is well. It looks at
// that ten times a second.
type balancer struct {
	listener net.Listener

	mu       sync.Mutex
	backends []*backend
	turn     int
}

type backend struct {
	machine *local.Machine
	well    atomic.Bool
	open    atomic.Int64
	all     atomic.Int64
}

func (b *backend) address() string { return net.JoinHostPort(b.machine.IP.String(), "6443") }

func startBalancer(t *testing.T) *balancer {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	lb := &balancer{listener: listener}
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			conns.Go(func() { lb.pass(t.Context(), conn) })
		}
	})
	t.Cleanup(func() {
		_ = listener.Close()
		conns.Wait()
	})
	return lb
}

// name is what the servers are told.
func (lb *balancer) name() string {
	return strings.Replace(lb.listener.Addr().String(), "127.0.0.1", "localhost", 1)
}

// add puts a machine behind the balancer, which keeps an eye on it until the test ends.
func (lb *balancer) add(t *testing.T, m *local.Machine) {
	b := &backend{machine: m}
	lb.mu.Lock()
	lb.backends = append(lb.backends, b)
	lb.mu.Unlock()
	client := &http.Client{Timeout: time.Second, Transport: &http.Transport{
		DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}}
	tick := time.NewTicker(100 * time.Millisecond)
	go func() {
		defer tick.Stop()
		for t.Context().Err() == nil {
			b.well.Store(b.probe(t.Context(), client) == nil)
			<-tick.C
		}
	}()
}

func (b *backend) probe(ctx context.Context, client *http.Client) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+b.address()+"/readyz", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// next is whose turn it is; nil if no machine is well.
func (lb *balancer) next() *backend {
	lb.mu.Lock()
	defer lb.mu.Unlock()
	for range lb.backends {
		lb.turn++
		if b := lb.backends[lb.turn%len(lb.backends)]; b.well.Load() {
			return b
		}
	}
	return nil
}

// pass carries bytes both ways until one side has no more.
func (lb *balancer) pass(ctx context.Context, conn net.Conn) {
	defer func() { _ = conn.Close() }()
	b := lb.next()
	if b == nil {
		return
	}
	server, err := new(net.Dialer).DialContext(ctx, "tcp", b.address())
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	b.open.Add(1)
	b.all.Add(1)
	defer b.open.Add(-1)
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(conn, server)
		_ = conn.Close()
	})
	_, _ = io.Copy(server, conn)
	_ = server.Close()
	back.Wait()
}

// ready tells whether n machines are well.
func (lb *balancer) ready(n int) error {
	well := 0
	for _, b := range lb.backends {
		if b.well.Load() {
			well++
		}
	}
	if well != n {
		return fmt.Errorf("%d are well", well)
	}
	return nil
}

// balanced tells whether every machine has a fair part of the connections.
func (lb *balancer) balanced() error {
	for _, b := range lb.backends {
		if b.open.Load() < 2 {
			return fmt.Errorf("%s has %d connections", b.machine.Name, b.open.Load())
		}
	}
	return nil
}

// counts are the connections that each machine has, and those that it ever had.
func (lb *balancer) counts() string {
	var all []string
	for _, b := range lb.backends {
		all = append(all, fmt.Sprintf("%s %d of %d", b.machine.Name, b.open.Load(), b.all.Load()))
	}
	return strings.Join(all, ", ")
}
