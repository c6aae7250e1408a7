// Package etcd has the two backends of the store: [Member], an etcd server in this process, which
// is called directly without a socket, and [Remote], a cluster that somebody else runs.
//
// Member also has what the cluster's membership, leadership and failure detection need of raft.
package etcd

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"sort"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.uber.org/zap"
)

// Config says how a member runs. The zero values of limits and times take the defaults.
type Config struct {
	// Name is the member's, unique in the cluster.
	Name string
	// DataDir holds write-ahead log, snapshots and database; it is made if need be. A member
	// that has data there restarts from it, and the cluster fields are ignored.
	DataDir string

	// PeerURL is where the other members reach this one, such as https://10.0.0.1:2380.
	PeerURL string
	// ListenPeer is the URL to listen on; empty means PeerURL.
	ListenPeer string
	// PeerTLS is used as server and as client, and required of the others.
	PeerTLS TLSFiles

	// ClientListen is a URL, on loopback or a unix socket, for etcdctl or a stock
	// kube-apiserver, such as https://127.0.0.1:2379. Empty: no client listener.
	ClientListen string
	ClientTLS    TLSFiles

	// Witness is the URL at which a witness answers the other members and the nodes; it makes this member known as one. Empty: a
	// server. It has no path.
	Witness string

	// InitialCluster names all members of a new cluster, or of the one that is joined, with
	// their peer URLs, this one included. Empty: this one alone.
	InitialCluster map[string]string
	// Existing joins a cluster that already added this member (as a learner).
	Existing bool
	// ForceNewCluster makes a cluster of one out of what the data directory holds, when the
	// others are lost for good.
	ForceNewCluster bool
	// Token keeps clusters apart that were made with the same names.
	Token string

	// Heartbeat (200 ms) and Election (1 s) are raft's timers, the same on all members.
	Heartbeat time.Duration
	Election  time.Duration
	// QuotaBytes bounds the database (8 GiB).
	QuotaBytes int64
	// UnsafeNoSync doesn't wait for the disk: for tests of what doesn't depend on it.
	UnsafeNoSync bool

	// Fail is told when the member can't go on: its disk is full or fails, or its data is damaged. From then on
	// it does nothing any more, not even Close or, if it was in that, Start: the process has to end, which it does
	// at once when Fail is nil. The error wraps ErrDiskFull, ErrDisk or ErrDamaged where the reason is known.
	// Fail must not block, and may be called more than once.
	Fail func(error) `json:"-"`

	Log *slog.Logger
}

// TLSFiles are PEM files. CA signs both sides.
type TLSFiles struct {
	Cert, Key, CA string
}

func (f TLSFiles) info() transport.TLSInfo {
	if f == (TLSFiles{}) {
		return transport.TLSInfo{}
	}
	return transport.TLSInfo{CertFile: f.Cert, KeyFile: f.Key, TrustedCAFile: f.CA, ClientCertAuth: true}
}

const (
	defaultHeartbeat = 200 * time.Millisecond // the most that etcd takes with this election timeout
	defaultElection  = time.Second
	defaultQuota     = 8 << 30
	// snapshotEvery and keepEntries bound the raft log in memory, whose entries hold every
	// value that was written: at most the sum of both.
	snapshotEvery = 5000
	keepEntries   = 2500
	// maxLearners is how many members may be without a vote at the same time: those that join, and those that stand by.
	// All members have to agree on it, since each applies it to what raft decided.
	maxLearners = 32
	// defragAtStart is how many MiB must be free in the database to shrink it at start.
	defragAtStart = 100
)

// TunePeerStreams shortens the timeouts of connections between members, so that they are dialled
// again soon after a fault. They are variables of etcd's: call it once, before the first Start.
//
// A connection that is silent for the time to read is closed, and etcd asks each peer for its health every
// 4 s over one that it would keep: less than that would cost a TLS handshake each time.
func TunePeerStreams() {
	rafthttp.ConnReadTimeout = 4500 * time.Millisecond
	rafthttp.ConnWriteTimeout = 1500 * time.Millisecond
}

// embedConfig translates to etcd's own configuration.
func (c *Config) embedConfig() (*embed.Config, error) {
	if c.Name == "" || c.DataDir == "" || c.PeerURL == "" {
		return nil, errors.New("name, data directory and peer URL are required")
	}
	if c.Heartbeat == 0 {
		c.Heartbeat = defaultHeartbeat
	}
	if c.Election == 0 {
		c.Election = defaultElection
	}
	if c.QuotaBytes == 0 {
		c.QuotaBytes = defaultQuota
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	listen := c.ListenPeer
	if listen == "" {
		listen = c.PeerURL
	}
	peer, err := parseURLs(c.PeerURL)
	if err != nil {
		return nil, fmt.Errorf("peer URL: %w", err)
	}
	listenPeer, err := parseURLs(listen)
	if err != nil {
		return nil, fmt.Errorf("peer listener: %w", err)
	}
	if c.PeerTLS == (TLSFiles{}) && !isLocal(&listenPeer[0]) {
		return nil, fmt.Errorf("peer listener %s: only loopback may go without TLS", listen)
	}

	e := embed.NewConfig()
	e.Name, e.Dir = c.Name, c.DataDir
	e.AdvertisePeerUrls, e.ListenPeerUrls = peer, listenPeer
	e.PeerTLSInfo = c.PeerTLS.info()
	e.ListenClientUrls, e.AdvertiseClientUrls = nil, nil
	if c.ClientListen != "" {
		client, err := parseURLs(c.ClientListen)
		if err != nil {
			return nil, fmt.Errorf("client listener: %w", err)
		}
		if !isLocal(&client[0]) {
			return nil, fmt.Errorf("client listener %s: it must be on loopback", c.ClientListen)
		}
		e.ListenClientUrls, e.AdvertiseClientUrls = client, client
		e.ClientTLSInfo = c.ClientTLS.info()
	}
	if c.Witness != "" {
		witness, err := parseURLs(c.Witness + witnessPath)
		if err != nil {
			return nil, fmt.Errorf("URL of the witness: %w", err)
		}
		e.AdvertiseClientUrls = append(e.AdvertiseClientUrls, witness...)
	}
	e.InitialCluster = initialCluster(c.InitialCluster, c.Name, c.PeerURL)
	e.ClusterState = embed.ClusterStateFlagNew
	if c.Existing {
		e.ClusterState = embed.ClusterStateFlagExisting
	}
	e.ForceNewCluster = c.ForceNewCluster
	if c.Token != "" {
		e.InitialClusterToken = c.Token
	}
	e.TickMs = uint(c.Heartbeat / time.Millisecond)
	e.ElectionMs = uint(c.Election / time.Millisecond)
	e.PreVote = true
	// etcd's own check makes every change of membership wait until all members were connected
	// for 5 s. A learner can't harm the quorum, etcd promotes only one that has caught up, and
	// Remove looks after the quorum itself.
	e.StrictReconfigCheck = false
	e.MaxLearners = maxLearners
	e.QuotaBackendBytes = c.QuotaBytes
	e.SnapshotCount, e.SnapshotCatchUpEntries = snapshotEvery, keepEntries
	e.BootstrapDefragThresholdMegabytes = defragAtStart
	e.UnsafeNoFsync = c.UnsafeNoSync
	e.EnableGRPCGateway = false
	e.ZapLoggerBuilder = embed.NewZapLoggerBuilder(c.zap(halt))
	return e, nil
}

// zap is etcd's logger. Some of its messages are the last: halt has to hold whoever says one.
func (c *Config) zap(halt func()) *zap.Logger {
	log := zap.New(&slogCore{log: c.Log})
	if c.Fail == nil {
		return log
	}
	last := lastWords{c.Fail, halt}
	return log.WithOptions(zap.WithFatalHook(last), zap.WithPanicHook(last))
}

func initialCluster(members map[string]string, name, peerURL string) string {
	if len(members) == 0 {
		return name + "=" + peerURL
	}
	pairs := make([]string, 0, len(members))
	for n, u := range members {
		pairs = append(pairs, n+"="+u)
	}
	sort.Strings(pairs)
	return strings.Join(pairs, ",")
}

func parseURLs(s string) ([]url.URL, error) {
	u, err := url.Parse(s)
	if err != nil {
		return nil, err
	}
	if u.Scheme == "" || (u.Host == "" && u.Path == "") {
		return nil, fmt.Errorf("%q is no URL with a host", s)
	}
	return []url.URL{*u}, nil
}

// isLocal tells whether a URL can only be reached from this machine.
func isLocal(u *url.URL) bool {
	if u.Scheme == "unix" || u.Scheme == "unixs" {
		return true
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	return host == "localhost" || (ip != nil && ip.IsLoopback())
}
