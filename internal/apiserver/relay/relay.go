// Package relay passes requests on from the API server to where they end: to the kubelet of a node (exec, attach,
// port-forward, logs, nodes/proxy), to a pod, or to one of a service's endpoints.
//
// Streams that outgrow HTTP (SPDY, WebSocket) are upgraded on both sides and copied. Two of the WebSocket
// protocols, exec's v5 and port-forward's v2, end here and go on as SPDY, as kube-apiserver has it for nodes that
// do not declare that they speak them.
package relay

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/util/proxy"
	translator "k8s.io/apiserver/pkg/util/proxy"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"barque.dev/internal/reconnect"
)

// defaultKubeletPort is the kubelet's when a node does not say its own.
const defaultKubeletPort = 10250

// Config says how nodes are reached.
type Config struct {
	// TLS holds the client certificate that the API server shows to kubelets, and the
	// authorities that it trusts for theirs. nil trusts the system's.
	TLS *tls.Config
	// Dial connects to nodes and pods; nil dials directly.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Addresses says which of a node's addresses are preferred, best first. The default is
	// InternalIP, Hostname, InternalDNS, ExternalIP.
	Addresses []corev1.NodeAddressType
}

// Objects reads what a relay needs to know. What it returns is shared: read-only.
type Objects interface {
	Node(ctx context.Context, name string) (*corev1.Node, error)
	Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error)
	Service(ctx context.Context, namespace, name string) (*corev1.Service, error)
	EndpointSlices(ctx context.Context, namespace, service string) ([]*discoveryv1.EndpointSlice, error)
}

// Relay passes requests on. It is safe for concurrent use.
type Relay struct {
	cfg     Config
	objects Objects
	// kubelets is for kubelets, insecure too, but does not check who they are; elsewhere is for pods
	// and services, whose certificates mean nothing to the cluster.
	kubelets, insecure, elsewhere *reconnect.Transport
}

// New makes a relay.
func New(cfg Config, objects Objects) *Relay {
	if len(cfg.Addresses) == 0 {
		cfg.Addresses = []corev1.NodeAddressType{corev1.NodeInternalIP, corev1.NodeHostName, corev1.NodeInternalDNS, corev1.NodeExternalIP}
	}
	if cfg.Dial == nil {
		cfg.Dial = (&net.Dialer{Timeout: 10 * time.Second, KeepAlive: 30 * time.Second}).DialContext
	}
	if cfg.TLS == nil {
		cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12}
	}
	r := &Relay{cfg: cfg, objects: objects}
	insecure := cfg.TLS.Clone()
	insecure.InsecureSkipVerify = true
	r.kubelets = r.transport(cfg.TLS)
	r.insecure = r.transport(insecure)
	r.elsewhere = r.transport(&tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12})
	return r
}

// transport speaks HTTP/1.1 alone: upgrades need it, and a lost kubelet then stalls one request and not all.
func (r *Relay) transport(config *tls.Config) *reconnect.Transport {
	return reconnect.New(&http.Transport{
		DialContext:         r.cfg.Dial,
		TLSClientConfig:     config.Clone(),
		TLSHandshakeTimeout: 10 * time.Second,
		IdleConnTimeout:     90 * time.Second,
		MaxIdleConnsPerHost: 25,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableCompression:  true,
	})
}

// Close drops idle connections.
func (r *Relay) Close() {
	r.kubelets.CloseIdleConnections()
	r.insecure.CloseIdleConnections()
	r.elsewhere.CloseIdleConnections()
}

// kubelet is where a node's kubelet listens.
func (r *Relay) kubelet(ctx context.Context, node string) (host string, port int, err error) {
	n, err := r.objects.Node(ctx, node)
	if err != nil {
		return "", 0, err
	}
	host, err = address(n, r.cfg.Addresses)
	if err != nil {
		return "", 0, apierrors.NewInternalError(err)
	}
	if port = int(n.Status.DaemonEndpoints.KubeletEndpoint.Port); port == 0 {
		port = defaultKubeletPort
	}
	return host, port, nil
}

// address picks the node's address of the most preferred kind.
func address(n *corev1.Node, preferred []corev1.NodeAddressType) (string, error) {
	for _, want := range preferred {
		for _, a := range n.Status.Addresses {
			if a.Type == want && a.Address != "" {
				return a.Address, nil
			}
		}
	}
	return "", fmt.Errorf("node %s has no address of the kinds %v", n.Name, preferred)
}

// kubeletURL is a URL at a node's kubelet.
func (r *Relay) kubeletURL(ctx context.Context, node, path string, params url.Values) (*url.URL, error) {
	host, port, err := r.kubelet(ctx, node)
	if err != nil {
		return nil, err
	}
	return &url.URL{Scheme: "https", Host: net.JoinHostPort(host, strconv.Itoa(port)), Path: path, RawQuery: params.Encode()}, nil
}

// Fail answers with an error.
type Fail func(w http.ResponseWriter, req *http.Request, err error)

// Error implements proxy.ErrorResponder.
func (f Fail) Error(w http.ResponseWriter, req *http.Request, err error) { f(w, req, unreachable(err)) }

// unreachable makes an API error of what went wrong on the way to the other end.
func unreachable(err error) error {
	if _, ok := err.(apierrors.APIStatus); ok {
		return err
	}
	return apierrors.NewServiceUnavailable(fmt.Sprintf("error trying to reach service: %v", err))
}

// stream serves an exec, attach or port-forward whose other end is location.
func (r *Relay) stream(location *url.URL, fail Fail, terminal *translator.Options) http.Handler {
	var handler http.Handler = proxy.NewUpgradeAwareHandler(location, r.kubelets, false, true, fail)
	if terminal == nil {
		return translator.NewTranslatingHandler(handler, translator.NewTunnelingHandler(handler), wsstream.IsWebSocketRequestWithTunnelingProtocol)
	}
	return translator.NewTranslatingHandler(handler, translator.NewStreamTranslatorHandler(location, r.kubelets, 0, *terminal),
		wsstream.IsWebSocketRequestWithStreamCloseProtocol)
}
