// Package node makes one machine's share of the cluster out of its configuration: it is the
// one place where services are wired together (see [Server.services] and [Agent.services]).
//
// A server runs, in this order, each standing on the ones before: the etcd member, the store,
// the API server, leadership with the scheduler and the controllers, the virtual IP, and,
// unless it is disabled, the node agent with its container runtime and network. An agent runs
// only the last.
package node

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"barque.dev/internal/agent/image"
	"barque.dev/internal/apiserver/auditlog"
	"barque.dev/internal/auth"
)

// Defaults of the cluster's shape.
const (
	DefaultHTTPSPort     = 6443
	DefaultClusterCIDR   = "10.42.0.0/16"
	DefaultServiceCIDR   = "10.43.0.0/16"
	DefaultClusterDNS    = "10.43.0.10"
	DefaultClusterDomain = "cluster.local"
)

// Common is what servers and agents have in common.
type Common struct {
	// DataDir holds everything that the machine keeps.
	DataDir string
	// NodeName is the machine's name in the cluster; a DNS-1123 subdomain.
	NodeName string
	// CgroupRoot is the control group below which pods' groups are made; "/" by default.
	CgroupRoot string
	// RuntimeEndpoint is a CRI socket of the machine's own; empty for Barque's containerd.
	RuntimeEndpoint string
	// Token joins the machine to a cluster at its first start.
	Token string
	// FenceAfter is how long an agent may be without any server before it stops the pods
	// that must not run twice.
	FenceAfter time.Duration
	// ImageGC says how full, in percent, the disk with the images may get before unused ones are
	// removed, and how full it may stay. Unset, both are the stock kubelet's.
	ImageGC image.Thresholds
	// Log receives everything; never nil.
	Log *slog.Logger
}

// ServerConfig is what `barque server` can be told.
type ServerConfig struct {
	Common
	// AdvertiseAddress is where the other machines reach this one.
	AdvertiseAddress netip.Addr
	// BindAddress is what the API server listens on.
	BindAddress netip.Addr
	// HTTPSPort is the API server's port.
	HTTPSPort int
	// EtcdPeerPort is the port of the embedded etcd member for its peers.
	EtcdPeerPort int
	// Join is the URL of any server of the cluster to join; empty to found one.
	Join string
	// VIP is the virtual IP of the servers; zero for none.
	VIP netip.Addr
	// APIName is the name, or the address, of the user's load balancer before the servers, or a DNS name of all of them, maybe with
	// a port that is not HTTPSPort; empty for none.
	APIName string
	// ShutdownDelay is for how long the API goes on to answer after the process was told to end, while /readyz says that it is about to.
	ShutdownDelay time.Duration
	// Witness makes it a vote and nothing else.
	Witness bool
	// DisableAgent makes the server a control plane alone.
	DisableAgent bool
	// DisableScheduler and DisableControllers leave assigning work and watching over it to programs of the user's. What a
	// stock API server does itself, such as accepting definitions of custom resources, is done nevertheless.
	DisableScheduler, DisableControllers bool
	// DisableAdmission names the admission plugins that don't see what this server is asked to change.
	DisableAdmission []string
	// EtcdEndpoints are the URLs of an etcd of the user's; empty for the embedded one.
	EtcdEndpoints []string
	// EtcdCA, EtcdCert and EtcdKey are files that authenticate the user's etcd and us to it.
	EtcdCA, EtcdCert, EtcdKey string
	// EtcdClientPort, when not 0, opens the embedded member to etcd clients on the loopback
	// address, with the cluster's etcd certificates.
	EtcdClientPort int
	// EncryptionConfig is a file with an EncryptionConfiguration; "" encrypts Secrets with keys of the
	// cluster's own. EncryptionReload follows its changes.
	EncryptionConfig string
	EncryptionReload bool
	// ClusterCIDR, ServiceCIDR: pods' and services' addresses.
	ClusterCIDR, ServiceCIDR netip.Prefix
	// ClusterDNS is the DNS service's address, in ServiceCIDR.
	ClusterDNS netip.Addr
	// ClusterDomain is the suffix of all names, such as "cluster.local".
	ClusterDomain string
	// TLSNames are further names and addresses for the API server's certificate.
	TLSNames []string
	// RemoveDeadAfter is how long no server may reach another one until it is removed from the cluster; 0 is for ever.
	RemoveDeadAfter time.Duration
	// ReplaceDeadAfter is how long that is for a voter when a server without a vote can take its place; 0 is as long as otherwise.
	ReplaceDeadAfter time.Duration
	// HastyRemoval lets both be as short as one likes: for tests, which can't wait for a quarter of an hour. For anything else a
	// server that only starts again would be thrown out.
	HastyRemoval bool
	// CertificateLifetime is how long certificates are valid that this server issues to itself, to nodes and to the administrator; 0 is
	// pki.OwnValidity for its own and pki.Validity for the others.
	CertificateLifetime time.Duration
	// NodeGrace is how long a node may be silent before it is called not ready; 0 is DefaultNodeGrace.
	NodeGrace time.Duration
	// ConnectionAge is after how long clients' connections are told to go, so that clients spread over the servers; 0 is never.
	ConnectionAge time.Duration
	// Access says who may do what.
	Access auth.Options
	// Requests bounds what the API server takes on.
	Requests RequestLimits
	// Audit says what requests are recorded, and where.
	Audit auditlog.Options
	// Snapshots says when snapshots are taken, and where they are kept.
	Snapshots SnapshotOptions
	// TracingFile holds a TracingConfiguration; empty traces nothing.
	TracingFile string
}

// RequestLimits bound how many requests are answered at a time, long-running ones apart.
type RequestLimits struct {
	// Reads and Writes are for the two kinds; with priority and fairness it is their sum that counts. 0 is
	// DefaultRequests and DefaultMutatingRequests.
	Reads, Writes int64
	// Plain turns priority and fairness off.
	Plain bool
}

// AgentConfig is what `barque agent` can be told.
type AgentConfig struct {
	Common
	// Server is the URL of any server.
	Server string
	// NodeIP is the machine's address; by default the one that reaches Server.
	NodeIP netip.Addr
}

// Stock's --max-requests-inflight and --max-mutating-requests-inflight.
const (
	DefaultRequests         = 400
	DefaultMutatingRequests = 200
	DefaultConnectionAge    = 10 * time.Minute
)

// DefaultRemoveDead is long enough for a machine to be repaired, or to be off over a weekend: as long as it counts, its return
// restores a quorum that the loss of another server costs, which once it is removed takes an administrator. So it is
// removed when that is no hope any more.
const DefaultRemoveDead = 72 * time.Hour

// DefaultReplaceDead is longer than a machine takes to start again, with its firmware's checks and those of its disks. The voter
// that is replaced loses nothing but its vote: it comes back as a server that stands by.
const DefaultReplaceDead = 15 * time.Minute

// minRemoveDead is longer than most machines take to start again: whoever is removed meanwhile gets all its data anew, and
// the cluster can lose one server less. minReplaceDead is longer than what the process alone takes.
const (
	minRemoveDead  = 10 * time.Minute
	minReplaceDead = time.Minute
)

// DefaultNodeGrace is stock's --node-monitor-grace-period.
const DefaultNodeGrace = 40 * time.Second

// minNodeGrace leaves room for a few of the leases that agents renew every 10 s.
const minNodeGrace = 20 * time.Second

var nodeName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$`)

func (c *Common) complete() error {
	if c.DataDir == "" {
		return errors.New("--data-dir is missing: name the directory that shall hold this machine's data")
	}
	dir, err := filepath.Abs(c.DataDir)
	if err != nil {
		return fmt.Errorf("--data-dir %s: %w", c.DataDir, err)
	}
	c.DataDir = dir
	if c.NodeName == "" {
		host, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find this machine's host name: %w; give --node-name", err)
		}
		c.NodeName = strings.ToLower(host)
	}
	if len(c.NodeName) > 253 || !nodeName.MatchString(c.NodeName) {
		return fmt.Errorf("--node-name %q: use lower case letters, digits, '-' and '.', at most 253", c.NodeName)
	}
	if c.CgroupRoot == "" {
		c.CgroupRoot = "/"
	}
	if c.ImageGC == (image.Thresholds{}) {
		c.ImageGC = image.DefaultThresholds()
	}
	if err := c.ImageGC.Check(); err != nil {
		return fmt.Errorf("--image-gc-high-threshold, --image-gc-low-threshold: %w", err)
	}
	return nil
}

// Complete fills in defaults and tells what is wrong, in one sentence that says what to do.
func (c *ServerConfig) Complete() error {
	if err := c.Common.complete(); err != nil {
		return err
	}
	if c.NodeGrace == 0 {
		c.NodeGrace = DefaultNodeGrace
	}
	if c.NodeGrace < minNodeGrace {
		return fmt.Errorf("--node-monitor-grace-period %v: choose %v or more, since nodes renew their leases every 10 s", c.NodeGrace, minNodeGrace)
	}
	if err := errors.Join(c.checkWitness(), c.checkRemoval(), c.checkEntrance()); err != nil {
		return err
	}
	if err := checkLifetime(c.CertificateLifetime); err != nil {
		return err
	}
	if err := c.Audit.Check(); err != nil {
		return err
	}
	if c.Requests.Reads < 0 || c.Requests.Writes < 0 {
		return errors.New("--max-requests-inflight and --max-mutating-requests-inflight: choose 1 or more, or 0 for the default")
	}
	if c.Join != "" {
		if err := checkURL("--join", c.Join); err != nil {
			return err
		}
	}
	if !c.BindAddress.IsValid() {
		c.BindAddress = netip.IPv4Unspecified()
	}
	if !c.AdvertiseAddress.IsValid() {
		var err error
		if c.AdvertiseAddress, err = advertised(c.BindAddress); err != nil {
			return err
		}
	}
	if c.HTTPSPort < 1 || c.HTTPSPort > 65535 {
		return fmt.Errorf("--https-port %d: choose 1 to 65535", c.HTTPSPort)
	}
	// The failure detector has the port after it.
	if c.EtcdPeerPort < 1 || c.EtcdPeerPort > 65534 {
		return fmt.Errorf("--etcd-peer-port %d: choose 1 to 65534", c.EtcdPeerPort)
	}
	if c.EtcdClientPort < 0 || c.EtcdClientPort > 65535 {
		return fmt.Errorf("--etcd-client-port %d: choose 1 to 65535, or 0 for none", c.EtcdClientPort)
	}
	if c.EncryptionReload && c.EncryptionConfig == "" {
		return errors.New("--encryption-provider-config-automatic-reload needs --encryption-provider-config: give the file that shall be reloaded")
	}
	if !c.DisableAgent && os.Geteuid() != 0 {
		return errors.New("running containers needs root: run with sudo, or add --disable agent for a control plane alone")
	}
	if err := c.Access.Check(); err != nil {
		return err
	}
	if err := c.checkPlugins(); err != nil {
		return err
	}
	if err := c.Snapshots.complete(c.DataDir); err != nil {
		return err
	}
	return c.checkRanges()
}

func (c *ServerConfig) checkRemoval() error {
	leastRemove, leastReplace := minRemoveDead, minReplaceDead
	if c.HastyRemoval {
		leastRemove, leastReplace = time.Second, time.Second
	}
	switch {
	case c.RemoveDeadAfter != 0 && c.RemoveDeadAfter < leastRemove:
		return fmt.Errorf("--remove-dead-after %v: choose %v or more, so that a machine may start again meanwhile, or 0 for never", c.RemoveDeadAfter, leastRemove)
	case c.ReplaceDeadAfter != 0 && c.ReplaceDeadAfter < leastReplace:
		return fmt.Errorf("--replace-dead-after %v: choose %v or more, or 0 to wait for --remove-dead-after", c.ReplaceDeadAfter, leastReplace)
	}
	return nil
}

func (c *ServerConfig) checkRanges() error {
	switch {
	case c.ClusterCIDR.Overlaps(c.ServiceCIDR):
		return fmt.Errorf("--cluster-cidr %s and --service-cidr %s overlap: choose ranges apart", c.ClusterCIDR, c.ServiceCIDR)
	case !c.ServiceCIDR.Contains(c.ClusterDNS):
		return fmt.Errorf("--cluster-dns %s: choose an address in --service-cidr %s", c.ClusterDNS, c.ServiceCIDR)
	case c.ClusterCIDR.Bits() > 23 && c.ClusterCIDR.Addr().Is4():
		return fmt.Errorf("--cluster-cidr %s: choose at least a /23, since each node takes a /24", c.ClusterCIDR)
	case c.VIP.IsValid() && !c.BindAddress.IsUnspecified():
		return fmt.Errorf("--vip %s with --bind-address %s: leave --bind-address out, so that the server listens on the virtual IP too", c.VIP, c.BindAddress)
	case c.VIP.IsValid() && c.VIP == c.AdvertiseAddress:
		return fmt.Errorf("--vip %s: choose an address that no machine has", c.VIP)
	}
	return nil
}

// Complete fills in defaults and tells what is wrong, in one sentence that says what to do.
func (c *AgentConfig) Complete() error {
	if err := c.Common.complete(); err != nil {
		return err
	}
	if c.Server == "" {
		return errors.New("--server is missing: give the URL of any server, such as https://192.0.2.1:6443")
	}
	if err := checkURL("--server", c.Server); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("running containers needs root: run with sudo")
	}
	if c.NodeIP.IsValid() {
		return nil
	}
	u, err := url.Parse(c.Server)
	if err != nil {
		return fmt.Errorf("--server %s: %w", c.Server, err)
	}
	c.NodeIP, err = sourceFor(u.Hostname())
	return err
}

func checkURL(flag, value string) error {
	u, err := url.Parse(value)
	if err != nil || u.Scheme != "https" || u.Host == "" {
		return fmt.Errorf("%s %q: give a URL such as https://192.0.2.1:6443", flag, value)
	}
	return nil
}

// advertised is the address that others reach us at, given what we listen on.
func advertised(bind netip.Addr) (netip.Addr, error) {
	if !bind.IsUnspecified() {
		return bind, nil
	}
	// A route look-up; nothing is sent. The address is RFC 5737's, for documentation.
	return sourceFor("192.0.2.1")
}

// sourceFor is the address that this machine speaks to host from. Nothing is sent.
func sourceFor(host string) (netip.Addr, error) {
	conn, err := net.Dial("udp", net.JoinHostPort(host, "9"))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find this machine's address towards %s: %w; give it by a flag (--advertise-address or --node-ip)", host, err)
	}
	defer func() { _ = conn.Close() }()
	addr, err := netip.ParseAddrPort(conn.LocalAddr().String())
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find this machine's address towards %s: %w", host, err)
	}
	return addr.Addr().Unmap(), nil
}
