package dns

import (
	"context"
	"errors"
	"hash/fnv"
	"net/netip"
	"slices"
	"strings"

	"barque.dev/internal/network/source"
	"github.com/coredns/coredns/plugin"
	"github.com/coredns/coredns/plugin/etcd/msg"
	"github.com/coredns/coredns/plugin/pkg/dnsutil"
	"github.com/coredns/coredns/plugin/pkg/upstream"
	"github.com/coredns/coredns/request"
	"github.com/miekg/dns"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

const (
	// ttl of answers about the cluster, in seconds: CoreDNS' default, short because endpoints
	// come and go.
	ttl = 5
	// schemaVersion is the version of the Kubernetes DNS specification, which clients can ask for.
	schemaVersion = "1.1.0"
	// keyPrefix begins the keys of CoreDNS' service records; any label will do.
	keyPrefix = "c"
)

var errNotFound = errors.New("no such name")

// backend answers from the API's objects. It implements plugin.ServiceBackend, whose callers turn
// services into records. It is safe for concurrent use.
type backend struct {
	source *source.Source
	zone   string // the cluster domain, such as "cluster.local."
	server netip.Addr
	lookup *upstream.Upstream
}

var _ plugin.ServiceBackend = (*backend)(nil)

// Services implements plugin.ServiceBackend.
func (b *backend) Services(ctx context.Context, state request.Request, exact bool, _ plugin.Options) ([]msg.Service, error) {
	if state.QType() == dns.TypeTXT {
		return b.text(ctx, state)
	}
	labels := b.labels(state)
	if slices.Equal(labels, []string{"ns", "dns"}) {
		return []msg.Service{{Host: b.server.String(), TTL: ttl, Key: msg.Path(state.Name(), keyPrefix)}}, nil
	}
	found, err := b.Records(ctx, state, exact)
	if state.QType() == dns.TypeSRV {
		// An external name has no port to announce.
		found = slices.DeleteFunc(found, func(s msg.Service) bool { t, _ := s.HostType(); return t == dns.TypeCNAME })
	}
	return found, err
}

// text answers the one TXT record there is, and otherwise says whether the name exists.
func (b *backend) text(ctx context.Context, state request.Request) ([]msg.Service, error) {
	if slices.Equal(b.labels(state), []string{"dns-version"}) {
		return []msg.Service{{Text: schemaVersion, TTL: ttl, Key: msg.Path(state.Name(), keyPrefix)}}, nil
	}
	_, err := b.Records(ctx, state, false)
	return nil, err
}

func (b *backend) labels(state request.Request) []string {
	rest, err := dnsutil.TrimZone(state.Name(), b.zone)
	if err != nil {
		return nil
	}
	return dns.SplitDomainName(rest)
}

// Records implements plugin.ServiceBackend. A name that exists without records of its own gives nothing
// and no error.
func (b *backend) Records(_ context.Context, state request.Request, _ bool) ([]msg.Service, error) {
	if dnsutil.IsReverse(state.Name()) > 0 {
		return nil, errNotFound
	}
	labels := b.labels(state)
	n := len(labels)
	if n == 0 {
		return nil, nil
	}
	kind := labels[n-1]
	if kind != "svc" && kind != "pod" {
		return nil, errNotFound
	}
	if n == 1 {
		return nil, nil
	}
	namespace := labels[n-2]
	if n == 2 {
		if !b.source.HasNamespace(namespace) {
			return nil, errNotFound
		}
		return nil, nil
	}
	if kind == "pod" {
		return b.pod(labels[:n-2], namespace)
	}
	return b.service(labels[:n-3], types.NamespacedName{Namespace: namespace, Name: labels[n-3]})
}

// pod answers 10-42-0-7.namespace.pod with the address itself, in any namespace that exists.
func (b *backend) pod(labels []string, namespace string) ([]msg.Service, error) {
	if len(labels) != 1 || !b.source.HasNamespace(namespace) {
		return nil, errNotFound
	}
	ip, err := netip.ParseAddr(strings.ReplaceAll(labels[0], "-", "."))
	if err != nil {
		ip, err = netip.ParseAddr(strings.ReplaceAll(labels[0], "-", ":"))
	}
	if err != nil {
		return nil, errNotFound
	}
	name := strings.Join([]string{labels[0], namespace, "pod", b.zone}, ".")
	return []msg.Service{{Host: ip.String(), TTL: ttl, Key: msg.Path(name, keyPrefix)}}, nil
}

// service answers for a service: with nothing before its name, one label (an endpoint's host name), or
// two (port and protocol).
func (b *backend) service(before []string, name types.NamespacedName) ([]msg.Service, error) {
	svc := b.source.Service(name)
	if svc == nil {
		return nil, errNotFound
	}
	var endpoint, port, protocol string
	switch len(before) {
	case 0:
	case 1:
		if protocol, _ := strings.CutPrefix(before[0], "_"); protocol != before[0] {
			return nil, nil // the name above _port._protocol
		}
		endpoint = before[0]
	case 2:
		var ok, ok2 bool
		port, ok = strings.CutPrefix(before[0], "_")
		protocol, ok2 = strings.CutPrefix(before[1], "_")
		if !ok || !ok2 {
			return nil, errNotFound
		}
	default:
		return nil, errNotFound
	}
	domain := strings.Join([]string{svc.Name, svc.Namespace, "svc", b.zone}, ".")
	match := func(name string, p corev1.Protocol) bool {
		return (port == "" || port == name) && (protocol == "" || strings.EqualFold(protocol, string(p)))
	}
	var found []msg.Service
	switch {
	case svc.Spec.Type == corev1.ServiceTypeExternalName:
		if endpoint == "" && port == "" {
			found = []msg.Service{{Host: svc.Spec.ExternalName, TTL: ttl, Key: msg.Path(domain, keyPrefix)}}
		}
	case endpoint != "" || svc.Spec.ClusterIP == corev1.ClusterIPNone:
		found = b.endpoints(name, domain, endpoint, match)
	default:
		found = clusterAddresses(svc, domain, match)
	}
	if len(found) == 0 {
		return nil, errNotFound
	}
	return found, nil
}

// noPort marks a record that has an address but is left out of SRV answers.
const noPort = -1

func clusterAddresses(svc *corev1.Service, domain string, match func(string, corev1.Protocol) bool) []msg.Service {
	ips := svc.Spec.ClusterIPs
	if len(ips) == 0 {
		ips = []string{svc.Spec.ClusterIP}
	}
	ports := svc.Spec.Ports
	if len(ports) == 0 {
		ports = []corev1.ServicePort{{Port: noPort}}
	}
	var found []msg.Service
	for _, p := range ports {
		if !match(p.Name, p.Protocol) {
			continue
		}
		for _, ip := range ips {
			found = append(found, msg.Service{Host: ip, Port: int(p.Port), TTL: ttl, Key: msg.Path(domain, keyPrefix)})
		}
	}
	return found
}

func (b *backend) endpoints(name types.NamespacedName, domain, hostname string, match func(string, corev1.Protocol) bool) []msg.Service {
	var found []msg.Service
	for _, slice := range b.source.SlicesOf(name) {
		ports := slice.Ports
		if len(ports) == 0 {
			ports = []discoveryv1.EndpointPort{{}}
		}
		for _, e := range slice.Endpoints {
			if !ready(e) {
				continue
			}
			for _, address := range e.Addresses {
				host := endpointName(e, address)
				if hostname != "" && hostname != host {
					continue
				}
				for _, p := range ports {
					portName, protocol, number := "", corev1.ProtocolTCP, noPort
					if p.Name != nil {
						portName = *p.Name
					}
					if p.Protocol != nil {
						protocol = *p.Protocol
					}
					if p.Port != nil {
						number = int(*p.Port)
					}
					if match(portName, protocol) {
						found = append(found, msg.Service{Host: address, Port: number, TTL: ttl,
							Key: msg.Path(host+"."+domain, keyPrefix)})
					}
				}
			}
		}
	}
	return found
}

func ready(e discoveryv1.Endpoint) bool { return e.Conditions.Ready == nil || *e.Conditions.Ready }

// endpointName is the endpoint's host name, or else its address in a form that fits a label.
func endpointName(e discoveryv1.Endpoint, address string) string {
	if e.Hostname != nil && *e.Hostname != "" {
		return *e.Hostname
	}
	label := strings.NewReplacer(".", "-", ":", "-").Replace(address)
	if strings.HasSuffix(label, "-") {
		label += "0" // an IPv6 address may end in "::"; a label may not end in a dash
	}
	return label
}

// Reverse implements plugin.ServiceBackend: the service that has the address, or the endpoints that
// have it.
func (b *backend) Reverse(_ context.Context, state request.Request, _ bool, _ plugin.Options) ([]msg.Service, error) {
	ip, err := netip.ParseAddr(dnsutil.ExtractAddressFromReverse(state.Name()))
	if err != nil {
		return nil, errNotFound
	}
	if services := b.source.ServicesAt(ip); len(services) > 0 {
		svc := slices.MinFunc(services, func(x, y *corev1.Service) int {
			return strings.Compare(x.Namespace+"/"+x.Name, y.Namespace+"/"+y.Name)
		})
		return []msg.Service{{Host: strings.Join([]string{svc.Name, svc.Namespace, "svc", b.zone}, "."), TTL: ttl}}, nil
	}
	var found []msg.Service
	for _, slice := range b.source.SlicesAt(ip) {
		service, ok := source.ServiceOf(slice)
		if !ok {
			continue
		}
		for _, e := range slice.Endpoints {
			if !ready(e) || !slices.Contains(e.Addresses, ip.String()) {
				continue
			}
			host := strings.Join([]string{endpointName(e, ip.String()), service.Name, service.Namespace, "svc", b.zone}, ".")
			found = append(found, msg.Service{Host: host, TTL: ttl})
		}
	}
	if len(found) == 0 {
		return nil, errNotFound
	}
	return found, nil
}

// Lookup implements plugin.ServiceBackend: names outside the zone, through the server's whole chain.
func (b *backend) Lookup(ctx context.Context, state request.Request, name string, typ uint16) (*dns.Msg, error) {
	return b.lookup.Lookup(ctx, state, name, typ)
}

// IsNameError implements plugin.ServiceBackend.
func (b *backend) IsNameError(err error) bool { return errors.Is(err, errNotFound) }

// Serial implements plugin.ServiceBackend. The serial follows what has been seen of the API, so that
// it is the same on two nodes that have seen the same.
func (b *backend) Serial(request.Request) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(b.source.Services.LastSyncResourceVersion())) // a hash does not fail
	_, _ = h.Write([]byte(b.source.Slices.LastSyncResourceVersion()))
	return h.Sum32()
}

// MinTTL implements plugin.ServiceBackend.
func (b *backend) MinTTL(request.Request) uint32 { return ttl }
