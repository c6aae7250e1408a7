package podspec

import (
	"bufio"
	"fmt"
	"io"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// DNS are the node's settings that pods' resolvers are made from.
type DNS struct {
	// ClusterDNS are the addresses of the cluster's name servers, Domain its domain.
	ClusterDNS []string
	Domain     string
	// Node is the node's own resolver configuration.
	Node Resolver
}

// Resolver is what a resolv.conf says.
type Resolver struct {
	Servers, Searches, Options []string
}

// The limits of glibc's resolver (resolv.conf(5)) and of Kubernetes' validation.
const (
	maxServers      = 3
	maxSearches     = 32
	maxSearchLength = 2048
)

// ParseResolver reads a resolv.conf. Of several search or options lines the last one counts.
func ParseResolver(r io.Reader) (Resolver, error) {
	var out Resolver
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		fields := strings.Fields(line)
		switch fields[0] {
		case "nameserver":
			if len(fields) > 1 {
				out.Servers = append(out.Servers, fields[1])
			}
		case "search":
			out.Searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				out.Searches = append(out.Searches, s)
			}
		case "options":
			out.Options = append(out.Options, fields[1:]...)
		}
	}
	if err := lines.Err(); err != nil {
		return out, fmt.Errorf("read resolver configuration: %w", err)
	}
	return out, nil
}

// Resolver returns a pod's resolver configuration by its DNS policy.
func (d DNS) Resolver(pod *corev1.Pod) *runtimeapi.DNSConfig {
	var out Resolver
	policy := pod.Spec.DNSPolicy
	if policy == corev1.DNSClusterFirst && pod.Spec.HostNetwork {
		policy = corev1.DNSDefault
	}
	if len(d.ClusterDNS) == 0 && policy != corev1.DNSNone {
		policy = corev1.DNSDefault
	}
	switch policy {
	case corev1.DNSNone:
	case corev1.DNSDefault:
		out = Resolver{Servers: clone(d.Node.Servers), Searches: clone(d.Node.Searches), Options: clone(d.Node.Options)}
	default:
		out = Resolver{Servers: clone(d.ClusterDNS), Options: []string{"ndots:5"}}
		if d.Domain != "" {
			out.Searches = []string{pod.Namespace + ".svc." + d.Domain, "svc." + d.Domain, d.Domain}
		}
		out.Searches = unique(append(out.Searches, d.Node.Searches...))
	}
	if own := pod.Spec.DNSConfig; own != nil {
		out.Servers = unique(append(out.Servers, own.Nameservers...))
		out.Searches = unique(append(out.Searches, own.Searches...))
		out.Options = mergeOptions(out.Options, own.Options)
	}
	if len(out.Servers) > maxServers {
		out.Servers = out.Servers[:maxServers]
	}
	return &runtimeapi.DNSConfig{Servers: out.Servers, Searches: fitSearches(out.Searches), Options: out.Options}
}

func clone(s []string) []string { return append([]string(nil), s...) }

func unique(in []string) []string {
	seen := map[string]bool{}
	var out []string
	for _, s := range in {
		if !seen[s] {
			seen[s] = true
			out = append(out, s)
		}
	}
	return out
}

// fitSearches drops search domains from the end until they fit the resolver's limits.
func fitSearches(in []string) []string {
	var out []string
	length := 0
	for _, s := range in {
		if len(s) > validation.DNS1123SubdomainMaxLength {
			continue
		}
		length += len(s) + 1
		if len(out) == maxSearches || length > maxSearchLength+1 {
			break
		}
		out = append(out, s)
	}
	return out
}

// mergeOptions puts the pod's options in place of the policy's options of the same name.
func mergeOptions(base []string, own []corev1.PodDNSConfigOption) []string {
	values := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, again := values[name]; !again {
			order = append(order, name)
		}
		values[name] = value
	}
	for _, o := range base {
		name, value, _ := strings.Cut(o, ":")
		set(name, value)
	}
	for _, o := range own {
		value := ""
		if o.Value != nil {
			value = *o.Value
		}
		set(o.Name, value)
	}
	var out []string
	for _, name := range order {
		if values[name] != "" {
			name += ":" + values[name]
		}
		out = append(out, name)
	}
	return out
}

// Hostname returns the host name of a pod and, if it has a subdomain, its domain in the cluster.
func Hostname(pod *corev1.Pod, clusterDomain string) (host, domain string) {
	if over := pod.Spec.HostnameOverride; over != nil {
		return *over, ""
	}
	host = pod.Name
	if pod.Spec.Hostname != "" {
		host = pod.Spec.Hostname
	}
	if len(host) > validation.DNS1123LabelMaxLength {
		// The kernel takes no more; a name must not end in a separator.
		host = strings.TrimRight(host[:validation.DNS1123LabelMaxLength], "-.")
	}
	if pod.Spec.Subdomain != "" {
		domain = pod.Spec.Subdomain + "." + pod.Namespace + ".svc." + clusterDomain
	}
	return host, domain
}

// SandboxHostname is the name the pod's UTS namespace gets: that of the node ("") in the node's
// network, and the fully qualified one if the pod wants it.
func SandboxHostname(pod *corev1.Pod, clusterDomain string) (string, error) {
	host, domain := Hostname(pod, clusterDomain)
	if pod.Spec.HostNetwork && pod.Spec.HostnameOverride == nil {
		return "", nil
	}
	if fqdn := pod.Spec.SetHostnameAsFQDN; fqdn != nil && *fqdn && domain != "" {
		full := host + "." + domain
		if len(full) > 64 {
			return "", fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (64 characters is the max, %d characters requested)", full, len(full))
		}
		return full, nil
	}
	return host, nil
}

// hostsHeader begins the file that the agent writes, and not one that a container brings itself. Programs and
// people tell them apart by it, so that it reads as on any other node.
const (
	hostsHeader            = "# Kubernetes-managed hosts file.\n"
	hostsHeaderHostNetwork = "# Kubernetes-managed hosts file (host network).\n"
)

// Hosts returns the contents of a pod's /etc/hosts. node is that of the node, for pods in its network.
func Hosts(pod *corev1.Pod, ips []string, clusterDomain string, node []byte) []byte {
	var b strings.Builder
	if pod.Spec.HostNetwork {
		b.WriteString(hostsHeaderHostNetwork)
		b.Write(node)
		if n := len(node); n > 0 && node[n-1] != '\n' {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString(hostsHeader)
		b.WriteString("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
		host, domain := Hostname(pod, clusterDomain)
		for _, ip := range ips {
			if domain != "" {
				fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, host, domain, host)
			} else {
				fmt.Fprintf(&b, "%s\t%s\n", ip, host)
			}
		}
	}
	if len(pod.Spec.HostAliases) > 0 {
		b.WriteString("\n# From the pod's host aliases.\n")

		for _, a := range pod.Spec.HostAliases {
			fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
		}
	}
	return []byte(b.String())
}
