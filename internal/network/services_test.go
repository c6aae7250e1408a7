package network

import (
	"errors"
	"fmt"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

const clusterIP = "10.43.0.100"

// newCluster makes two machines with two pods each, which serve on port 8080 under their names.
func newCluster(t *testing.T) (l *lab, pods []*pod) { return newClusterOn(t, false) }

// newClusterOn makes the machines on one segment or on routed ones, where pods need the tunnel.
func newClusterOn(t *testing.T, routed bool) (l *lab, pods []*pod) {
	t.Helper()
	l = newLab(t, routed, 2, "")
	for i := range 4 {
		p := l.machines[i/2].newPod(t, fmt.Sprintf("pod-%d", i), "")
		p.serve(t, p.name, 8080)
		pods = append(pods, p)
	}
	return l, pods
}

func ready(pods ...*pod) []discoveryv1.Endpoint {
	var all []discoveryv1.Endpoint
	for _, p := range pods {
		all = append(all, endpoint(p, nil))
	}
	return all
}

// spread expects that n new connections reach exactly the named pods, none of them less than a
// quarter of its share.
func spread(t *testing.T, from *host, network, address string, n int, names ...string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s %s from %s", network, address, from.ip), func() error {
		got := map[string]int{}
		for range n {
			name, _, err := from.ask(network, address)
			if err != nil {
				return err
			}
			got[name]++
		}
		if len(got) != len(names) {
			return fmt.Errorf("reached %v; want %v", got, names)
		}
		for _, name := range names {
			if got[name] < n/len(names)/4 {
				return fmt.Errorf("reached %v; want all of %v alike", got, names)
			}
		}
		return nil
	})
}

// refused expects that connections are refused at once, not lost.
func refused(t *testing.T, from *host, network, address string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s %s from %s", network, address, from.ip), func() error {
		start := time.Now()
		_, _, err := from.ask(network, address)
		// The kernel tells a process of the machine itself that its datagram was not sent.
		local := network == "udp" && errors.Is(err, syscall.EPERM)
		if (!errors.Is(err, syscall.ECONNREFUSED) && !local) || time.Since(start) > time.Second {
			return fmt.Errorf("got %v after %s; want a refusal at once", err, time.Since(start))
		}
		return nil
	})
}

// lost expects that nothing comes back.
func lost(t *testing.T, from *host, address string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s from %s", address, from.ip), func() error {
		c, err := from.dial("tcp", address)
		if err == nil {
			c.Close()
			return errors.New("connected")
		}
		if errors.Is(err, syscall.ECONNREFUSED) {
			return err
		}
		return nil
	})
}

func TestClusterIP(t *testing.T) {
	t.Run("direct", func(t *testing.T) { testClusterIP(t, false) })
	t.Run("tunnel", func(t *testing.T) { testClusterIP(t, true) })
}

func testClusterIP(t *testing.T, routed bool) {
	l, pods := newClusterOn(t, routed)
	client := l.machines[0].newPod(t, "client", "")
	distant := l.machines[1].newPod(t, "distant", "")
	l.addService(t, service("web", clusterIP, nil), ready(pods...)...)
	address := clusterIP + ":80"
	for _, network := range []string{"tcp", "udp"} {
		for _, from := range []*host{client.host, distant.host, l.machines[0].host, l.machines[1].host} {
			spread(t, from, network, address, 80, "pod-0", "pod-1", "pod-2", "pod-3")
		}
	}
	// Pods see each other's addresses.
	l.setEndpoints(t, "web", ready(pods[3])...)
	answers(t, client.host, "tcp", address, "pod-3", client.ip.String())
	// An endpoint that was removed gets no new connection, UDP included.
	spread(t, client.host, "udp", address, 20, "pod-3")
	spread(t, client.host, "tcp", address, 20, "pod-3")
	// Without endpoints, a refusal; also for an address that no service has.
	l.setEndpoints(t, "web")
	for _, from := range []*host{client.host, l.machines[0].host} {
		refused(t, from, "tcp", address)
		refused(t, from, "udp", address)
		refused(t, from, "tcp", "10.43.9.9:80")
	}
	// And back.
	l.setEndpoints(t, "web", ready(pods[1])...)
	answers(t, client.host, "tcp", address, "pod-1", client.ip.String())
	answers(t, client.host, "udp", address, "pod-1", client.ip.String())
}

// TestHostEndpoints has endpoints that are the machines themselves, as the API servers are, on the
// caller's own node and on another.
func TestHostEndpoints(t *testing.T) {
	for _, routed := range []bool{false, true} {
		t.Run(fmt.Sprintf("routed-%v", routed), func(t *testing.T) {
			l, pods := newClusterOn(t, routed)
			var endpoints []discoveryv1.Endpoint
			for _, m := range l.machines {
				m.serve(t, m.name, 8080)
				endpoints = append(endpoints, discoveryv1.Endpoint{Addresses: []string{m.ip.String()}, NodeName: &m.name})
			}
			l.addService(t, service("kubernetes", "10.43.0.1", nil), endpoints...)
			for _, network := range []string{"tcp", "udp"} {
				for _, from := range []*host{pods[0].host, pods[3].host, l.machines[0].host, l.machines[1].host} {
					spread(t, from, network, "10.43.0.1:80", 40, "node-0", "node-1")
				}
			}
		})
	}
}

func TestHairpin(t *testing.T) {
	l, pods := newCluster(t)
	l.addService(t, service("self", clusterIP, nil), ready(pods[0])...)
	l.addService(t, service("self2", "10.43.0.101", nil), ready(pods[2])...)
	for _, network := range []string{"tcp", "udp"} {
		answers(t, pods[0].host, network, clusterIP+":80", "pod-0", "")
		answers(t, pods[2].host, network, "10.43.0.101:80", "pod-2", "")
		// The neighbour's source is kept.
		answers(t, pods[1].host, network, clusterIP+":80", "pod-0", pods[1].ip.String())
	}
}

// TestUDPClientFollowsEndpoints keeps one UDP socket, whose connection the kernel tracks, while the
// endpoint is replaced.
func TestUDPClientFollowsEndpoints(t *testing.T) {
	l, pods := newCluster(t)
	client := l.machines[0].newPod(t, "client", "")
	l.addService(t, service("web", clusterIP, nil), ready(pods[0])...)
	answers(t, client.host, "udp", clusterIP+":80", "pod-0", "")
	c, err := client.dial("udp", clusterIP+":80")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, p := range []*pod{pods[0], pods[3], pods[1]} {
		l.setEndpoints(t, "web", ready(p)...)
		eventually(t, "same socket", func() error {
			name, _, err := exchange(c)
			if err == nil && name != p.name {
				err = fmt.Errorf("%s answered; want %s", name, p.name)
			}
			return err
		})
	}
}

func TestNodePort(t *testing.T) {
	l, pods := newCluster(t)
	outside := l.plug(t)
	l.addService(t, service("web", clusterIP, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeNodePort
		s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30080
		s.Spec.ExternalIPs = []string{"203.0.113.7"}
	}), ready(pods...)...)
	all := []string{"pod-0", "pod-1", "pod-2", "pod-3"}
	for _, m := range l.machines {
		address := fmt.Sprintf("%s:30080", m.ip)
		for _, network := range []string{"tcp", "udp"} {
			spread(t, outside, network, address, 80, all...)
			spread(t, m.host, network, address, 80, all...)
			spread(t, pods[0].host, network, address, 80, all...)
		}
	}
	// Any address of the machine will do, such as a virtual one on loopback.
	m := l.machines[0]
	giveAddress(t, m.host, "lo", "192.0.2.200/32")
	spread(t, outside, "tcp", "192.0.2.200:30080", 40, all...)
	refused(t, m.host, "tcp", "127.0.0.1:30080")
	// External addresses, once routed to a node.
	route(t, outside, "203.0.113.7/32", m.ip)
	spread(t, outside, "tcp", "203.0.113.7:80", 40, all...)
	l.setEndpoints(t, "web")
	refused(t, outside, "tcp", fmt.Sprintf("%s:30080", m.ip))
	refused(t, outside, "udp", fmt.Sprintf("%s:30080", m.ip))
}

func TestLocalPolicies(t *testing.T) {
	l, pods := newCluster(t)
	outside := l.plug(t)
	one, two := l.machines[0], l.machines[1]
	svc := service("web", clusterIP, func(s *corev1.Service) {
		s.Spec.Type = corev1.ServiceTypeLoadBalancer
		s.Spec.Ports[0].NodePort = 30080
		s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
		s.Spec.HealthCheckNodePort = 31000
		s.Spec.LoadBalancerSourceRanges = []string{outside.ip.String() + "/32"}
		s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.8"}}
	})
	l.addService(t, svc, ready(pods[0])...)
	port := func(m *machine) string { return fmt.Sprintf("%s:30080", m.ip) }
	// The source is kept, and the node without endpoints does not answer outside clients.
	answers(t, outside, "tcp", port(one), "pod-0", outside.ip.String())
	lost(t, outside, port(two))
	// Inside the cluster every node answers.
	answers(t, two.host, "tcp", port(two), "pod-0", "")
	answers(t, pods[3].host, "tcp", port(two), "pod-0", "")
	// The cluster address serves this node's pods only.
	answers(t, pods[1].host, "tcp", clusterIP+":80", "pod-0", pods[1].ip.String())
	lost(t, pods[2].host, clusterIP+":80")

	if got := health(t, outside, one.ip.String()); got != http.StatusOK {
		t.Errorf("health of the node with an endpoint: %d", got)
	}
	if got := health(t, outside, two.ip.String()); got != http.StatusServiceUnavailable {
		t.Errorf("health of the node without: %d", got)
	}

	// The balancer's address lets only its source ranges pass.
	stranger := l.plug(t)
	for _, h := range []*host{outside, stranger} {
		route(t, h, "203.0.113.8/32", one.ip)
	}
	answers(t, outside, "tcp", "203.0.113.8:80", "pod-0", outside.ip.String())
	lost(t, stranger, "203.0.113.8:80")

	// An endpoint that terminates but serves is better than none; one that is ready better still.
	dying := func(e *discoveryv1.Endpoint) {
		e.Conditions = discoveryv1.EndpointConditions{Ready: ptr.To(false), Serving: ptr.To(true), Terminating: ptr.To(true)}
	}
	l.setEndpoints(t, "web", endpoint(pods[0], dying), endpoint(pods[2], nil))
	answers(t, outside, "tcp", port(one), "pod-0", outside.ip.String())
	answers(t, outside, "tcp", port(two), "pod-2", outside.ip.String())
	l.setEndpoints(t, "web", endpoint(pods[0], dying), endpoint(pods[1], nil))
	answers(t, outside, "tcp", port(one), "pod-1", outside.ip.String())
	spread(t, outside, "tcp", port(one), 10, "pod-1")
}

func health(t *testing.T, from *host, ip string) int {
	t.Helper()
	code := 0
	eventually(t, "health check of "+ip, func() error {
		c, err := from.dial("tcp", ip+":31000")
		if err != nil {
			return err
		}
		defer c.Close()
		if _, err := fmt.Fprintf(c, "GET /healthz HTTP/1.0\r\n\r\n"); err != nil {
			return err
		}
		_, err = fmt.Fscanf(c, "HTTP/1.0 %d", &code)
		return err
	})
	return code
}

func TestSessionAffinity(t *testing.T) {
	l, pods := newCluster(t)
	clients := []*pod{l.machines[0].newPod(t, "a", ""), l.machines[0].newPod(t, "b", ""), l.machines[0].newPod(t, "c", "")}
	timeout := int32(2)
	l.addService(t, service("web", clusterIP, func(s *corev1.Service) {
		s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		s.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	}), ready(pods...)...)
	address := clusterIP + ":80"
	stuck := map[*pod]string{}
	for _, c := range clients {
		eventually(t, "first answer", func() (err error) {
			stuck[c], _, err = c.ask("tcp", address)
			return err
		})
		spread(t, c.host, "tcp", address, 20, stuck[c])
	}
	// Another endpoint's departure changes nothing; one's own means another, to stick to then.
	c := clients[0]
	var others []*pod
	var mine *pod
	for _, p := range pods {
		if p.name == stuck[c] {
			mine = p
		} else {
			others = append(others, p)
		}
	}
	l.setEndpoints(t, "web", ready(mine, others[0])...)
	spread(t, c.host, "tcp", address, 20, mine.name)
	l.setEndpoints(t, "web", ready(others[0], others[1])...)
	eventually(t, "another endpoint", func() error {
		name, _, err := c.ask("tcp", address)
		if err == nil && name == mine.name {
			err = errors.New("still the removed endpoint")
		}
		stuck[c] = name
		return err
	})
	spread(t, c.host, "tcp", address, 20, stuck[c])
	// After the timeout the choice is free again.
	eventually(t, "free choice after the timeout", func() error {
		<-time.After(time.Duration(timeout)*time.Second + 100*time.Millisecond) // the time under test
		name, _, err := c.ask("tcp", address)
		if err == nil && name == stuck[c] {
			err = errors.New("the same endpoint, perhaps by chance")
		}
		return err
	})
}

// TestRestartKeepsConnections stops a machine's network, and starts it again while the API has
// changed: connections go on, and the change is caught up with.
func TestRestartKeepsConnections(t *testing.T) {
	l, pods := newCluster(t)
	m, outside := l.machines[0], l.plug(t)
	l.addService(t, service("web", clusterIP, func(s *corev1.Service) {
		s.Spec.Type, s.Spec.Ports[0].NodePort = corev1.ServiceTypeNodePort, 30080
	}), ready(pods[0], pods[3])...)
	l.addService(t, service("gone", "10.43.0.101", nil), ready(pods[0])...)
	port := fmt.Sprintf("%s:30080", m.ip)
	spread(t, outside, "tcp", port, 40, "pod-0", "pod-3")
	answers(t, pods[1].host, "tcp", "10.43.0.101:80", "pod-0", "")
	old, err := outside.dial("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	name, _, err := exchange(old)
	if err != nil {
		t.Fatal(err)
	}
	flowing := func(when string) {
		t.Helper()
		if again, _, err := exchange(old); err != nil || again != name {
			t.Fatalf("connection %s: %s, %v; was to %s", when, again, err, name)
		}
	}

	m.stop()
	flowing("while the network is away")
	spread(t, outside, "tcp", port, 40, "pod-0", "pod-3")
	if err := l.client.CoreV1().Services("default").Delete(t.Context(), "gone", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	l.setEndpoints(t, "web", ready(pods[0], pods[1], pods[3])...)
	// New connections must not fail at any moment of the start.
	stop, failed := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				failed <- nil
				return
			default:
			}
			if _, _, err := outside.ask("tcp", port); err != nil {
				failed <- err
				return
			}
		}
	}()
	m.start(t)
	close(stop)
	if err := <-failed; err != nil {
		t.Errorf("new connection during the start: %v", err)
	}
	flowing("after the start")
	spread(t, outside, "tcp", port, 60, "pod-0", "pod-1", "pod-3")
	refused(t, pods[1].host, "tcp", "10.43.0.101:80")
}

// TestBrokenTableIsRepaired has somebody else delete our table.
func TestBrokenTableIsRepaired(t *testing.T) {
	l, pods := newCluster(t)
	m := l.machines[0]
	l.addService(t, service("web", clusterIP, nil), ready(pods[0])...)
	answers(t, pods[1].host, "tcp", clusterIP+":80", "pod-0", "")
	if err := removeTable(m); err != nil {
		t.Fatal(err)
	}
	// The next change fails and makes the proxy look; everything is back, not the change alone.
	l.addService(t, service("new", "10.43.0.101", nil), ready(pods[0])...)
	answers(t, pods[1].host, "tcp", "10.43.0.101:80", "pod-0", "")
	answers(t, pods[1].host, "tcp", clusterIP+":80", "pod-0", "")
}

func TestManyEndpoints(t *testing.T) {
	l, pods := newCluster(t)
	var all []discoveryv1.Endpoint
	for i := range 999 {
		e := endpoint(pods[0], nil)
		e.Addresses = []string{fmt.Sprintf("10.42.%d.%d", 100+i/200, i%200+2)}
		all = append(all, e)
	}
	l.addService(t, service("web", clusterIP, nil), all...)
	eventually(t, "large service", func() error {
		_, _, err := pods[1].ask("tcp", clusterIP+":80")
		if err == nil || errors.Is(err, syscall.ECONNREFUSED) {
			return fmt.Errorf("not in place yet: %v", err)
		}
		if !strings.Contains(err.Error(), "timeout") && !errors.Is(err, syscall.EHOSTUNREACH) && !errors.Is(err, syscall.ENETUNREACH) {
			return err
		}
		return nil
	})
	l.setEndpoints(t, "web", ready(pods[0])...)
	answers(t, pods[1].host, "tcp", clusterIP+":80", "pod-0", "")
}
