package store

import (
	"context"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// A Backend is what the store needs of etcd. internal/store/etcd has two: Member, the server in
// this process, and Remote, a cluster that somebody else runs. All methods are safe for
// concurrent use. Errors wrap [ErrUnavailable], [ErrCompacted], [ErrRejected] or
// [ErrLeaseNotFound] where one of these applies.
type Backend interface {
	// Txn proposes a transaction. An error that is neither ErrRejected nor ErrLeaseNotFound
	// leaves open whether the transaction was or will be applied.
	Txn(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error)

	// Range reads; with Serializable from what this member has applied.
	Range(ctx context.Context, req *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error)

	// Watch calls deliver, from one goroutine, with all changes of the whole keyspace from
	// revision from on, in order, the changes of a revision together. It returns when ctx
	// ends, when the watch breaks, or with ErrCompacted when from is no longer kept.
	// deliver keeps the events and must not block.
	Watch(ctx context.Context, from int64, deliver func([]*mvccpb.Event)) error

	// ReadIndex returns a revision that is at least that of every write that was
	// acknowledged anywhere before the call.
	ReadIndex(ctx context.Context) (int64, error)

	// Compact drops history before revision. It does not wait for the disk.
	Compact(ctx context.Context, revision int64) error

	// LeaseGrant makes a lease of ttl seconds.
	LeaseGrant(ctx context.Context, ttl int64) (int64, error)

	// HasLeader tells, from local knowledge, whether proposals have somewhere to go.
	HasLeader() bool

	// LeaderChanged returns a channel that is closed at the next change of leader, or nil
	// when the backend takes care of lost proposals by itself.
	LeaderChanged() <-chan struct{}
}
