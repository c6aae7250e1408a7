package relay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apimachinery/pkg/util/proxy"
)

// Node passes a request on to path at a node's kubelet, or at another port of the node. id is
// "[scheme:]name[:port]".
func (r *Relay) Node(ctx context.Context, id, path string, fail Fail) (http.Handler, error) {
	scheme, name, port, valid := utilnet.SplitSchemeNamePort(id)
	if !valid {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid node request %q", id))
	}
	host, kubelet, err := r.kubelet(ctx, name)
	if err != nil {
		return nil, err
	}
	if ip, err := netip.ParseAddr(host); err == nil && !ip.IsGlobalUnicast() {
		return nil, apierrors.NewBadRequest("address not allowed")
	}
	if port == "" || port == strconv.Itoa(kubelet) {
		location := &url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(kubelet))}
		return r.pass(location, path, r.kubelets, fail), nil
	}
	return r.pass(&url.URL{Scheme: scheme, Host: net.JoinHostPort(host, port)}, path, r.elsewhere, fail), nil
}

// Pod passes a request on to path at a port of a pod, by default its first. id is "[scheme:]name[:port]".
func (r *Relay) Pod(ctx context.Context, namespace, id, path string, fail Fail) (http.Handler, error) {
	scheme, name, port, valid := utilnet.SplitSchemeNamePort(id)
	if !valid {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid pod request %q", id))
	}
	pod, err := r.objects.Pod(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	if port == "" {
		port = firstPort(pod)
	}
	ip, err := netip.ParseAddr(pod.Status.PodIP)
	if err != nil || !ip.IsGlobalUnicast() {
		return nil, apierrors.NewBadRequest("address not allowed")
	}
	location := &url.URL{Scheme: scheme, Host: ip.String()}
	if ip.Is6() {
		location.Host = "[" + ip.String() + "]"
	}
	if port != "" {
		location.Host = net.JoinHostPort(ip.String(), port)
	}
	return r.pass(location, path, r.elsewhere, fail), nil
}

func firstPort(pod *corev1.Pod) string {
	for i := range pod.Spec.Containers {
		if ports := pod.Spec.Containers[i].Ports; len(ports) > 0 {
			return strconv.Itoa(int(ports[0].ContainerPort))
		}
	}
	return ""
}

// Service passes a request on to path at one of a service's ready endpoints. id is "[scheme:]name[:port]", the port a
// number or a name.
func (r *Relay) Service(ctx context.Context, namespace, id, path string, fail Fail) (http.Handler, error) {
	scheme, name, port, valid := utilnet.SplitSchemeNamePort(id)
	if !valid {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("invalid service request %q", id))
	}
	service, err := r.objects.Service(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	if number, err := strconv.ParseInt(port, 10, 32); err == nil {
		named, ok := namedPort(service, number)
		if !ok {
			return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no service port %d found for service %q", number, name))
		}
		port = named
	}
	endpoints, err := r.objects.EndpointSlices(ctx, namespace, name)
	if err != nil {
		return nil, err
	}
	hosts := r.reachable(ctx, readyHosts(endpoints, port))
	if len(hosts) == 0 {
		return nil, apierrors.NewServiceUnavailable(fmt.Sprintf("no endpoints available for service %q", id))
	}
	return r.pass(&url.URL{Scheme: scheme, Host: hosts[rand.IntN(len(hosts))].hostPort()}, path, r.elsewhere, fail), nil
}

// host is an address behind a service.
type host struct {
	address string
	port    int32
	target  *corev1.ObjectReference
}

func (h host) hostPort() string { return net.JoinHostPort(h.address, strconv.Itoa(int(h.port))) }

// readyHosts are the addresses of ready endpoints that have a port of the name; "" takes a service's only port.
func readyHosts(slices []*discoveryv1.EndpointSlice, portName string) []host {
	var hosts []host
	for _, s := range slices {
		for _, p := range s.Ports {
			if p.Port == nil || (portName != "" && (p.Name == nil || *p.Name != portName)) {
				continue
			}
			for _, e := range s.Endpoints {
				if (e.Conditions.Ready == nil || *e.Conditions.Ready) && len(e.Addresses) > 0 {
					hosts = append(hosts, host{e.Addresses[0], *p.Port, e.TargetRef})
				}
			}
		}
	}
	return hosts
}

// reachable keeps the hosts that really are what they say: endpoints can be written by users, who must not make the API server
// call addresses that are not a pod's.
func (r *Relay) reachable(ctx context.Context, hosts []host) []host {
	return slices.DeleteFunc(hosts, func(h host) bool {
		if h.target == nil || h.target.Kind != "Pod" {
			return true
		}
		pod, err := r.objects.Pod(ctx, h.target.Namespace, h.target.Name)
		if err != nil {
			return true
		}
		return !slices.ContainsFunc(pod.Status.PodIPs, func(ip corev1.PodIP) bool { return ip.IP == h.address })
	})
}

// pass serves a proxy request: upgrades pass, and addresses in pages are rewritten to lead back here.
func (r *Relay) pass(location *url.URL, path string, transport http.RoundTripper, fail Fail) http.Handler {
	if scheme := location.Scheme; scheme == "" {
		location.Scheme = "http"
	}
	location.Path = path
	return proxy.NewUpgradeAwareHandler(location, transport, true, false, fail)
}
