package network

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
)

func rawJSON(s string) json.RawMessage { return json.RawMessage(s) }

func encode(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// pluginConfig reads a configuration list and returns what a runtime gives to its one plugin.
func pluginConfig(t testing.TB, path string) map[string]any {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var list struct {
		CNIVersion, Name string
		Plugins          []map[string]any
	}
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	conf := list.Plugins[0]
	conf["cniVersion"], conf["name"] = list.CNIVersion, list.Name
	return conf
}

// service makes a Service with TCP and UDP on port 80 to port 8080.
func service(name, ip string, change func(*corev1.Service)) *corev1.Service {
	svc := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	svc.Spec = corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP, ClusterIP: ip, ClusterIPs: []string{ip},
		Ports: []corev1.ServicePort{
			{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80},
			{Name: "dgram", Protocol: corev1.ProtocolUDP, Port: 80},
		}}
	if change != nil {
		change(svc)
	}
	return svc
}

func endpoint(p *pod, change func(*discoveryv1.Endpoint)) discoveryv1.Endpoint {
	e := discoveryv1.Endpoint{Addresses: []string{p.ip.String()}, NodeName: &p.machine.name,
		Conditions: discoveryv1.EndpointConditions{Ready: ptr.To(true)}}
	if change != nil {
		change(&e)
	}
	return e
}

func slice(service string, endpoints ...discoveryv1.Endpoint) *discoveryv1.EndpointSlice {
	return &discoveryv1.EndpointSlice{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: service + "-1",
			Labels: map[string]string{discoveryv1.LabelServiceName: service}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Endpoints:   endpoints,
		Ports: []discoveryv1.EndpointPort{
			{Name: ptr.To("web"), Protocol: ptr.To(corev1.ProtocolTCP), Port: ptr.To(int32(8080))},
			{Name: ptr.To("dgram"), Protocol: ptr.To(corev1.ProtocolUDP), Port: ptr.To(int32(8080))},
		},
	}
}

func (l *lab) addService(t testing.TB, svc *corev1.Service, endpoints ...discoveryv1.Endpoint) {
	t.Helper()
	if _, err := l.client.CoreV1().Services(svc.Namespace).Create(t.Context(), svc, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	s := slice(svc.Name, endpoints...)
	if _, err := l.client.DiscoveryV1().EndpointSlices(svc.Namespace).Create(t.Context(), s, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func (l *lab) setEndpoints(t testing.TB, service string, endpoints ...discoveryv1.Endpoint) {
	t.Helper()
	s := slice(service, endpoints...)
	if _, err := l.client.DiscoveryV1().EndpointSlices("default").Update(t.Context(), s, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

func decode(t testing.TB, data []byte) map[string]any {
	t.Helper()
	var v map[string]any
	if err := json.Unmarshal(data, &v); err != nil {
		t.Fatal(err)
	}
	return v
}

func newReader(data []byte) io.Reader { return bytes.NewReader(data) }

func mustAddr(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}
