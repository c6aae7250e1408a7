package leadership

import (
	"context"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"barque.dev/internal/store"
)

// raftMember is what the elector needs of etcd.Member.
type raftMember interface {
	ID() uint64
	Leader() uint64
	Term() uint64
	LeaderChanged() <-chan struct{}
	ReadIndex(ctx context.Context) (int64, error)
	Range(ctx context.Context, req *etcdserverpb.RangeRequest) (*etcdserverpb.RangeResponse, error)
	Txn(ctx context.Context, req *etcdserverpb.TxnRequest) (*etcdserverpb.TxnResponse, error)
}

// raftElector leads while its member is raft leader.
type raftElector struct {
	raft raftMember
	name string
	key  string
}

const (
	// lossPoll is how often a leader looks whether it still is: raft tells of new leaders,
	// not of the loss of one.
	lossPoll = 100 * time.Millisecond
	// fencePoll is how often it looks whether somebody took its fence.
	fencePoll = time.Second
	// followPoll is how often a follower looks, beside being told.
	followPoll = 500 * time.Millisecond
	// takeTimeout bounds taking the fence: a leader that lost its quorum would wait for long.
	takeTimeout = 3 * time.Second
)

func (e *raftElector) leads() bool { return e.raft.Leader() == e.raft.ID() }

// campaign waits until the member is raft leader, then takes the fence.
func (e *raftElector) campaign(ctx context.Context) (*tenure, error) {
	for {
		changed := e.raft.LeaderChanged()
		if e.leads() {
			break
		}
		t := time.NewTimer(followPoll)
		select {
		case <-changed:
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
	}
	// Whoever deposes this leader ends its context, even while the fence is being taken.
	lead, cancel := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	taken := make(chan int64, 1)
	go func() {
		defer close(watching)
		e.watch(lead, cancel, taken)
	}()
	end := func() { cancel(nil); <-watching }

	tctx, stop := context.WithTimeout(lead, takeTimeout)
	defer stop()
	began := time.Now()
	mine, createRevision, err := e.take(tctx)
	if err != nil {
		end()
		return nil, err
	}
	taken <- createRevision
	return &tenure{
		ctx:         lead,
		lose:        cancel,
		since:       began,
		fence:       store.Fence{Key: e.key, CreateRevision: createRevision},
		transitions: mine.transitions,
		end:         end,
	}, nil
}

// take makes the fence this leader's. Only a leader of a newer term can stop it.
func (e *raftElector) take(ctx context.Context) (fence, int64, error) {
	var transitions int32
	for {
		// The read is consistent, which takes a leader that has committed an entry in its
		// term: so the term that is applied by now is the leader's, if this is still it.
		resp, err := e.raft.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(e.key)})
		if err != nil {
			return fence{}, 0, fmt.Errorf("read fence: %w", err)
		}
		term := e.raft.Term()
		if !e.leads() {
			return fence{}, 0, errLost
		}
		var found *mvccpb.KeyValue
		if len(resp.Kvs) > 0 {
			found = resp.Kvs[0]
		}
		next, mine := plan(found, term, e.name)
		mine.transitions = max(mine.transitions, transitions)
		switch next {
		case hold:
			return mine, found.CreateRevision, nil
		case yield:
			return fence{}, 0, errFenceTaken(e.key)
		case remove:
			transitions = mine.transitions // for the creation that follows
			_, err = e.raft.Txn(ctx, e.removal(found))
		case create:
			var resp *etcdserverpb.TxnResponse
			resp, err = e.raft.Txn(ctx, e.creation(mine))
			if err == nil && resp.Succeeded {
				return mine, resp.Header.Revision, nil
			}
		}
		if err != nil {
			return fence{}, 0, fmt.Errorf("take fence: %w", err)
		}
	}
}

// removal deletes the fence that was found, if it is still there. Its term was checked: no
// other leader's fence can have the same revision.
func (e *raftElector) removal(found *mvccpb.KeyValue) *etcdserverpb.TxnRequest {
	return &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{
			Key: []byte(e.key), Target: etcdserverpb.Compare_MOD, Result: etcdserverpb.Compare_EQUAL,
			TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: found.ModRevision},
		}},
		Success: []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: []byte(e.key)},
		}}},
	}
}

// creation puts the fence where there is none. A deposed leader that comes between a newer one's
// removal and creation only delays it: its fence is older, and removed in turn.
func (e *raftElector) creation(mine fence) *etcdserverpb.TxnRequest {
	return &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{
			Key: []byte(e.key), Target: etcdserverpb.Compare_VERSION, Result: etcdserverpb.Compare_EQUAL,
			TargetUnion: &etcdserverpb.Compare_Version{Version: 0},
		}},
		Success: []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestPut{
			RequestPut: &etcdserverpb.PutRequest{Key: []byte(e.key), Value: []byte(mine.String())},
		}}},
	}
}

// watch cancels when the member isn't leader any more or its fence was taken.
func (e *raftElector) watch(ctx context.Context, cancel context.CancelCauseFunc, taken <-chan int64) {
	lost, fences := time.NewTicker(lossPoll), time.NewTicker(fencePoll)
	defer lost.Stop()
	defer fences.Stop()
	var mine int64
	for {
		changed := e.raft.LeaderChanged()
		if !e.leads() {
			cancel(errLost)
			return
		}
		select {
		case <-ctx.Done():
			return
		case mine = <-taken:
		case <-changed:
		case <-lost.C:
		case <-fences.C:
			if mine != 0 && !e.holds(ctx, mine) {
				cancel(errFenceTaken(e.key))
				return
			}
		}
	}
}

// holds looks at what this member has applied, which may be old but never goes back.
func (e *raftElector) holds(ctx context.Context, createRevision int64) bool {
	resp, err := e.raft.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(e.key), Serializable: true})
	return err != nil || stands(resp.Kvs, createRevision)
}

// fence implements elector.
func (e *raftElector) fence(ctx context.Context, key string) ([]*mvccpb.KeyValue, error) {
	// In two steps, since etcd logs a consistent range that takes longer than its caller waits.
	if _, err := e.raft.ReadIndex(ctx); err != nil {
		return nil, err
	}
	resp, err := e.raft.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte(key), Serializable: true})
	if err != nil {
		return nil, err
	}
	return resp.Kvs, nil
}
