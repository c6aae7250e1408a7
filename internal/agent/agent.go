// Package agent runs pods on a node: Barque's kubelet.
//
// It registers the node, follows the pods that are bound to it, and makes the container runtime run
// them, through CRI. Its parts:
//
//	worker      one goroutine a pod; effects
//	plan        what a pod needs next; pure
//	status      a pod's API status; pure
//	podspec     from a pod's definition to CRI's messages; pure
//	cri         the runtime's interfaces, and what it runs
//	volume      folders, tmpfs, config maps, secrets, tokens
//	objects     the config maps, secrets and tokens that pods refer to
//	image       pull policy, credentials, disk space
//	probe       asking containers how they are
//	cgroup      cgroups of pods
//	logs        rotation and reading
//	nodestatus  the node's registration, lease and status
//	metrics     what is counted and timed
//	live        live connections to the servers; when the node is cut off
//	server      the node's API on port 10250
//
// Nothing is kept that could not be found out again from the API server and the runtime, except what
// a pod that is resized was promised, in a file of its folder: an agent that ends leaves its containers
// running, and the next one takes them over.
package agent

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/authentication/authenticator"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/client-go/kubernetes"

	"barque.dev/internal/agent/cgroup"
	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/image"
	"barque.dev/internal/agent/live"
	"barque.dev/internal/agent/metrics"
	"barque.dev/internal/agent/nodestatus"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/server"
	"barque.dev/internal/agent/worker"
	"barque.dev/internal/run"
)

// Defaults of a Config.
const (
	DefaultMaxPods = 110
	DefaultPort    = 10250
	DefaultVersion = "v1.37.1+barque"
)

// Config configures an Agent. Fields without a default are required.
type Config struct {
	NodeName string
	// NodeIPs are the node's addresses, the primary one first.
	NodeIPs []string
	// Hostname is NodeName unless set.
	Hostname string
	Client   kubernetes.Interface
	Runtime  cri.Runtime
	Images   cri.Images
	// RootDir holds pods' folders; LogDir their logs, RootDir/logs/pods unless set.
	RootDir, LogDir string
	// CgroupRoot is the cgroup above all pods, "/" unless set.
	CgroupRoot string

	ClusterDNS    []string
	ClusterDomain string
	// ResolvConf is the node's own resolver configuration, /etc/resolv.conf unless set.
	ResolvConf string

	// Listener of the node's API; unless set, the agent listens on the first node IP's port 10250.
	Listener net.Listener
	// TLS has the certificate of the node's API.
	TLS *tls.Config
	// ClientCA are the authorities, in PEM, of client certificates for the node's API.
	ClientCA []byte
	// Paths are served by the node's API beside its own; callers need the rights on nodes/proxy.
	Paths map[string]http.Handler
	// Authenticator and Authorizer replace the cluster's (for tests).
	Authenticator authenticator.Request
	Authorizer    authorizer.Authorizer

	MaxPods  int64
	Version  string
	Labels   map[string]string
	Taints   []corev1.Taint
	Reserved *nodestatus.Reserved

	// ImageGC says when unused images are removed; image.DefaultThresholds unless set.
	ImageGC image.Thresholds

	// LiveServers returns the servers to hold live connections to; nil for no self-fencing.
	LiveServers func() []live.Server
	// FenceBound is how long the node may be without any server; 0 is live.DefaultBound.
	FenceBound time.Duration

	// Metrics are the agent's own unless set, as when the runtime's calls are to be counted too.
	Metrics *metrics.Set
	Log     *slog.Logger
}

func (c *Config) complete() error {
	switch {
	case c.NodeName == "" || len(c.NodeIPs) == 0:
		return errors.New("agent: node name and address are required")
	case c.Client == nil || c.Runtime == nil || c.Images == nil:
		return errors.New("agent: API client, container runtime and image service are required")
	case c.RootDir == "" || !filepath.IsAbs(c.RootDir):
		return fmt.Errorf("agent: root folder %q is not an absolute path", c.RootDir)
	case c.TLS == nil:
		return errors.New("agent: TLS of the node API is required")
	}
	def := func(s *string, v string) {
		if *s == "" {
			*s = v
		}
	}
	def(&c.Hostname, strings.ToLower(c.NodeName))
	def(&c.LogDir, filepath.Join(c.RootDir, "logs", "pods"))
	def(&c.CgroupRoot, "/")
	def(&c.ResolvConf, "/etc/resolv.conf")
	def(&c.Version, DefaultVersion)
	if c.MaxPods == 0 {
		c.MaxPods = DefaultMaxPods
	}
	if c.Reserved == nil {
		r := nodestatus.DefaultReserved()
		c.Reserved = &r
	}
	if c.ImageGC == (image.Thresholds{}) {
		c.ImageGC = image.DefaultThresholds()
	}
	if err := c.ImageGC.Check(); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	if c.Metrics == nil {
		c.Metrics = metrics.New()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Agent is a node's agent. Make it with New.
type Agent struct {
	Config
	node    *nodestatus.Reporter
	cgroups *cgroup.Tree
	spec    podspec.Node
	parts   parts
	// known: every pod of the node has its worker.
	known atomic.Bool
}

// New returns an agent. It touches nothing but the node's facts and its own folders.
func New(c Config) (*Agent, error) {
	if err := c.complete(); err != nil {
		return nil, err
	}
	for _, dir := range []string{filepath.Join(c.RootDir, "pods"), c.LogDir} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("agent: make folder: %w", err)
		}
	}
	a := &Agent{Config: c}
	var err error
	a.cgroups = cgroup.New(c.CgroupRoot)
	port := int32(DefaultPort)
	if c.Listener != nil {
		if _, p, err := net.SplitHostPort(c.Listener.Addr().String()); err == nil {
			if n, err := strconv.ParseInt(p, 10, 32); err == nil {
				port = int32(n)
			}
		}
	}
	a.node, err = nodestatus.New(nodestatus.Config{
		Client: c.Client, NodeName: c.NodeName, Addresses: c.NodeIPs, Hostname: c.Hostname,
		Runtime: c.Runtime, Images: c.Images, Dir: c.RootDir, Port: port, MaxPods: c.MaxPods,
		Version: c.Version, Reserved: *c.Reserved, Labels: c.Labels, Taints: c.Taints, Log: c.Log,
	})
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	resolver, err := readResolver(c.ResolvConf)
	if err != nil {
		return nil, fmt.Errorf("agent: %w", err)
	}
	a.spec = podspec.Node{
		DNS:     podspec.DNS{ClusterDNS: c.ClusterDNS, Domain: c.ClusterDomain, Node: resolver},
		LogRoot: c.LogDir, SeccompRoot: filepath.Join(c.RootDir, "seccomp"),
		Memory: a.node.Facts().Memory, Unified: a.cgroups.Unified(),
	}
	return a, nil
}

func readResolver(path string) (podspec.Resolver, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return podspec.Resolver{}, nil // a machine without a resolver has nothing to hand on
	} else if err != nil {
		return podspec.Resolver{}, err
	}
	defer f.Close()
	return podspec.ParseResolver(f)
}

// Run runs the agent until ctx ends. ready is called when the node is registered, its pods are known
// and its API answers. Containers keep running after Run returns.
func (a *Agent) Run(ctx context.Context, ready func()) error {
	if err := a.cgroups.Init(); err != nil {
		return fmt.Errorf("agent: cgroups of pods: %w", err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop, err := a.assemble(ctx)
	if err != nil {
		return err
	}
	defer stop()
	defer cancel()
	services, err := a.services(ctx)
	if err != nil {
		return err
	}
	if err := run.Group(ctx, a.Log, ready, services...); err != nil {
		return fmt.Errorf("agent: %w", err)
	}
	return nil
}

// services lists what the agent does. Pods come last: the node has to be registered, and what
// tells about them at work.
func (a *Agent) services(ctx context.Context) ([]run.Service, error) {
	api, err := a.newServer()
	if err != nil {
		return nil, err
	}
	services := []run.Service{{Name: "node API", Run: api.Run}}
	if a.LiveServers != nil {
		monitor, err := a.newMonitor(ctx)
		if err != nil {
			return nil, err
		}
		services = append(services, run.Func("live connections", monitor.Run))
	}
	return append(services,
		run.Func("runtime events", a.followRuntime),
		run.Func("housekeeping", a.keepHouse),
		run.Service{Name: "node status", Run: a.node.Run},
		run.Service{Name: "pods", Run: a.followPods},
	), nil
}

func (a *Agent) newServer() (*server.Server, error) {
	listener := a.Listener
	if listener == nil {
		address := net.JoinHostPort(a.NodeIPs[0], strconv.Itoa(DefaultPort))
		l, err := net.Listen("tcp", address)
		if err != nil {
			return nil, fmt.Errorf("agent: listen for the node API: %w", err)
		}
		listener = l
	}
	authn, authz, err := a.access()
	if err != nil {
		return nil, err
	}
	config := a.TLS.Clone()
	config.ClientAuth = tls.RequestClientCert
	return server.New(server.Config{
		NodeName: a.NodeName, Listener: listener, TLS: config, Authenticator: authn, Authorizer: authz,
		Pods: a.parts.workers.Pods, Facts: a.node.Facts, VolumePath: a.parts.volumes.HostPath,
		Runtime: a.Runtime, Metrics: a.Metrics, Paths: a.Paths, Log: a.Log,
	})
}

var _ worker.Cgroups = (*cgroup.Tree)(nil)
