package integration

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

// resolves waits until a pod's resolver gives just these answers for a name.
func (l *netLab) resolves(t testing.TB, pod, kind, name string, want ...string) {
	t.Helper()
	slices.Sort(want)
	eventually(t, 15*time.Second, kind+" "+name, func() error {
		out, err := l.run(t.Context(), pod, nil, kind, name)
		if err != nil {
			return err
		}
		if got := strings.Fields(out); !slices.Equal(got, want) {
			return fmt.Errorf("%v, want %v", got, want)
		}
		return nil
	})
}

// unknown checks that DNS says there is no such name.
func (l *netLab) unknown(t testing.TB, pod, name string) {
	t.Helper()
	if out, err := l.run(t.Context(), pod, nil, "host", name); err == nil || !strings.Contains(err.Error(), "no such host") {
		t.Errorf("%s: %q, %v; want no such host", name, out, err)
	}
}

// The names that a cluster's DNS gives services and pods.
func testServiceNames(t *testing.T, l *netLab) {
	s := l.service(t, "names", nil, "app", "echo")
	full := "names." + l.ns + ".svc.cluster.local"
	for _, name := range []string{"names", "names." + l.ns, "names." + l.ns + ".svc", full, full + "."} {
		l.resolves(t, "echo-2", "host", name, s.Spec.ClusterIP)
	}
	l.resolves(t, "echo-2", "srv", "_http._tcp."+full, full+".:80")
	l.resolves(t, "echo-2", "srv", "_echo._udp."+full, full+".:81")
	l.resolves(t, "echo-2", "ptr", s.Spec.ClusterIP, full+".")
	l.resolves(t, "echo-1", "host", strings.ReplaceAll(l.ip("echo-3"), ".", "-")+"."+l.ns+".pod.cluster.local", l.ip("echo-3"))
	l.unknown(t, "echo-1", "nobody-here."+l.ns+".svc.cluster.local")
	l.unknown(t, "echo-1", "names.no-such-namespace.svc.cluster.local")

	var all []string
	for name := range l.pods {
		all = append(all, l.ip(name))
	}
	l.service(t, "headless", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, "app", "echo")
	l.resolves(t, "echo-3", "host", "headless", all...)
	l.service(t, "elsewhere", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName, s.Spec.Ports = corev1.ServiceTypeExternalName, full, nil
	})
	l.resolves(t, "echo-3", "host", "elsewhere", s.Spec.ClusterIP)

	dns, err := l.api.CoreV1().Services(metav1.NamespaceSystem).Get(t.Context(), "kube-dns", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l.resolves(t, "echo-1", "host", "kube-dns.kube-system", dns.Spec.ClusterIP)
	l.resolves(t, "echo-1", "host", "kubernetes.default", "10.43.0.1")
}

// A StatefulSet's pods have names of their own, forth and back, also before they are ready if
// the service wants so.
func testStatefulSetNames(t *testing.T, l *netLab) {
	l.service(t, "members", func(s *corev1.Service) { s.Spec.ClusterIP = corev1.ClusterIPNone }, "set", "members")
	pod := l.probe("", nil, "set", "members")
	delete(pod.Labels, "name")
	set := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: l.ns, Name: "member"}}
	set.Spec = appsv1.StatefulSetSpec{
		Replicas: ptr.To(int32(2)), ServiceName: "members", PodManagementPolicy: appsv1.ParallelPodManagement,
		Selector: &metav1.LabelSelector{MatchLabels: pod.Labels},
		Template: corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: pod.Labels}, Spec: pod.Spec},
	}
	if _, err := l.api.AppsV1().StatefulSets(l.ns).Create(t.Context(), set, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	full := "members." + l.ns + ".svc.cluster.local."
	var srv []string
	for i := range 2 {
		name := fmt.Sprintf("member-%d", i)
		eventually(t, 10*time.Second, name+" exists", func() error {
			_, err := l.api.CoreV1().Pods(l.ns).Get(t.Context(), name, metav1.GetOptions{})
			return err
		})
		ip := l.awaitReady(t, name).Status.PodIP
		l.resolves(t, "echo-2", "host", name+".members", ip)
		l.resolves(t, "echo-2", "ptr", ip, name+"."+full)
		srv = append(srv, name+"."+full+":8080") // headless: the endpoints' own port
	}
	l.resolves(t, "echo-2", "srv", "_http._tcp."+full, srv...)
}

// What a pod's resolv.conf says follows its DNS policy.
func testResolverConfiguration(t *testing.T, l *netLab) {
	host, err := os.ReadFile("/etc/resolv.conf")
	if err != nil {
		t.Fatal(err)
	}
	cluster := []string{"nameserver 10.43.0.10", "search " + l.ns + ".svc.cluster.local svc.cluster.local cluster.local", "ndots:5"}
	var hostServers []string
	for line := range strings.Lines(string(host)) {
		if f := strings.Fields(line); len(f) > 1 && f[0] == "nameserver" {
			hostServers = append(hostServers, "nameserver "+f[1])
		}
	}
	for _, tt := range []struct {
		name       string
		edit       func(*corev1.PodSpec)
		want, deny []string
	}{
		{name: "dns-first", edit: func(*corev1.PodSpec) {}, want: cluster},
		{name: "dns-default", edit: func(s *corev1.PodSpec) { s.DNSPolicy = corev1.DNSDefault }, want: hostServers, deny: cluster},
		{name: "dns-none", edit: func(s *corev1.PodSpec) {
			s.DNSPolicy = corev1.DNSNone
			s.DNSConfig = &corev1.PodDNSConfig{Nameservers: []string{"192.0.2.53"}, Searches: []string{"example.org"},
				Options: []corev1.PodDNSConfigOption{{Name: "ndots", Value: ptr.To("2")}, {Name: "edns0"}}}
		}, want: []string{"nameserver 192.0.2.53", "search example.org", "ndots:2", "edns0"}, deny: cluster},
		{name: "dns-host", edit: func(s *corev1.PodSpec) {
			s.HostNetwork, s.DNSPolicy = true, corev1.DNSClusterFirstWithHostNet
		}, want: cluster},
		{name: "dns-host-first", edit: func(s *corev1.PodSpec) { s.HostNetwork = true }, want: hostServers, deny: cluster},
		{name: "dns-more", edit: func(s *corev1.PodSpec) {
			s.DNSConfig = &corev1.PodDNSConfig{Searches: []string{"example.org"}}
		}, want: []string{"nameserver 10.43.0.10", "cluster.local example.org"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			p := l.probe(tt.name, l.Machines[0])
			p.Spec.Containers = []corev1.Container{{Name: "c", Image: busyboxImage, Command: []string{"cat", "/etc/resolv.conf"}}}
			p.Spec.RestartPolicy = corev1.RestartPolicyNever
			tt.edit(&p.Spec)
			l.create(t, p)
			var got string
			eventually(t, bound, "pod "+tt.name+" ended", func() error {
				pod, err := l.api.CoreV1().Pods(l.ns).Get(t.Context(), tt.name, metav1.GetOptions{})
				if err != nil {
					return err
				}
				if pod.Status.Phase != corev1.PodSucceeded {
					return fmt.Errorf("it is %s", pod.Status.Phase)
				}
				data, err := l.api.CoreV1().Pods(l.ns).GetLogs(tt.name, &corev1.PodLogOptions{}).DoRaw(t.Context())
				if err == nil && len(data) == 0 {
					err = fmt.Errorf("its log is empty")
				}
				got = string(data)
				return err
			})
			for _, w := range tt.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q is missing in\n%s", w, got)
				}
			}
			for _, d := range tt.deny {
				if strings.Contains(got, d) {
					t.Errorf("%q is in\n%s", d, got)
				}
			}
		})
	}
}
