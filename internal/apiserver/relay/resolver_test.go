package relay

import (
	"context"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/utils/ptr"
)

// fixed is an image of one service and its endpoints.
type fixed struct {
	Objects
	service *corev1.Service
	slices  []*discoveryv1.EndpointSlice
}

func (f fixed) Service(_ context.Context, _, name string) (*corev1.Service, error) {
	if f.service == nil {
		return nil, apierrors.NewNotFound(corev1.Resource("services"), name)
	}
	return f.service, nil
}

func (f fixed) EndpointSlices(context.Context, string, string) ([]*discoveryv1.EndpointSlice, error) {
	return f.slices, nil
}

func TestResolveEndpoint(t *testing.T) {
	service := func(kind corev1.ServiceType, external string, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{Spec: corev1.ServiceSpec{Type: kind, ExternalName: external, Ports: ports}}
	}
	endpoints := func(portName string, port int32, ready *bool, addresses ...string) *discoveryv1.EndpointSlice {
		s := &discoveryv1.EndpointSlice{Ports: []discoveryv1.EndpointPort{{Name: &portName, Port: &port}}}
		for _, a := range addresses {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{a}, Conditions: discoveryv1.EndpointConditions{Ready: ready}})
		}
		return s
	}
	https := corev1.ServicePort{Name: "https", Port: 443}
	admin := corev1.ServicePort{Name: "admin", Port: 9443}
	for _, test := range []struct {
		name string
		in   fixed
		want []string // any of these
		err  string
	}{
		{"no service", fixed{}, nil, "not found"},
		{"no such port", fixed{service: service("ClusterIP", "", admin)}, nil, "no port 443"},
		{"no endpoints", fixed{service: service("ClusterIP", "", https)}, nil, "no endpoints available"},
		{"none ready", fixed{nil, service("ClusterIP", "", https), []*discoveryv1.EndpointSlice{
			endpoints("https", 8443, ptr.To(false), "10.0.0.1")}}, nil, "no endpoints available"},
		{"the port that was asked for", fixed{nil, service("ClusterIP", "", admin, https), []*discoveryv1.EndpointSlice{
			endpoints("admin", 1, nil, "10.0.0.1"), endpoints("https", 8443, nil, "10.0.0.1")}}, []string{"10.0.0.1:8443"}, ""},
		{"a service without a name for its port", fixed{nil, service("ClusterIP", "", corev1.ServicePort{Port: 443}), []*discoveryv1.EndpointSlice{
			endpoints("", 8443, ptr.To(true), "10.0.0.1", "fd00::1")}}, []string{"10.0.0.1:8443", "[fd00::1]:8443"}, ""},
		{"another name", fixed{service: service(corev1.ServiceTypeExternalName, "hooks.example.com")}, []string{"hooks.example.com:443"}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			seen := map[string]bool{}
			for range 200 {
				got, err := NewResolver(test.in).ResolveEndpoint("ns", "svc", 443)
				if test.err != "" {
					if err == nil || !strings.Contains(err.Error(), test.err) {
						t.Fatalf("got %v, %v; want an error about %q", got, err, test.err)
					}
					return
				}
				if err != nil {
					t.Fatal(err)
				}
				if got.Scheme != "https" || !slices.Contains(test.want, got.Host) {
					t.Fatalf("got %s, want one of %v", got, test.want)
				}
				seen[got.Host] = true
			}
			if len(seen) != len(test.want) {
				t.Errorf("200 requests went to %v, want each of %v", seen, test.want)
			}
		})
	}
}
