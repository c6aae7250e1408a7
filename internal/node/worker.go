package node

import (
	"context"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"sync"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"

	"barque.dev/internal/agent"
	"barque.dev/internal/agent/live"
	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/cluster/balance"
	"barque.dev/internal/network"
	"barque.dev/internal/run"
	"barque.dev/internal/runtime"
	"barque.dev/internal/runtime/bundle"
	"barque.dev/internal/runtime/containerd"
)

// certificates are a node's: who it is to the API, and what its own API serves with.
type certificates interface {
	ClientTLS() *tls.Config
	ServingTLS() *tls.Config
}

// workerConfig is what running pods on a machine takes.
type workerConfig struct {
	Common
	home *home
	// ip is the node's address.
	ip netip.Addr
	// servers are where the API is, prefer the one on this machine, if any.
	servers []string
	prefer  string
	certs   certificates
	ca      []byte
	// paths are served by the node's API, beside its own.
	paths map[string]http.Handler

	clusterCIDR, serviceCIDR netip.Prefix
	clusterDNS               netip.Addr
	clusterDomain            string
}

// worker is the part of a machine that runs pods: containers, network and agent.
type worker struct {
	cfg      workerConfig
	balancer *balance.Balancer
	client   kubernetes.Interface

	containerd *containerd.Runtime // nil with a runtime of the user's
	cri        *runtime.Client
	network    *network.Network
	agent      *agent.Agent
	metrics    *metrics.Set

	mu        sync.Mutex
	live      map[string]live.Server
	witnesses []string // their URLs
}

func newWorker(cfg workerConfig) (*worker, error) {
	w := &worker{cfg: cfg, metrics: metrics.New(), live: map[string]live.Server{}}
	for _, step := range []func() error{w.openAPI, w.openRuntime, w.openNetwork, w.openAgent} {
		if err := step(); err != nil {
			w.close()
			return nil, err
		}
	}
	return w, nil
}

// services is what a machine runs for its pods, in the order in which it is started.
func (w *worker) services() []run.Service {
	services := []run.Service{
		run.Func("balancer", w.balancer.Run),
		run.Func("server list", func(ctx context.Context) error { return w.balancer.Follow(ctx, w.client) }),
		run.Func("witnesses", w.followWitnesses),
	}
	if w.containerd != nil {
		services = append(services, run.Service{Name: "containerd", Run: w.containerd.Run})
	}
	return append(services,
		run.Service{Name: "network", Run: w.network.Run},
		run.Service{Name: "agent", Run: w.agent.Run})
}

// openAPI makes the node's client, which goes to any server that lives.
func (w *worker) openAPI() (err error) {
	w.balancer, err = balance.New(balance.Config{
		Name: w.cfg.NodeName, Servers: w.cfg.servers, Prefer: w.cfg.prefer,
		File: w.cfg.home.path("servers.json"), TLS: w.cfg.certs.ClientTLS(), Log: w.cfg.Log,
	})
	if err != nil {
		return fmt.Errorf("reach the servers: %w", err)
	}
	config := w.balancer.RESTConfig()
	config.QPS = -1 // the servers look after themselves
	config.ContentConfig = rest.ContentConfig{
		ContentType: "application/vnd.kubernetes.protobuf", AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
	}
	config.UserAgent = "barque-agent"
	w.client, err = kubernetes.NewForConfig(config)
	return err
}

func (w *worker) openRuntime() (err error) {
	endpoint := w.cfg.RuntimeEndpoint
	if endpoint == "" {
		programs, err := unpack(w.cfg.home)
		if err != nil {
			return err
		}
		w.containerd, err = containerd.New(containerd.Config{
			DataDir: w.cfg.home.path("agent"), CgroupRoot: w.cfg.CgroupRoot, Programs: programs, Log: w.cfg.Log,
		})
		if err != nil {
			return err
		}
		endpoint = w.containerd.Endpoint()
	}
	w.cri, err = runtime.Dial(endpoint, runtime.Limits{}, w.metrics.RuntimeCall)
	return err
}

// unpack lays out the programs that this binary carries.
func unpack(h *home) (bundle.Programs, error) {
	b, err := bundle.Open()
	if err != nil {
		return bundle.Programs{}, err
	}
	return b.Unpack(h.path("bin"))
}

func (w *worker) openNetwork() (err error) {
	w.network, err = network.New(w.networkConfig())
	return err
}

func (w *worker) networkConfig() network.Config {
	confDir := "/etc/cni/net.d"
	if w.containerd != nil {
		confDir = w.containerd.CNIConfDir()
	}
	return network.Config{
		NodeName: w.cfg.NodeName, NodeIP: w.cfg.ip, Client: w.client,
		ClusterCIDR: w.cfg.clusterCIDR, ServiceCIDR: w.cfg.serviceCIDR,
		ClusterDNS: w.cfg.clusterDNS, ClusterDomain: w.cfg.clusterDomain,
		ConfDir: confDir, StateDir: w.cfg.home.path("agent", "cni", "state"), Log: w.cfg.Log,
	}
}

func (w *worker) openAgent() (err error) {
	w.agent, err = agent.New(agent.Config{
		NodeName: w.cfg.NodeName, NodeIPs: []string{w.cfg.ip.String()}, Client: w.client,
		Runtime: w.cri, Images: w.cri, RootDir: w.cfg.home.path("agent", "kubelet"), CgroupRoot: w.cfg.CgroupRoot,
		ClusterDNS: []string{w.cfg.clusterDNS.String()}, ClusterDomain: w.cfg.clusterDomain,
		TLS: w.cfg.certs.ServingTLS(), ClientCA: w.cfg.ca, Paths: w.cfg.paths,
		Metrics: w.metrics, ImageGC: w.cfg.ImageGC, LiveServers: w.liveServers, FenceBound: w.cfg.FenceAfter, Log: w.cfg.Log,
	})
	return err
}

func (w *worker) close() {
	if w.cri != nil {
		_ = w.cri.Close()
	}
	if w.balancer != nil {
		w.balancer.CloseIdleConnections()
	}
}
