package relay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/url"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
)

// A Resolver finds where the API server's own requests to a service go: webhooks of admission and
// of conversion, and aggregated APIs. The server's process need not be behind a service proxy, and
// so talks to one of the service's ready endpoints itself; whom it reaches proves by its
// certificate who it is. It implements webhook.ServiceResolver of k8s.io/apiserver.
type Resolver struct{ objects Objects }

// NewResolver returns a resolver over the image.
func NewResolver(objects Objects) *Resolver { return &Resolver{objects: objects} }

// ResolveEndpoint returns the https URL of a ready endpoint of a service's port, each as likely as the others.
func (r *Resolver) ResolveEndpoint(namespace, name string, port int32) (*url.URL, error) {
	ctx := context.Background() // the image is memory: nothing waits
	service, err := r.objects.Service(ctx, namespace, name)
	if err != nil {
		return nil, fmt.Errorf("resolve service %s/%s: %w", namespace, name, err)
	}
	if service.Spec.Type == corev1.ServiceTypeExternalName {
		return &url.URL{Scheme: "https", Host: net.JoinHostPort(service.Spec.ExternalName, strconv.Itoa(int(port)))}, nil
	}
	portName, ok := namedPort(service, int64(port))
	if !ok {
		return nil, fmt.Errorf("resolve service %s/%s: it has no port %d", namespace, name, port)
	}
	endpoints, err := r.objects.EndpointSlices(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	hosts := readyHosts(endpoints, portName)
	if len(hosts) == 0 {
		return nil, fmt.Errorf("no endpoints available for service %q", name)
	}
	return &url.URL{Scheme: "https", Host: hosts[rand.IntN(len(hosts))].hostPort()}, nil
}

// namedPort finds the name of a service's port by its number, which endpoints know it by.
func namedPort(service *corev1.Service, number int64) (name string, ok bool) {
	i := slices.IndexFunc(service.Spec.Ports, func(p corev1.ServicePort) bool { return int64(p.Port) == number })
	if i < 0 {
		return "", false
	}
	return service.Spec.Ports[i].Name, true
}
