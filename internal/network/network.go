// Package network connects the pods of a node: with each other, with those of other nodes, with the
// outside, and with Services by address and by name. The kernel moves the packets; this package tells it how,
// through netlink only.
//
// The parts, each a package of its own:
//
//   - cni: the bridge, a pod's link and address, host ports; runs as the program barque-cni that the
//     container runtime calls.
//   - routes: the way to pods of other nodes, by plain routes or VXLAN.
//   - proxy: Services and host ports, by nftables.
//   - dns: the cluster's names, by CoreDNS in this process.
//   - source: the API objects that these depend on, once.
//   - namespace: running inside a network namespace.
//
// A [Network] runs them together for one node. Stopping it leaves everything in the kernel as it is,
// so that pods go on while the process is away, and the next one takes over what it finds; DNS alone is
// absent in between. [Cleanup] removes every trace.
package network

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"barque.dev/internal/network/cni"
	"barque.dev/internal/network/dns"
	"barque.dev/internal/network/namespace"
	"barque.dev/internal/network/proxy"
	"barque.dev/internal/network/routes"
	"barque.dev/internal/network/source"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"

	"golang.org/x/sync/errgroup"
)

// Names of the links on the node.
const (
	DefaultBridge = "brq0"
	DefaultTunnel = "brq-vxlan"
)

const (
	// resyncInterval is how often routes are compared with the kernel without a reason, in case
	// someone else changed them or a link went down and up.
	resyncInterval = 30 * time.Second
	// collectInterval is how often leaked addresses are looked for.
	collectInterval = 10 * time.Minute
	// retryInterval is the pause after the kernel refused something.
	retryInterval = time.Second
)

// Config is what a Network needs.
type Config struct {
	// NodeName is the name of this node's Node object, which need not exist yet. NodeIP is
	// its IPv4 address, on one of the machine's links.
	NodeName string
	NodeIP   netip.Addr

	// Client reads Services, EndpointSlices, Nodes and Namespaces of the whole cluster: its
	// identity needs list and watch on them.
	Client kubernetes.Interface

	// ClusterCIDR holds all nodes' ranges of pods, ServiceCIDR all cluster addresses, one of which
	// is ClusterDNS. All IPv4.
	ClusterCIDR, ServiceCIDR netip.Prefix
	ClusterDNS               netip.Addr
	// ClusterDomain is the domain of the cluster's names; "cluster.local" if empty.
	ClusterDomain string

	// ConfDir is where the container runtime looks for CNI configuration; the file is written
	// when the node has got its range of pods. StateDir keeps the addresses in use; it must be
	// an absolute path, and its contents may vanish with a reboot.
	ConfDir, StateDir string

	// ResolvConf names the DNS servers for all other names; "/etc/resolv.conf" if empty.
	ResolvConf string
	// Bridge and Tunnel name the links; DefaultBridge and DefaultTunnel if empty.
	Bridge, Tunnel string
	// MTU of pods in bytes; if 0, that of the node's link less what VXLAN takes.
	MTU int
	// Mode says how packets reach other nodes; by default, directly where they can.
	Mode routes.Mode
	// Namespace is the path of the machine's network namespace; if empty, the process's own.
	Namespace string

	Log *slog.Logger
}

func (c *Config) complete() error {
	if c.ClusterDomain == "" {
		c.ClusterDomain = "cluster.local"
	}
	if c.ResolvConf == "" {
		c.ResolvConf = "/etc/resolv.conf"
	}
	if c.Bridge == "" {
		c.Bridge = DefaultBridge
	}
	if c.Tunnel == "" {
		c.Tunnel = DefaultTunnel
	}
	switch {
	case c.NodeName == "":
		return errors.New("network: no node name")
	case !c.NodeIP.Is4():
		return fmt.Errorf("network: node address %s is not IPv4", c.NodeIP)
	case !c.ClusterCIDR.IsValid() || !c.ClusterCIDR.Addr().Is4():
		return fmt.Errorf("network: cluster range %s is not IPv4", c.ClusterCIDR)
	case !c.ServiceCIDR.IsValid() || !c.ServiceCIDR.Contains(c.ClusterDNS):
		return fmt.Errorf("network: DNS address %s is not in the service range %s", c.ClusterDNS, c.ServiceCIDR)
	case c.ClusterCIDR.Overlaps(c.ServiceCIDR):
		return fmt.Errorf("network: cluster range %s and service range %s overlap", c.ClusterCIDR, c.ServiceCIDR)
	case !filepath.IsAbs(c.StateDir) || c.ConfDir == "":
		return errors.New("network: no state or configuration directory")
	case c.Client == nil || c.Log == nil:
		return errors.New("network: no client or log")
	}
	return nil
}

// Network is the network of one node. See the package comment.
type Network struct {
	cfg    Config
	ns     namespace.Namespace
	source *source.Source
	proxy  *proxy.Proxy
	dns    *dns.Server
	router *routes.Router
	wake   chan struct{} // holds one token when nodes have changed
}

// New makes a network; nothing happens before Run.
func New(cfg Config) (*Network, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	src, err := source.New(cfg.Client)
	if err != nil {
		return nil, err
	}
	n := &Network{cfg: cfg, ns: namespace.At(cfg.Namespace), source: src, wake: make(chan struct{}, 1)}
	n.router = cfg.router()
	n.proxy, err = proxy.New(proxy.Config{
		Namespace: n.ns,
		Node: proxy.Node{Name: cfg.NodeName, IP: cfg.NodeIP, ClusterCIDR: cfg.ClusterCIDR,
			ServiceCIDR: cfg.ServiceCIDR, ClusterDNS: cfg.ClusterDNS},
		Bridge: cfg.Bridge, Source: src, Log: cfg.Log.With("part", "proxy"),
	})
	if err != nil {
		return nil, err
	}
	n.dns, err = dns.New(dns.Config{Namespace: n.ns, Address: cfg.ClusterDNS, Domain: cfg.ClusterDomain,
		ResolvConf: cfg.ResolvConf, Source: src, Log: cfg.Log.With("part", "dns")})
	if err != nil {
		return nil, err
	}
	changed := func(any) { n.signal() }
	_, err = src.Nodes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: changed, DeleteFunc: changed, UpdateFunc: func(any, any) { n.signal() }})
	if err != nil {
		return nil, fmt.Errorf("follow nodes: %w", err)
	}
	return n, nil
}

func (c Config) router() *routes.Router {
	return routes.NewRouter(routes.Config{Namespace: namespace.At(c.Namespace), IP: c.NodeIP,
		Bridge: c.Bridge, Tunnel: c.Tunnel, ServiceCIDR: c.ServiceCIDR, Mode: c.Mode})
}

func (n *Network) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// Run connects until ctx ends, and returns when all its goroutines have ended; the kernel keeps
// what it was told. ready is called when Services and DNS work; pods can start when the node has
// got its range, which may be later. Run can be called once.
func (n *Network) Run(ctx context.Context, ready func()) error {
	if err := n.router.Prepare(); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	var parts sync.WaitGroup
	parts.Add(2)
	done := func() func() { return sync.OnceFunc(parts.Done) }
	dnsReady, proxyReady := done(), done()
	both := make(chan struct{})
	go func() { parts.Wait(); close(both) }()

	group.Go(func() error { return n.source.Run(ctx) })
	group.Go(func() error {
		defer dnsReady()
		return n.dns.Run(ctx, dnsReady)
	})
	group.Go(func() error {
		defer proxyReady()
		return n.proxy.Run(ctx, proxyReady)
	})
	group.Go(func() error { return n.followLeases(ctx) })
	group.Go(func() error { return n.followNodes(ctx) })
	group.Go(func() error {
		<-both
		if ctx.Err() == nil {
			ready()
		}
		return nil
	})
	return group.Wait()
}

// followNodes keeps bridge, routes and CNI configuration in line with the Node objects.
func (n *Network) followNodes(ctx context.Context) error {
	if n.source.Wait(ctx) != nil {
		return nil // ctx ended
	}
	n.signal()
	resync := time.NewTicker(resyncInterval)
	defer resync.Stop()
	var applied view
	for {
		force := false
		select {
		case <-ctx.Done():
			return nil
		case <-resync.C:
			force = true
		case <-n.wake:
		}
		next := n.view()
		if !next.own.IsValid() || (!force && next.equal(applied)) {
			continue
		}
		if err := n.apply(next); err != nil {
			n.cfg.Log.Error("pod network not applied", "node", n.cfg.NodeName, "error", err)
			applied = view{}
			resync.Reset(retryInterval)
			continue
		}
		if !next.equal(applied) {
			n.cfg.Log.Info("pod network applied", "node", n.cfg.NodeName, "range", next.own, "peers", len(next.peers))
		}
		applied = next
		resync.Reset(resyncInterval)
	}
}

// view is what the Node objects say.
type view struct {
	own   netip.Prefix // invalid until the node has a range
	peers []routes.Peer
}

func (v view) equal(w view) bool { return v.own == w.own && slices.Equal(v.peers, w.peers) }

func (n *Network) view() view {
	var v view
	for _, obj := range n.source.Nodes.GetStore().List() {
		node, ok := obj.(*corev1.Node)
		if !ok {
			continue
		}
		if node.Name == n.cfg.NodeName {
			v.own, _ = routes.PodCIDR(node)
		} else if peer, ok := routes.PeerOf(node); ok {
			v.peers = append(v.peers, peer)
		}
	}
	slices.SortFunc(v.peers, func(a, b routes.Peer) int { return a.Pods.Compare(b.Pods) })
	return v
}

func (n *Network) apply(v view) error {
	mtu := n.cfg.MTU
	if mtu == 0 {
		up, err := routes.FindUplink(n.ns, n.cfg.NodeIP)
		if err != nil {
			return err
		}
		mtu = up.Link.Attrs().MTU - routes.VXLANOverhead
	}
	pods := cni.Network{Bridge: n.cfg.Bridge, PodCIDR: v.own, MTU: mtu, StateDir: n.cfg.StateDir}
	if err := cni.EnsureBridge(n.ns, pods); err != nil {
		return err
	}
	if err := n.router.Sync(v.own, v.peers); err != nil {
		return err
	}
	// Last: from now on the runtime starts pods.
	return cni.WriteConfig(n.cfg.ConfDir, pods)
}

// Cleanup removes everything that a network with this configuration leaves in the kernel and in
// the configuration directory. Of cfg, the Client and Log are not needed. It goes on after errors
// and returns all of them; what is not there is no error.
func Cleanup(cfg Config) error {
	if cfg.Bridge == "" {
		cfg.Bridge = DefaultBridge
	}
	if cfg.Tunnel == "" {
		cfg.Tunnel = DefaultTunnel
	}
	ns := namespace.At(cfg.Namespace)
	errs := []error{proxy.Remove(ns), cfg.router().Remove()}
	if cfg.StateDir != "" {
		errs = append(errs, cni.Plugin{Host: ns}.DisconnectAll(cfg.StateDir))
	}
	errs = append(errs, ns.RemoveLink(cfg.Bridge))
	if cfg.ClusterDNS.IsValid() {
		errs = append(errs, dns.Remove(ns, cfg.ClusterDNS))
	}
	if cfg.ConfDir != "" {
		errs = append(errs, cni.RemoveConfig(cfg.ConfDir))
	}
	return errors.Join(errs...)
}
