package network

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// query asks the node's DNS server and returns the code and the answers, sorted, in zone file
// syntax without class and TTL.
func query(from *host, network, name, typ string) (code string, answers []string, err error) {
	conn, err := from.dial(network, net.JoinHostPort(clusterDNS.String(), "53"))
	if err != nil {
		return "", nil, err
	}
	defer conn.Close()
	m := new(dns.Msg)
	m.SetQuestion(name, dns.StringToType[typ])
	reply, _, err := (&dns.Client{Net: network, Timeout: 3 * time.Second}).ExchangeWithConn(m, &dns.Conn{Conn: conn})
	if err != nil {
		return "", nil, err
	}
	for _, rr := range reply.Answer {
		h := rr.Header()
		answers = append(answers, fmt.Sprintf("%s %s %s", h.Name, dns.TypeToString[h.Rrtype], strings.TrimPrefix(rr.String(), h.String())))
	}
	slices.Sort(answers)
	return dns.RcodeToString[reply.Rcode], answers, nil
}

// objects of the cluster that the DNS tests ask about.
func dnsObjects(t *testing.T, l *lab) {
	t.Helper()
	l.addService(t, service("web", clusterIP, nil))
	// The Service that documents DNS has no endpoints; that must not get in DNS' way.
	create(t, l, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "kube-system"}})
	kubeDNS := service("kube-dns", clusterDNS.String(), func(s *corev1.Service) {
		s.Namespace = "kube-system"
		s.Spec.Ports[0].Port, s.Spec.Ports[1].Port = 53, 53
	})
	if _, err := l.client.CoreV1().Services("kube-system").Create(t.Context(), kubeDNS, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	headless := service("db", corev1.ClusterIPNone, nil)
	e := func(ip, hostname string, ready bool) discoveryv1.Endpoint {
		out := discoveryv1.Endpoint{Addresses: []string{ip}, Conditions: discoveryv1.EndpointConditions{Ready: &ready}}
		if hostname != "" {
			out.Hostname = &hostname
		}
		return out
	}
	l.addService(t, headless, e("10.42.0.20", "db-0", true), e("10.42.1.20", "db-1", true), e("10.42.1.21", "db-2", false), e("10.42.1.22", "", true))
	external := service("out", "", func(s *corev1.Service) {
		s.Spec.Type, s.Spec.ExternalName, s.Spec.ClusterIPs = corev1.ServiceTypeExternalName, "host.example.org", nil
	})
	l.addService(t, external)
}

func TestDNS(t *testing.T) {
	l := newLab(t, false, 1, "")
	m := l.machines[0]
	client := m.newPod(t, "client", "")
	dnsObjects(t, l)
	eventually(t, "objects seen", func() error {
		code, _, err := query(client.host, "udp", "out.default.svc.cluster.local.", "CNAME")
		if err == nil && code != "NOERROR" {
			err = fmt.Errorf("%s", code)
		}
		return err
	})
	for _, c := range []struct {
		name, typ, code string
		answers         []string
	}{
		{"web.default.svc.cluster.local.", "A", "NOERROR", []string{"web.default.svc.cluster.local. A 10.43.0.100"}},
		{"WEB.Default.svc.cluster.LOCAL.", "A", "NOERROR", []string{"WEB.Default.svc.cluster.LOCAL. A 10.43.0.100"}},
		{"web.default.svc.cluster.local.", "AAAA", "NOERROR", nil},
		{"web.default.svc.cluster.local.", "MX", "NOERROR", nil},
		{"_web._tcp.web.default.svc.cluster.local.", "SRV", "NOERROR",
			[]string{"_web._tcp.web.default.svc.cluster.local. SRV 0 100 80 web.default.svc.cluster.local."}},
		{"_none._tcp.web.default.svc.cluster.local.", "SRV", "NXDOMAIN", nil},
		{"db.default.svc.cluster.local.", "A", "NOERROR", []string{"db.default.svc.cluster.local. A 10.42.0.20",
			"db.default.svc.cluster.local. A 10.42.1.20", "db.default.svc.cluster.local. A 10.42.1.22"}},
		{"db-0.db.default.svc.cluster.local.", "A", "NOERROR", []string{"db-0.db.default.svc.cluster.local. A 10.42.0.20"}},
		{"10-42-1-22.db.default.svc.cluster.local.", "A", "NOERROR", []string{"10-42-1-22.db.default.svc.cluster.local. A 10.42.1.22"}},
		{"db-2.db.default.svc.cluster.local.", "A", "NXDOMAIN", nil},
		{"_web._tcp.db.default.svc.cluster.local.", "SRV", "NOERROR", []string{
			"_web._tcp.db.default.svc.cluster.local. SRV 0 33 8080 10-42-1-22.db.default.svc.cluster.local.",
			"_web._tcp.db.default.svc.cluster.local. SRV 0 33 8080 db-0.db.default.svc.cluster.local.",
			"_web._tcp.db.default.svc.cluster.local. SRV 0 33 8080 db-1.db.default.svc.cluster.local."}},
		{"10-42-0-7.default.pod.cluster.local.", "A", "NOERROR", []string{"10-42-0-7.default.pod.cluster.local. A 10.42.0.7"}},
		{"10-42-0-7.nowhere.pod.cluster.local.", "A", "NXDOMAIN", nil},
		{"out.default.svc.cluster.local.", "CNAME", "NOERROR", []string{"out.default.svc.cluster.local. CNAME host.example.org."}},
		{"none.default.svc.cluster.local.", "A", "NXDOMAIN", nil},
		{"web.nowhere.svc.cluster.local.", "A", "NXDOMAIN", nil},
		{"default.svc.cluster.local.", "A", "NOERROR", nil},
		{"nowhere.svc.cluster.local.", "A", "NXDOMAIN", nil},
		{"svc.cluster.local.", "A", "NOERROR", nil},
		{"cluster.local.", "A", "NOERROR", nil},
		{"cluster.local.", "NS", "NOERROR", []string{"cluster.local. NS ns.dns.cluster.local."}},
		{"ns.dns.cluster.local.", "A", "NOERROR", []string{"ns.dns.cluster.local. A 10.43.0.10"}},
		{"other.cluster.local.", "A", "NXDOMAIN", nil},
		{"dns-version.cluster.local.", "TXT", "NOERROR", []string{`dns-version.cluster.local. TXT "1.1.0"`}},
		{"100.0.43.10.in-addr.arpa.", "PTR", "NOERROR", []string{"100.0.43.10.in-addr.arpa. PTR web.default.svc.cluster.local."}},
		{"20.0.42.10.in-addr.arpa.", "PTR", "NOERROR", []string{"20.0.42.10.in-addr.arpa. PTR db-0.db.default.svc.cluster.local."}},
		{"10.0.43.10.in-addr.arpa.", "PTR", "NOERROR", []string{"10.0.43.10.in-addr.arpa. PTR kube-dns.kube-system.svc.cluster.local."}},
		// Without upstream servers, what is not the cluster's fails at once.
		{"host.example.org.", "A", "SERVFAIL", nil},
	} {
		for _, from := range []*host{client.host, m.host} {
			for _, network := range []string{"udp", "tcp"} {
				start := time.Now()
				code, got, err := query(from, network, c.name, c.typ)
				if err != nil || code != c.code || !slices.Equal(got, c.answers) {
					t.Errorf("%s %s by %s from %s: %s %q, %v; want %s %q", c.name, c.typ, network, from.ip, code, got, err, c.code, c.answers)
				}
				if time.Since(start) > time.Second {
					t.Errorf("%s %s took %s", c.name, c.typ, time.Since(start))
				}
			}
		}
	}
}

// TestDNSForwards has the node's resolver configuration name a server on loopback.
func TestDNSForwards(t *testing.T) {
	const server = "127.86.0.53"
	conn, err := net.ListenPacket("udp", server+":53")
	if err != nil {
		t.Fatal(err)
	}
	upstream := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, r *dns.Msg) {
		m := new(dns.Msg)
		m.SetReply(r)
		if r.Question[0].Name == "host.example.org." && r.Question[0].Qtype == dns.TypeA {
			rr, err := dns.NewRR("host.example.org. 60 IN A 192.0.2.99")
			if err == nil {
				m.Answer = append(m.Answer, rr)
			}
		}
		_ = w.WriteMsg(m)
	})}
	served := make(chan error, 1)
	go func() { served <- upstream.ActivateAndServe() }()
	t.Cleanup(func() {
		if err := upstream.Shutdown(); err != nil {
			t.Error(err)
		}
		<-served
	})

	l := newLab(t, false, 1, "")
	m := l.machines[0]
	dnsObjects(t, l)
	m.stop()
	// Our own address among the servers would be a loop.
	config := fmt.Sprintf("nameserver %s\nnameserver %s\n", clusterDNS, server)
	if err := os.WriteFile(m.cfg.ResolvConf, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	m.start(t)
	client := m.newPod(t, "client", "")
	for name, want := range map[string][]string{
		"host.example.org.": {"host.example.org. A 192.0.2.99"},
		"out.default.svc.cluster.local.": {"host.example.org. A 192.0.2.99",
			"out.default.svc.cluster.local. CNAME host.example.org."},
	} {
		code, got, err := query(client.host, "udp", name, "A")
		if err != nil || code != "NOERROR" || !slices.Equal(got, want) {
			t.Errorf("%s: %s %q, %v; want %q", name, code, got, err, want)
		}
	}
}
