package etcd

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	"go.etcd.io/etcd/server/v3/storage/wal"
)

const (
	joinAttempts    = 50
	joinPause       = 100 * time.Millisecond
	joinDialTimeout = time.Second
)

// startEmbedded starts etcd. A new member that joins has to name exactly the members that there
// are, which may have changed since it was told, when others join too: then it asks again.
func startEmbedded(ctx context.Context, cfg *Config) (*embed.Etcd, error) {
	joins := cfg.Existing && !HasData(cfg.DataDir)
	for attempt := 1; ; attempt++ {
		ec, err := cfg.embedConfig()
		if err != nil {
			return nil, err
		}
		e, err := embed.StartEtcd(ec)
		if err == nil {
			return e, nil
		}
		if !joins || attempt == joinAttempts || !passing(err) {
			return nil, err
		}
		cfg.Log.Debug("the cluster can't be joined yet", "error", err)
		t := time.NewTimer(joinPause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil, fmt.Errorf("%w: %w", ctx.Err(), err)
		}
		members, rerr := cfg.askPeers(ec)
		if rerr != nil {
			return nil, fmt.Errorf("%w: %w", rerr, err)
		}
		cfg.learn(members)
	}
}

// HasData tells whether a member has run in the directory.
func HasData(dir string) bool { return wal.Exist(filepath.Join(dir, "member", "wal")) }

// passing tells whether another attempt to join may succeed: when the members changed meanwhile, or
// the cluster is so young that it hasn't agreed on its version. etcd has no types for these errors.
func passing(err error) bool {
	return strings.Contains(err.Error(), "error validating peerURLs") ||
		strings.Contains(err.Error(), "incompatible with current running cluster")
}

// learn takes in the members that another one knows. One that does not know this member is behind: it has yet to hear
// of what the leader has told this one already.
func (c *Config) learn(members []MemberInfo) {
	if cluster := InitialCluster(members, c.Name, c.PeerURL); cluster[c.Name] == c.PeerURL {
		c.InitialCluster = cluster
	}
}

// askPeers returns the members that another member knows now; none when none answers.
func (c *Config) askPeers(ec *embed.Config) ([]MemberInfo, error) {
	rt, err := transport.NewTransport(ec.PeerTLSInfo, joinDialTimeout)
	if err != nil {
		return nil, fmt.Errorf("ask for the members: %w", err)
	}
	defer rt.CloseIdleConnections()
	var others []string
	for _, u := range c.InitialCluster {
		if u != c.PeerURL {
			others = append(others, u)
		}
	}
	cluster, err := etcdserver.GetClusterFromRemotePeers(ec.GetLogger(), others, rt)
	if err != nil {
		c.Log.Debug("no other member answers", "error", err)
		return nil, nil
	}
	return infos(cluster.Members()), nil
}
