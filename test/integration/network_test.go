package integration

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"barque.dev/internal/local"
)

// TestNetwork is the network as pods, machines and the outside meet it.
func TestNetwork(t *testing.T) {
	t.Parallel()
	l := newNetLab(t, shared)
	for _, tt := range []struct {
		name string
		test func(*testing.T, *netLab)
	}{
		{"Addresses", testPodAddresses},
		{"PodToPod", testPodToPod},
		{"PodsAndMachines", testPodsAndMachines},
		{"Masquerade", testMasquerade},
		{"ClusterIP", testClusterIP},
		{"NoEndpoints", testNoEndpoints},
		{"ServiceChanges", testServiceChanges},
		{"NodePort", testNodePort},
		{"ExternalTrafficPolicyLocal", testExternalLocal},
		{"InternalTrafficPolicyLocal", testInternalLocal},
		{"SessionAffinity", testSessionAffinity},
		{"Hairpin", testHairpin},
		{"HostPort", testHostPort},
		{"Readiness", testReadiness},
		{"ManualEndpointSlices", testManualSlices},
		{"ManualEndpoints", testManualEndpoints},
		{"ServiceNames", testServiceNames},
		{"StatefulSetNames", testStatefulSetNames},
		{"ResolverConfiguration", testResolverConfiguration},
		{"KubernetesService", testKubernetesService},
		{"RollingUpdate", testRollingUpdate},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			tt.test(t, l)
		})
	}
}

func url(host string, port int32) string {
	return "http://" + net.JoinHostPort(host, strconv.Itoa(int(port))) + "/"
}

func (l *netLab) ip(pod string) string { return l.pods[pod].Status.PodIP }

// Every pod has an address of its own from its node's range, and knows its machine's.
func testPodAddresses(t *testing.T, l *netLab) {
	seen := map[string]bool{}
	for name, p := range l.pods {
		node, err := l.api.CoreV1().Nodes().Get(t.Context(), p.Spec.NodeName, metav1.GetOptions{})
		if err != nil {
			t.Fatal(err)
		}
		pods := netip.MustParsePrefix(node.Spec.PodCIDR)
		ip, err := netip.ParseAddr(p.Status.PodIP)
		if err != nil || !pods.Contains(ip) {
			t.Errorf("%s has address %q, its node's range is %s", name, p.Status.PodIP, pods)
		}
		if seen[p.Status.PodIP] {
			t.Errorf("address %s twice", ip)
		}
		seen[p.Status.PodIP] = true
		if want := l.machine(t, p.Spec.NodeName).IP.String(); p.Status.HostIP != want {
			t.Errorf("%s has host address %s, want %s", name, p.Status.HostIP, want)
		}
	}
}

func (l *netLab) machine(t testing.TB, name string) *local.Machine {
	t.Helper()
	for _, m := range l.Machines {
		if m.Name == name {
			return m
		}
	}
	t.Fatalf("no machine %s", name)
	return nil
}

// Pods reach each other by their own addresses, on one machine and across, with packets that
// need fragments and streams of many segments.
func testPodToPod(t *testing.T, l *netLab) {
	for _, to := range []string{"twin-1", "echo-2", "echo-3"} {
		out := l.must(t, "echo-1", "get", url(l.ip(to), 8080)+"?size=300000")
		if want := fmt.Sprintf("%s %s 0 300000", to, l.ip("echo-1")); out != want {
			t.Errorf("echo-1 to %s: %q, want %q", to, out, want)
		}
		for _, size := range []int{100, 1400, 8000, 60000} {
			out := l.must(t, "echo-1", "udp", net.JoinHostPort(l.ip(to), "8081"), strconv.Itoa(size))
			if want := fmt.Sprintf("%s %d", to, size); out != want {
				t.Errorf("echo-1 to %s, %d bytes by UDP: %q, want %q", to, size, out, want)
			}
		}
	}
}

// Machines reach pods, their own and others'; pods reach machines, by the machines' addresses.
func testPodsAndMachines(t *testing.T, l *netLab) {
	for _, m := range l.Machines {
		for name := range l.pods {
			host, from := l.answers(t, m, url(l.ip(name), 8080))
			if host != name {
				t.Errorf("%s to %s: %s answers", m.Name, name, host)
			}
			if _, err := netip.ParseAddr(from); err != nil {
				t.Errorf("%s sees %q", name, from)
			}
		}
	}
	for i, m := range l.Machines {
		listener, err := listenOn(m, netip.AddrPortFrom(m.IP, 0).String())
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = listener.Close() }()
		serveCaller(t, listener)
		out := l.must(t, "echo-1", "get", "http://"+listener.Addr().String())
		seen := l.Machines[0].IP.String() // other machines are outside the pods' range
		if i == 0 {
			seen = l.ip("echo-1")
		}
		if want := "here " + seen + " 0 0"; out != want {
			t.Errorf("pod on machine 1 to machine %d: %q, want %q", i+1, out, want)
		}
	}
}

// listenOn listens inside a machine, or on the host where m is nil.
func listenOn(m *local.Machine, address string) (listener net.Listener, err error) {
	if m == nil {
		return net.Listen("tcp", address)
	}
	err = machineNamespace(m).Do(func() error {
		listener, err = net.Listen("tcp", address)
		return err
	})
	return listener, err
}

// serveCaller answers as netprobe does, under the name "here", until the listener closes.
func serveCaller(t *testing.T, listener net.Listener) {
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		_, _ = fmt.Fprintf(w, "here %s 0\n", from)
	})}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close() })
}

// Outside, pods appear with their machine's address.
func testMasquerade(t *testing.T, l *netLab) {
	listener, err := listenOn(nil, netip.AddrPortFrom(l.Subnet.Masked().Addr().Next(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	serveCaller(t, listener)
	for name, p := range l.pods {
		want := "here " + l.machine(t, p.Spec.NodeName).IP.String() + " 0 0"
		if out := l.must(t, name, "get", "http://"+listener.Addr().String()); out != want {
			t.Errorf("%s: %q, want %q", name, out, want)
		}
	}
}

// A cluster address leads to every endpoint, from pods (whose address is kept) and machines.
func testClusterIP(t *testing.T, l *netLab) {
	s := l.service(t, "cluster-ip", nil, "app", "echo")
	for _, m := range l.Machines {
		l.answers(t, m, url(s.Spec.ClusterIP, 80))
	}
	const requests = 80
	counts := map[string]int{}
	eventually(t, 15*time.Second, "all endpoints serve", func() error {
		clear(counts)
		for line := range strings.Lines(l.must(t, "echo-2", "get", url("cluster-ip", 80), strconv.Itoa(requests))) {
			var host, from string
			if _, err := fmt.Sscan(line, &host, &from); err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			counts[host]++
			if host != "echo-2" && from != l.ip("echo-2") {
				t.Errorf("%s sees %s, want the client's own address %s", host, from, l.ip("echo-2"))
			}
		}
		if len(counts) != len(l.pods) {
			return fmt.Errorf("served by %v", counts)
		}
		return nil
	})
	for host, n := range counts {
		if n < requests/len(l.pods)/4 { // 20 expected; fewer than 5 has odds of one in 10⁵
			t.Errorf("%s served %d of %d: %v", host, n, requests, counts)
		}
	}
	// UDP through the same service.
	if out := l.must(t, "echo-2", "udp", "cluster-ip:81", "5000", "5"); strings.Count(out, " 5000") != 5 {
		t.Errorf("UDP: %q", out)
	}
}

// A service that nobody serves refuses at once rather than let clients wait.
func testNoEndpoints(t *testing.T, l *netLab) {
	s := l.service(t, "nobody", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, "app", "none")
	for what, address := range map[string]netip.AddrPort{
		"cluster address": netip.AddrPortFrom(netip.MustParseAddr(s.Spec.ClusterIP), 80),
		"node port":       netip.AddrPortFrom(l.Machines[0].IP, uint16(s.Spec.Ports[0].NodePort)),
	} {
		eventually(t, 10*time.Second, what+" refuses", func() error {
			began := time.Now()
			conn, err := dialFrom(l.Machines[1])(t.Context(), "tcp", address.String())
			if err == nil {
				_ = conn.Close()
			}
			if took := time.Since(began); !errors.Is(err, syscall.ECONNREFUSED) || took > time.Second {
				return fmt.Errorf("%v after %v", err, took)
			}
			return nil
		})
	}
	out, err := l.run(t.Context(), "echo-1", nil, "get", url("nobody", 80))
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("from a pod: %q, %v; want connection refused", out, err)
	}
}

// A service's ports and selector can change, and after its deletion nothing answers.
func testServiceChanges(t *testing.T, l *netLab) {
	s := l.service(t, "changing", nil, "name", "echo-1")
	if host, _ := l.answers(t, l.Machines[1], url(s.Spec.ClusterIP, 80)); host != "echo-1" {
		t.Errorf("%s answers, want echo-1", host)
	}
	s.Spec.Ports[0].Port = 8000
	s.Spec.Selector = map[string]string{"name": "echo-3"}
	if _, err := l.api.CoreV1().Services(l.ns).Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "new port and selector", func() error {
		host, _, err := l.get(t.Context(), l.Machines[1], url(s.Spec.ClusterIP, 8000))
		if err == nil && host != "echo-3" {
			err = fmt.Errorf("%s answers", host)
		}
		return err
	})
	if err := l.api.CoreV1().Services(l.ns).Delete(t.Context(), s.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, "nothing answers", func() error {
		if _, _, err := l.get(t.Context(), l.Machines[1], url(s.Spec.ClusterIP, 8000)); err == nil {
			return errors.New("a deleted service answers")
		}
		slices, err := l.api.DiscoveryV1().EndpointSlices(l.ns).List(t.Context(), metav1.ListOptions{LabelSelector: "kubernetes.io/service-name=" + s.Name})
		if err == nil && len(slices.Items) > 0 {
			err = fmt.Errorf("%d slices are left", len(slices.Items))
		}
		return err
	})
}

// A node port answers at every machine and at the virtual IP, wherever the pods are.
func testNodePort(t *testing.T, l *netLab) {
	s := l.service(t, "node-port", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeNodePort }, "name", "echo-2")
	port := s.Spec.Ports[0].NodePort
	for _, address := range []netip.Addr{l.Machines[0].IP, l.Machines[1].IP, l.Machines[2].IP, l.VIP} {
		if host, _ := l.answers(t, nil, url(address.String(), port)); host != "echo-2" {
			t.Errorf("%s answers at %s", host, address)
		}
	}
	// From inside: a pod and a machine.
	l.answers(t, l.Machines[2], url(l.Machines[2].IP.String(), port))
	l.must(t, "echo-3", "get", url(l.Machines[0].IP.String(), port))
}

// With the policy Local, a machine serves outside clients from its own pods alone, which see
// the client's address.
func testExternalLocal(t *testing.T, l *netLab) {
	s := l.service(t, "external-local", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalTrafficPolicy = corev1.ServiceTypeNodePort, corev1.ServiceExternalTrafficPolicyLocal
	}, "name", "echo-2")
	port := s.Spec.Ports[0].NodePort
	outside := l.Subnet.Masked().Addr().Next().String()
	if host, from := l.answers(t, nil, url(l.Machines[1].IP.String(), port)); host != "echo-2" || from != outside {
		t.Errorf("%s sees %s, want echo-2 to see %s", host, from, outside)
	}
	// Clients inside are served from anywhere.
	eventually(t, 10*time.Second, "a pod is served", func() error {
		out, err := l.run(t.Context(), "echo-1", nil, "get", url(l.Machines[0].IP.String(), port))
		if err == nil && !strings.HasPrefix(out, "echo-2 ") {
			err = errors.New(out)
		}
		return err
	})
	if host, _, err := l.get(t.Context(), nil, url(l.Machines[0].IP.String(), port)); err == nil {
		t.Errorf("a machine without pods answers (by %s)", host)
	}
}

// With internalTrafficPolicy Local, a pod gets endpoints on its own machine or none.
func testInternalLocal(t *testing.T, l *netLab) {
	s := l.service(t, "internal-local", func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}, "app", "echo")
	for _, m := range l.Machines {
		l.answers(t, m, url(s.Spec.ClusterIP, 80))
	}
	out := l.must(t, "echo-3", "get", url(s.Spec.ClusterIP, 80), "10")
	if strings.Count(out, "echo-3 ") != 10 {
		t.Errorf("from echo-3: %q, want itself ten times", out)
	}
	lonely := l.service(t, "internal-lonely", func(s *corev1.Service) {
		s.Spec.InternalTrafficPolicy = ptr.To(corev1.ServiceInternalTrafficPolicyLocal)
	}, "name", "echo-3")
	l.answers(t, l.Machines[2], url(lonely.Spec.ClusterIP, 80))
	if out, err := l.run(t.Context(), "echo-2", nil, "get", url(lonely.Spec.ClusterIP, 80)); err == nil {
		t.Errorf("a pod on another machine is served: %q", out)
	}
}

// With session affinity, a client stays with its endpoint.
func testSessionAffinity(t *testing.T, l *netLab) {
	s := l.service(t, "sticky", func(s *corev1.Service) { s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP }, "app", "echo")
	l.answers(t, l.Machines[1], url(s.Spec.ClusterIP, 80))
	eventually(t, 10*time.Second, "one endpoint for one client", func() error {
		hosts := map[string]bool{}
		for line := range strings.Lines(l.must(t, "echo-2", "get", url(s.Spec.ClusterIP, 80), "20")) {
			hosts[strings.Fields(line)[0]] = true
		}
		if len(hosts) != 1 {
			return fmt.Errorf("%v served one client", hosts)
		}
		return nil
	})
}

// A pod reaches itself through its own service.
func testHairpin(t *testing.T, l *netLab) {
	s := l.service(t, "hairpin", nil, "name", "twin-1")
	l.answers(t, l.Machines[0], url(s.Spec.ClusterIP, 80))
	if out := l.must(t, "twin-1", "get", url("hairpin", 80), "3"); strings.Count(out, "twin-1 ") != 3 {
		t.Errorf("%q", out)
	}
	if out := l.must(t, "twin-1", "udp", "hairpin:81", "100", "3"); strings.Count(out, "twin-1 ") != 3 {
		t.Errorf("UDP: %q", out)
	}
}

// A host port leads from the machine's address into the pod, for as long as the pod is there.
func testHostPort(t *testing.T, l *netLab) {
	const port = 18080
	p := l.probe("host-port", l.Machines[1])
	p.Spec.Containers[0].Ports[0].HostPort = port
	l.create(t, p)
	l.awaitReady(t, p.Name)
	at := url(l.Machines[1].IP.String(), port)
	if host, from := l.answers(t, nil, at); host != p.Name || from != l.Subnet.Masked().Addr().Next().String() {
		t.Errorf("%s sees %s", host, from)
	}
	l.answers(t, l.Machines[1], at)
	if out := l.must(t, "echo-1", "get", at); !strings.HasPrefix(out, p.Name+" ") {
		t.Errorf("from a pod: %q", out)
	}
	if err := l.api.CoreV1().Pods(l.ns).Delete(t.Context(), p.Name, metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "the host port closes", func() error {
		if _, _, err := l.get(t.Context(), nil, at); err == nil {
			return errors.New("it answers")
		}
		return nil
	})
}

// A pod that says it is not ready leaves its services, and comes back.
func testReadiness(t *testing.T, l *netLab) {
	l.create(t, withReadiness(l.probe("moody", l.Machines[0], "ready", "test")))
	l.create(t, withReadiness(l.probe("steady", l.Machines[1], "ready", "test")))
	moody := l.awaitReady(t, "moody")
	l.awaitReady(t, "steady")
	s := l.service(t, "readiness", nil, "ready", "test")
	served := func(want ...string) {
		t.Helper()
		eventually(t, 15*time.Second, fmt.Sprintf("served by %v", want), func() error {
			out, err := l.run(t.Context(), "echo-2", nil, "get", url(s.Spec.ClusterIP, 80), "20")
			if err != nil {
				return err
			}
			hosts := map[string]bool{}
			for line := range strings.Lines(out) {
				hosts[strings.Fields(line)[0]] = true
			}
			for _, w := range want {
				if !hosts[w] {
					return fmt.Errorf("served by %v", hosts)
				}
			}
			if len(hosts) != len(want) {
				return fmt.Errorf("served by %v", hosts)
			}
			return nil
		})
	}
	served("moody", "steady")
	l.must(t, "echo-2", "get", url(moody.Status.PodIP, 8080)+"ready/off")
	served("steady")
	endpoints, err := l.api.CoreV1().Endpoints(l.ns).Get(t.Context(), s.Name, metav1.GetOptions{}) //nolint:staticcheck // the older kind is served too
	if err != nil {
		t.Fatal(err)
	}
	if subsets := endpoints.Subsets; len(subsets) != 1 || len(subsets[0].NotReadyAddresses) != 1 || subsets[0].NotReadyAddresses[0].IP != moody.Status.PodIP {
		t.Errorf("endpoints %+v, want %s not ready", endpoints.Subsets, moody.Status.PodIP)
	}
	l.must(t, "echo-2", "get", url(moody.Status.PodIP, 8080)+"ready/on")
	served("moody", "steady")
}

// A service without selector goes where slices written by hand say: here 50 slices of four
// endpoints each, of which all serve, then one alone.
func testManualSlices(t *testing.T, l *netLab) {
	s := l.service(t, "manual", func(s *corev1.Service) { s.Spec.Ports = []corev1.ServicePort{{Port: 80}} })
	const slices = 50
	api := l.api.DiscoveryV1().EndpointSlices(l.ns)
	for i := range slices {
		slice := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Name: fmt.Sprintf("manual-%d", i), Labels: map[string]string{discoveryv1.LabelServiceName: s.Name}},
			AddressType: discoveryv1.AddressTypeIPv4,
			Ports:       []discoveryv1.EndpointPort{{Name: ptr.To(""), Port: ptr.To(int32(9000 + i)), Protocol: ptr.To(corev1.ProtocolTCP)}},
		}
		for name := range l.pods {
			slice.Endpoints = append(slice.Endpoints, discoveryv1.Endpoint{Addresses: []string{l.ip(name)}})
		}
		if _, err := api.Create(t.Context(), slice, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	l.answers(t, l.Machines[1], url(s.Spec.ClusterIP, 80))
	served := func(pods int) {
		t.Helper()
		eventually(t, 10*time.Second, fmt.Sprintf("%d pods serve", pods), func() error {
			out, err := l.run(t.Context(), "echo-2", nil, "get", url(s.Spec.ClusterIP, 80), "100")
			if err != nil {
				return err
			}
			hosts := map[string]int{}
			for line := range strings.Lines(out) {
				hosts[strings.Fields(line)[0]]++
			}
			if len(hosts) != pods {
				return fmt.Errorf("served by %v", hosts)
			}
			return nil
		})
	}
	served(len(l.pods))
	for i := range slices - 1 {
		if err := api.Delete(t.Context(), fmt.Sprintf("manual-%d", i), metav1.DeleteOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	last, err := api.Get(t.Context(), fmt.Sprintf("manual-%d", slices-1), metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	for i := range last.Endpoints[1:] {
		last.Endpoints[1+i].Conditions.Ready = ptr.To(false)
	}
	if _, err := api.Update(t.Context(), last, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	served(1)
}
