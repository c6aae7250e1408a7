package registry_test

import (
	"fmt"
	"math/big"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	utilnet "k8s.io/apimachinery/pkg/util/net"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/store/etcd/etcdtest"
)

func newService(name string, kind corev1.ServiceType) *corev1.Service {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default"},
		Spec: corev1.ServiceSpec{
			Type: kind, Selector: map[string]string{"app": "web"},
			Ports: []corev1.ServicePort{{Name: "http", Port: 80}},
		},
	}
	svc.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Service"))
	api.Scheme().Default(svc)
	return svc
}

// allocated lists the addresses and node ports that are taken.
func allocated(s *server) (ips []string, ports []int) {
	s.tb.Helper()
	list, err := s.List(s.tb.Context(), s.req("ipaddresses.networking.k8s.io", "", ""), nil)
	if err != nil {
		s.tb.Fatal(err)
	}
	for _, e := range list.Entries {
		ips = append(ips, e.Key().Name)
	}
	kv, err := s.raw("/registry/ranges/servicenodeports")
	if err != nil {
		s.tb.Fatal(err)
	}
	if kv == nil {
		return ips, nil
	}
	codecs := api.Codecs()
	obj, _, err := codecs.UniversalDeserializer().Decode(kv, nil, nil)
	if err != nil {
		s.tb.Fatal(err)
	}
	r := obj.(*corev1.RangeAllocation)
	bits := new(big.Int).SetBytes(r.Data)
	for i := range bits.BitLen() {
		if bits.Bit(i) == 1 {
			ports = append(ports, 30000+i)
		}
	}
	return ips, ports
}

func TestClusterIPs(t *testing.T) {
	s := start(t, nil)
	kubernetes := get[*corev1.Service](s, "services", "default", "kubernetes")
	if kubernetes.Spec.ClusterIP != "10.43.0.1" {
		t.Errorf("the kubernetes service is %s", asJSON(t, kubernetes.Spec))
	}
	svc := create[*corev1.Service](s, "services", "default", newService("web", corev1.ServiceTypeClusterIP))
	ip, err := netip.ParseAddr(svc.Spec.ClusterIP)
	if err != nil || !netip.MustParsePrefix("10.43.0.0/16").Contains(ip) || svc.Spec.ClusterIPs[0] != svc.Spec.ClusterIP ||
		len(svc.Spec.IPFamilies) != 1 || *svc.Spec.IPFamilyPolicy != corev1.IPFamilyPolicySingleStack {
		t.Fatalf("service is %s", asJSON(t, svc.Spec))
	}
	address := get[*networkingv1.IPAddress](s, "ipaddresses.networking.k8s.io", "", ip.String())
	if ref := address.Spec.ParentRef; ref.Resource != "services" || ref.Name != "web" || ref.Namespace != "default" ||
		address.Labels["ipaddress.kubernetes.io/managed-by"] != "ipallocator.k8s.io" {
		t.Errorf("address is %s", asJSON(t, address))
	}
	// The same manifest again keeps the address.
	again := newService("web", corev1.ServiceTypeClusterIP)
	again.ResourceVersion = svc.ResourceVersion
	result, _, err := s.Update(t.Context(), s.req("services", "default", "web"), again, nil)
	if err != nil || kept[*corev1.Service](s, result).Spec.ClusterIP != svc.Spec.ClusterIP {
		t.Errorf("applied again: %v", err)
	}
	taken := newService("taken", corev1.ServiceTypeClusterIP)
	taken.Spec.ClusterIP = svc.Spec.ClusterIP
	if _, err := s.Create(t.Context(), s.req("services", "default", ""), taken, nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "already allocated") {
		t.Errorf("an address that is taken: %v", err)
	}
	taken = newService("far", corev1.ServiceTypeClusterIP)
	taken.Spec.ClusterIP = "192.0.2.1"
	if _, err := s.Create(t.Context(), s.req("services", "default", ""), taken, nil); !apierrors.IsInvalid(err) {
		t.Errorf("an address out of range: %v", err)
	}
	headless := newService("headless", corev1.ServiceTypeClusterIP)
	headless.Spec.ClusterIP = corev1.ClusterIPNone
	if got := create[*corev1.Service](s, "services", "default", headless); got.Spec.ClusterIPs[0] != "None" {
		t.Errorf("headless is %s", asJSON(t, got.Spec))
	}
	external := newService("external", corev1.ServiceTypeExternalName)
	external.Spec.ExternalName, external.Spec.Ports, external.Spec.InternalTrafficPolicy = "example.com", nil, nil
	if got := create[*corev1.Service](s, "services", "default", external); got.Spec.ClusterIP != "" {
		t.Errorf("external is %s", asJSON(t, got.Spec))
	}
	if _, _, err := s.Delete(t.Context(), s.req("services", "default", "web"), nil); err != nil {
		t.Fatal(err)
	}
	if ips, _ := allocated(s); fmt.Sprint(ips) != "[10.43.0.1]" {
		t.Errorf("left are %v", ips)
	}
	// What is refused takes nothing.
	bad := newService("bad", corev1.ServiceTypeNodePort)
	bad.Spec.Ports[0].Port = 70000
	if _, err := s.Create(t.Context(), s.req("services", "default", ""), bad, nil); !apierrors.IsInvalid(err) {
		t.Errorf("a bad port: %v", err)
	}
	if ips, ports := allocated(s); len(ips) != 1 || len(ports) != 0 {
		t.Errorf("left are %v and %v", ips, ports)
	}
}

func TestNodePorts(t *testing.T) {
	s := start(t, nil)
	svc := newService("web", corev1.ServiceTypeNodePort)
	svc.Spec.Ports = []corev1.ServicePort{
		{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}, {Name: "dns-tcp", Port: 53, Protocol: corev1.ProtocolTCP},
		{Name: "http", Port: 80, NodePort: 30080},
	}
	api.Scheme().Default(svc)
	made := create[*corev1.Service](s, "services", "default", svc)
	p := made.Spec.Ports
	if p[0].NodePort < 30000 || p[0].NodePort != p[1].NodePort || p[2].NodePort != 30080 {
		t.Fatalf("ports are %s", asJSON(t, p))
	}
	if _, ports := allocated(s); len(ports) != 2 {
		t.Errorf("taken are %v", ports)
	}
	other := newService("other", corev1.ServiceTypeNodePort)
	other.Spec.Ports[0].NodePort = 30080
	if _, err := s.Create(t.Context(), s.req("services", "default", ""), other, nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "nodePort") {
		t.Errorf("a port that is taken: %v", err)
	}
	other.Spec.Ports[0].NodePort = 80
	if _, err := s.Create(t.Context(), s.req("services", "default", ""), other, nil); !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "30000-32767") {
		t.Errorf("a port out of range: %v", err)
	}
	if ips, _ := allocated(s); len(ips) != 2 {
		t.Errorf("refused services keep addresses: %v", ips)
	}
	if _, _, err := s.Patch(t.Context(), s.req("services", "default", "web"), types.StrategicMergePatchType, []byte(`{"spec":{"ports":[{"port":80,"nodePort":30081}]}}`), nil); err != nil {
		t.Fatal(err)
	}
	if _, ports := allocated(s); len(ports) != 2 || ports[0] != 30081 && ports[1] != 30081 {
		t.Errorf("taken are %v", ports)
	}
	if _, _, err := s.Patch(t.Context(), s.req("services", "default", "web"), types.MergePatchType, []byte(`{"spec":{"type":"ClusterIP"}}`), nil); err != nil {
		t.Fatal(err)
	}
	got := get[*corev1.Service](s, "services", "default", "web")
	if _, ports := allocated(s); len(ports) != 0 || got.Spec.Ports[0].NodePort != 0 {
		t.Errorf("taken are %v, service is %s", ports, asJSON(t, got.Spec))
	}
	local := newService("lb", corev1.ServiceTypeLoadBalancer)
	local.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	made = create[*corev1.Service](s, "services", "default", local)
	if made.Spec.HealthCheckNodePort == 0 || made.Spec.Ports[0].NodePort == 0 {
		t.Errorf("load balancer is %s", asJSON(t, made.Spec))
	}
	if _, _, err := s.Delete(t.Context(), s.req("services", "default", "lb"), nil); err != nil {
		t.Fatal(err)
	}
	if _, ports := allocated(s); len(ports) != 0 {
		t.Errorf("left are %v", ports)
	}
}

// TestServersAllocateUniquely lets two servers allocate from a range that is just large enough.
func TestServersAllocateUniquely(t *testing.T) {
	tune := func(cfg *registry.Config) {
		cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/28")} // 14 addresses, one taken
		cfg.NodePortRange = utilnet.PortRange{Base: 30000, Size: 13}
	}
	member := etcdtest.New(t, 1, nil).Member(0)
	servers := []*server{on(t, member, tune), on(t, member, tune)}
	var wg sync.WaitGroup
	errs := make(chan error, 14)
	for i := range 14 {
		wg.Go(func() {
			s := servers[i%2]
			_, err := s.Create(t.Context(), s.req("services", "default", ""), newService(fmt.Sprintf("s%d", i), corev1.ServiceTypeNodePort), nil)
			errs <- err
		})
	}
	wg.Wait()
	close(errs)
	failed := 0
	for err := range errs {
		if err != nil {
			failed++
			if !strings.Contains(err.Error(), "full") {
				t.Error(err)
			}
		}
	}
	if failed != 1 {
		t.Errorf("%d failed, want the one that there was no room for", failed)
	}
	list, err := servers[0].List(t.Context(), servers[0].req("services", "default", ""), nil)
	if err != nil {
		t.Fatal(err)
	}
	ips, ports := map[string]bool{}, map[int32]bool{}
	for _, e := range list.Entries {
		obj, err := e.Object()
		if err != nil {
			t.Fatal(err)
		}
		svc := obj.(*corev1.Service)
		if ips[svc.Spec.ClusterIP] || (svc.Name != "kubernetes" && ports[svc.Spec.Ports[0].NodePort]) {
			t.Errorf("%s shares %s or %d", svc.Name, svc.Spec.ClusterIP, svc.Spec.Ports[0].NodePort)
		}
		ips[svc.Spec.ClusterIP], ports[svc.Spec.Ports[0].NodePort] = true, true
	}
}

// TestPortsWithoutEnd: a Service with more ports than there are node ports is refused without comparing each with each.
func TestPortsWithoutEnd(t *testing.T) {
	s := start(t, nil)
	svc := newService("many", corev1.ServiceTypeNodePort)
	svc.Spec.Ports = make([]corev1.ServicePort, 100_000)
	for i := range svc.Spec.Ports {
		svc.Spec.Ports[i] = corev1.ServicePort{Name: fmt.Sprint("p", i), Port: int32(i + 1), Protocol: corev1.ProtocolTCP}
	}
	began := processorTime(t)
	if _, err := s.Create(t.Context(), s.req("services", "default", ""), svc, nil); !apierrors.IsInternalError(err) || !strings.Contains(err.Error(), "range is full") {
		t.Errorf("%v", err)
	}
	if took := processorTime(t) - began; took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if ips, ports := allocated(s); len(ips) != 1 || len(ports) != 0 {
		t.Errorf("taken are %v and %v", ips, ports)
	}
}

func TestDualStack(t *testing.T) {
	s := start(t, func(cfg *registry.Config) {
		cfg.ServiceCIDRs = []netip.Prefix{netip.MustParsePrefix("10.43.0.0/16"), netip.MustParsePrefix("fd00:43::/112")}
	})
	svc := newService("web", corev1.ServiceTypeClusterIP)
	both := corev1.IPFamilyPolicyPreferDualStack
	svc.Spec.IPFamilyPolicy = &both
	made := create[*corev1.Service](s, "services", "default", svc)
	if len(made.Spec.ClusterIPs) != 2 || !strings.HasPrefix(made.Spec.ClusterIPs[1], "fd00:43::") {
		t.Fatalf("service is %s", asJSON(t, made.Spec))
	}
	if _, _, err := s.Patch(t.Context(), s.req("services", "default", "web"), types.MergePatchType, []byte(`{"spec":{"ipFamilyPolicy":"SingleStack"}}`), nil); err != nil {
		t.Fatal(err)
	}
	got := get[*corev1.Service](s, "services", "default", "web")
	if len(got.Spec.ClusterIPs) != 1 || got.Spec.ClusterIP != made.Spec.ClusterIP {
		t.Errorf("service is %s", asJSON(t, got.Spec))
	}
	if ips, _ := allocated(s); len(ips) != 2 {
		t.Errorf("taken are %v", ips)
	}
	if _, _, err := s.Patch(t.Context(), s.req("services", "default", "web"), types.MergePatchType, []byte(`{"spec":{"ipFamilyPolicy":"RequireDualStack"}}`), nil); err != nil {
		t.Fatal(err)
	}
	if got = get[*corev1.Service](s, "services", "default", "web"); len(got.Spec.ClusterIPs) != 2 {
		t.Errorf("service is %s", asJSON(t, got.Spec))
	}
	if _, _, err := s.Patch(t.Context(), s.req("services", "default", "web"), types.MergePatchType, []byte(`{"spec":{"type":"ExternalName","externalName":"x.example"}}`), nil); err != nil {
		t.Fatal(err)
	}
	if ips, _ := allocated(s); len(ips) != 1 {
		t.Errorf("left are %v", ips)
	}
}
