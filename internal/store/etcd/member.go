package etcd

import (
	"context"
	"errors"
	"expvar"
	"fmt"
	"log/slog"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver"
	etcderrors "go.etcd.io/etcd/server/v3/etcdserver/errors"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/raft/v3"

	"barque.dev/internal/store"
)

// A Member is an etcd server in this process. It satisfies [store.Backend]. All methods are safe
// for concurrent use.
type Member struct {
	cfg  Config
	etcd *embed.Etcd
	srv  *etcdserver.EtcdServer
	log  *slog.Logger
	// peers asks other members whether they respond.
	peers *http.Transport

	closing atomic.Bool
	close   sync.Once
}

var _ store.Backend = (*Member)(nil)

// Start starts a member. It returns when the member listens and takes part in raft; whether
// there is a leader yet is told by Ready. A member that joins must find the others reachable. A recovery that was
// interrupted is finished first.
func Start(ctx context.Context, cfg Config) (*Member, error) {
	if Recovering(cfg.DataDir) {
		if _, err := Recover(ctx, cfg.Name, cfg.DataDir, cfg); err != nil {
			return nil, fmt.Errorf("start etcd member %s: %w", cfg.Name, err)
		}
	}
	e, err := startEmbedded(ctx, &cfg)
	if why := because(err); why != nil {
		err = fmt.Errorf("%w: %w", why, err)
	}
	if err != nil {
		return nil, fmt.Errorf("start etcd member %s: %w", cfg.Name, err)
	}
	m := &Member{cfg: cfg, etcd: e, srv: e.Server, log: cfg.Log}
	if m.peers, err = transport.NewTransport(cfg.PeerTLS.info(), RespondTimeout); err != nil {
		m.etcd.Close()
		return nil, fmt.Errorf("start etcd member %s: its certificate: %w", cfg.Name, err)
	}
	if err := errors.Join(m.electAlone(ctx), m.readdress(ctx)); err != nil {
		m.Close()
		return nil, fmt.Errorf("start etcd member %s: %w", cfg.Name, err)
	}
	return m, nil
}

// campaignRetry is how soon a lone member campaigns again, when its first configuration was not
// applied yet or its campaign is under way.
const campaignRetry = 3 * time.Millisecond

// electAlone spares the only member of a cluster the election timeout: nobody else could be
// leader, so it campaigns at once.
func (m *Member) electAlone(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, m.cfg.Election)
	defer cancel()
	for m.srv.Leader() == 0 {
		members := m.srv.Cluster().Members()
		if len(members) != 1 || uint64(members[0].ID) != m.ID() {
			return nil
		}
		if m.replayed() {
			if err := m.Campaign(ctx); err != nil {
				return fmt.Errorf("first election: %w", err)
			}
		}
		t := time.NewTimer(campaignRetry)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return nil // raft's own timer takes over
		case <-m.srv.StopNotify():
			t.Stop()
			return errors.New("etcd stopped")
		}
	}
	return nil
}

// readdress tells the only member of a cluster, when that was restored from a snapshot, where it is: nobody knew
// that when the snapshot was restored.
func (m *Member) readdress(ctx context.Context) error {
	members := m.srv.Cluster().Members()
	if len(members) != 1 || uint64(members[0].ID) != m.ID() || !slices.Equal(members[0].PeerURLs, []string{restoredPeerURL}) {
		return nil
	}
	here := *members[0]
	here.PeerURLs = []string{m.cfg.PeerURL}
	if _, err := m.srv.UpdateMember(ctx, here); err != nil {
		return fmt.Errorf("note where the restored member is: %w", err)
	}
	return nil
}

// replayed tells whether raft has applied what its log held when the member started. A campaign looks
// through entries that it has not for changes of the configuration, and etcd may have dropped the
// first of them from memory by then, which raft takes for a corrupt log and panics. Only etcd's
// expvar shows raft's own status; that of another member of this process tells nothing.
func (m *Member) replayed() bool {
	published, ok := expvar.Get("raft.status").(expvar.Func)
	if !ok {
		return true
	}
	status, ok := published.Value().(raft.Status)
	return !ok || status.ID != m.ID() || status.Applied >= status.GetCommit()
}

// Close stops the member, passing leadership on first when it leads and others vote.
func (m *Member) Close() {
	m.closing.Store(true)
	m.close.Do(func() {
		select {
		case <-m.srv.ReadyNotify():
		default:
			// Before it stops anything, etcd waits for what serves its clients, and that waits until the
			// member is known to the cluster: without a quorum for ever.
			m.srv.Stop()
		}
		m.etcd.Close()
		if m.peers != nil {
			m.peers.CloseIdleConnections()
		}
	})
}

// Server is etcd's own.
func (m *Member) Server() *etcdserver.EtcdServer { return m.srv }

// Ready is closed once the member made itself known to the cluster, for which it takes a leader.
func (m *Member) Ready() <-chan struct{} { return m.srv.ReadyNotify() }

// Done is closed when the member stopped, by Close or because it was removed from the cluster.
func (m *Member) Done() <-chan struct{} { return m.srv.StopNotify() }

// Txn implements store.Backend.
func (m *Member) Txn(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	resp, err := m.srv.Txn(ctx, req)
	return resp, translate(err)
}

// Range implements store.Backend.
func (m *Member) Range(ctx context.Context, req *etcdserverpb.RangeRequest) (resp *etcdserverpb.RangeResponse, err error) {
	// A member that is removed closes its database under its readers, who panic then.
	defer func() {
		if p := recover(); p != nil {
			if !m.stopping() {
				panic(p)
			}
			resp, err = nil, fmt.Errorf("read etcd: %w: the member stopped", store.ErrUnavailable)
		}
	}()
	resp, err = m.srv.Range(ctx, req)
	return resp, translate(err)
}

// stopping tells whether the member stops, or has.
func (m *Member) stopping() bool {
	select {
	case <-m.srv.StoppingNotify():
		return true
	default:
		return false
	}
}

// Compact implements store.Backend.
func (m *Member) Compact(ctx context.Context, revision int64) error {
	_, err := m.srv.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: revision})
	return translate(err)
}

// LeaseGrant implements store.Backend.
func (m *Member) LeaseGrant(ctx context.Context, ttl int64) (int64, error) {
	resp, err := m.srv.LeaseGrant(ctx, &etcdserverpb.LeaseGrantRequest{TTL: ttl})
	if err != nil {
		return 0, translate(err)
	}
	return resp.ID, nil
}

// ReadIndex implements store.Backend.
func (m *Member) ReadIndex(ctx context.Context) (int64, error) {
	if err := m.srv.LinearizableReadNotify(ctx); err != nil {
		return 0, translate(err)
	}
	return m.srv.KV().Rev(), nil
}

// HasLeader implements store.Backend.
func (m *Member) HasLeader() bool { return m.srv.Leader() != 0 }

// LeaderChanged implements store.Backend. It tells of new leaders, not of the loss of one.
func (m *Member) LeaderChanged() <-chan struct{} { return m.srv.LeaderChangedNotify() }

// Watch implements store.Backend. Events arrive before the transaction that made them returns.
func (m *Member) Watch(ctx context.Context, from int64, deliver func([]*mvccpb.Event)) error {
	ws := m.srv.Watchable().NewWatchStream()
	defer ws.Close()
	if _, err := ws.Watch(ctx, 0, []byte{0}, []byte{}, from); err != nil {
		return fmt.Errorf("watch etcd from revision %d: %w", from, err)
	}
	for {
		select {
		case resp, ok := <-ws.Chan():
			switch {
			case !ok:
				return errors.New("watch etcd: the stream ended")
			case resp.CompactRevision != 0:
				return fmt.Errorf("watch etcd from revision %d, oldest is %d: %w", from, resp.CompactRevision, store.ErrCompacted)
			case len(resp.Events) > 0:
				deliver(resp.Events)
			}
		case <-ctx.Done():
			return ctx.Err()
		case <-m.srv.StopNotify():
			return fmt.Errorf("watch etcd: %w: the member stopped", store.ErrUnavailable)
		}
	}
}

// translate wraps etcd's errors in the store's.
func translate(err error) error {
	var kind error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, mvcc.ErrCompacted):
		kind = store.ErrCompacted
	case errors.Is(err, mvcc.ErrFutureRev):
		kind = store.ErrFuture
	case errors.Is(err, lease.ErrLeaseNotFound):
		kind = store.ErrLeaseNotFound
	case errors.Is(err, etcderrors.ErrTooManyRequests):
		return fmt.Errorf("%w: %w: %w", store.ErrRejected, store.ErrUnavailable, err)
	case errors.Is(err, etcderrors.ErrRequestTooLarge), errors.Is(err, etcderrors.ErrNoSpace), errors.Is(err, etcderrors.ErrCorrupt):
		kind = store.ErrRejected
	default:
		kind = store.ErrUnavailable
	}
	return fmt.Errorf("%w: %w", kind, err)
}
