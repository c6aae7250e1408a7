package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"barque.dev/internal/store"
)

// RemoteConfig names an etcd cluster that somebody else runs.
type RemoteConfig struct {
	Endpoints []string // URLs of its client listeners
	TLS       TLSFiles // empty for http
	Log       *slog.Logger
}

// A Remote is the client side of an etcd cluster elsewhere. It satisfies [store.Backend]. All
// methods are safe for concurrent use.
type Remote struct {
	client *clientv3.Client
	kv     etcdserverpb.KVClient
	log    *slog.Logger

	healthy atomic.Bool
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	close   sync.Once
}

var _ store.Backend = (*Remote)(nil)

const (
	probeEvery     = 2 * time.Second        // while the cluster answers
	probeSoon      = 100 * time.Millisecond // while it doesn't
	probeTimeout   = time.Second
	keepAliveEvery = 5 * time.Second
	keepAliveWait  = 3 * time.Second

	// A server that can't be reached is dialled again after dialAgainFirst, then less and less often, but
	// every dialAgainMost at least: gRPC itself would leave up to two minutes between attempts.
	dialAgainFirst = 100 * time.Millisecond
	dialAgainMost  = time.Second
	dialPatience   = 2 * time.Second
)

// redial is how often an etcd that is away is dialled.
func redial() grpc.DialOption {
	return grpc.WithConnectParams(grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: dialAgainFirst, Multiplier: 1.6, Jitter: 0.2, MaxDelay: dialAgainMost},
		MinConnectTimeout: dialPatience,
	})
}

// Dial connects to a cluster. It returns an error when the cluster doesn't answer before ctx ends.
func Dial(ctx context.Context, cfg RemoteConfig) (*Remote, error) {
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	cc := clientv3.Config{
		Endpoints:            cfg.Endpoints,
		DialKeepAliveTime:    keepAliveEvery,
		DialKeepAliveTimeout: keepAliveWait,
		DialOptions:          []grpc.DialOption{redial()},
		Logger:               zap.New(&slogCore{log: cfg.Log}),
		Context:              base,
	}
	if cfg.TLS != (TLSFiles{}) {
		tls, err := cfg.TLS.info().ClientConfig()
		if err != nil {
			cancel()
			return nil, fmt.Errorf("connect to etcd: TLS: %w", err)
		}
		cc.TLS = tls
	}
	c, err := clientv3.New(cc)
	if err != nil {
		cancel()
		return nil, fmt.Errorf("connect to etcd: %w", err)
	}
	r := &Remote{client: c, kv: clientv3.RetryKVClient(c), log: cfg.Log, cancel: cancel}
	if _, err := r.ReadIndex(ctx); err != nil {
		r.Close()
		return nil, fmt.Errorf("connect to etcd at %v: %w", cfg.Endpoints, err)
	}
	r.healthy.Store(true)
	r.wg.Go(func() { r.probe(base) })
	return r, nil
}

// Close ends the connection and everything that uses it.
func (r *Remote) Close() {
	r.close.Do(func() {
		r.cancel()
		if err := r.client.Close(); err != nil && !errors.Is(err, context.Canceled) {
			r.log.Debug("closing the connection to etcd", "error", err)
		}
		r.wg.Wait()
	})
}

// Client is etcd's own client.
func (r *Remote) Client() *clientv3.Client { return r.client }

// probe keeps track of whether the cluster has a quorum, so that requests needn't wait to learn it.
func (r *Remote) probe(ctx context.Context) {
	for {
		pctx, cancel := context.WithTimeout(ctx, probeTimeout)
		_, err := r.ReadIndex(pctx)
		cancel()
		if ctx.Err() != nil {
			return
		}
		if ok := err == nil; r.healthy.Swap(ok) != ok {
			r.log.Info("etcd's health changed", "healthy", ok, "error", err)
		}
		wait := probeEvery
		if err != nil {
			wait = probeSoon
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
	}
}

// HasLeader implements store.Backend.
func (r *Remote) HasLeader() bool { return r.healthy.Load() }

// LeaderChanged implements store.Backend: the servers answer for what they forwarded.
func (r *Remote) LeaderChanged() <-chan struct{} { return nil }

// Txn implements store.Backend.
func (r *Remote) Txn(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error) {
	resp, err := r.kv.Txn(ctx, req)
	return resp, translateRemote(err)
}

// Range implements store.Backend.
func (r *Remote) Range(ctx context.Context, req *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error) {
	resp, err := r.kv.Range(ctx, req)
	return resp, translateRemote(err)
}

// ReadIndex implements store.Backend.
func (r *Remote) ReadIndex(ctx context.Context) (int64, error) {
	resp, err := r.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte{0}, CountOnly: true})
	if err != nil {
		return 0, translateRemote(err)
	}
	return resp.Header.Revision, nil
}

// Compact implements store.Backend.
func (r *Remote) Compact(ctx context.Context, revision int64) error {
	_, err := r.kv.Compact(ctx, &etcdserverpb.CompactionRequest{Revision: revision})
	return translateRemote(err)
}

// LeaseGrant implements store.Backend.
func (r *Remote) LeaseGrant(ctx context.Context, ttl int64) (int64, error) {
	resp, err := r.client.Grant(ctx, ttl)
	if err != nil {
		return 0, translateRemote(err)
	}
	return int64(resp.ID), nil
}

// Watch implements store.Backend.
func (r *Remote) Watch(ctx context.Context, from int64, deliver func([]*mvccpb.Event)) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	watcher := clientv3.NewWatcher(r.client)
	defer watcher.Close()
	for resp := range watcher.Watch(ctx, "\x00", clientv3.WithFromKey(), clientv3.WithRev(from)) {
		if resp.CompactRevision != 0 {
			return fmt.Errorf("watch etcd from revision %d, oldest is %d: %w", from, resp.CompactRevision, store.ErrCompacted)
		}
		if err := resp.Err(); err != nil {
			return fmt.Errorf("watch etcd: %w", translateRemote(err))
		}
		if len(resp.Events) > 0 {
			events := make([]*mvccpb.Event, len(resp.Events))
			for i, ev := range resp.Events {
				events[i] = (*mvccpb.Event)(ev)
			}
			deliver(events)
		}
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	return fmt.Errorf("watch etcd: %w: the stream ended", store.ErrUnavailable)
}

// translateRemote wraps the client's errors in the store's.
func translateRemote(err error) error {
	if err == nil {
		return nil
	}
	kind := store.ErrUnavailable
	switch is := rpctypes.Error(err); {
	case errors.Is(is, rpctypes.ErrCompacted):
		kind = store.ErrCompacted
	case errors.Is(is, rpctypes.ErrFutureRev):
		kind = store.ErrFuture
	case errors.Is(is, rpctypes.ErrLeaseNotFound):
		kind = store.ErrLeaseNotFound
	case errors.Is(is, rpctypes.ErrTooManyRequests):
		return fmt.Errorf("%w: %w: %w", store.ErrRejected, store.ErrUnavailable, err)
	case errors.Is(is, rpctypes.ErrRequestTooLarge), errors.Is(is, rpctypes.ErrCorrupt),
		status.Code(err) == codes.ResourceExhausted: // no space, or too large for the client to send
		kind = store.ErrRejected
	}
	return fmt.Errorf("%w: %w", kind, err)
}
