package leadership

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"barque.dev/internal/store"
)

// leaseElector leads while it holds the oldest key of an etcd election. The key lives as long as
// the session's lease, and is the fence.
type leaseElector struct {
	client *clientv3.Client
	name   string
	log    *slog.Logger
}

const (
	electionPrefix = "/barque/election/leader"
	sessionTTL     = 5 // seconds
	resignTimeout  = time.Second
)

func (e *leaseElector) campaign(ctx context.Context) (*tenure, error) {
	session, err := concurrency.NewSession(e.client, concurrency.WithTTL(sessionTTL), concurrency.WithContext(ctx))
	if err != nil {
		return nil, fmt.Errorf("open session: %w", err)
	}
	election := concurrency.NewElection(session, electionPrefix)
	if err := election.Campaign(ctx, e.name); err != nil {
		e.close(session)
		return nil, fmt.Errorf("campaign: %w", err)
	}
	transitions, err := e.transitions(ctx)
	if err != nil {
		e.close(session)
		return nil, err
	}
	lead, cancel := context.WithCancelCause(ctx)
	watching := make(chan struct{})
	go func() {
		defer close(watching)
		select {
		case <-session.Done():
			cancel(errLost)
		case <-lead.Done():
		}
	}()
	return &tenure{
		ctx:         lead,
		lose:        cancel,
		fence:       store.Fence{Key: election.Key(), CreateRevision: election.Rev()},
		transitions: transitions,
		end: func() {
			cancel(nil)
			<-watching
			e.close(session)
		},
	}, nil
}

// fence implements elector.
func (e *leaseElector) fence(ctx context.Context, key string) ([]*mvccpb.KeyValue, error) {
	resp, err := e.client.Get(ctx, key)
	if err != nil {
		return nil, err
	}
	return resp.Kvs, nil
}

// close revokes the session's lease, and with it the election's key. It has its own deadline,
// since the context that ends leadership ended.
func (e *leaseElector) close(session *concurrency.Session) {
	session.Orphan()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(e.client.Ctx()), resignTimeout)
	defer cancel()
	if _, err := e.client.Revoke(ctx, session.Lease()); err != nil {
		e.log.Debug("the election's lease stays until it ends by itself", "error", err)
	}
}

// transitions counts this change of leader, in a key beside the election. The leader alone writes it.
func (e *leaseElector) transitions(ctx context.Context) (int32, error) {
	const key = "/barque/election/last"
	resp, err := e.client.Get(ctx, key)
	if err != nil {
		return 0, fmt.Errorf("read the last leader: %w", err)
	}
	mine := fence{holder: e.name}
	if len(resp.Kvs) > 0 {
		if last, err := parseFence(string(resp.Kvs[0].Value)); err == nil {
			mine.transitions = last.transitions
			if last.holder != e.name {
				mine.transitions++
			}
		}
	}
	if _, err := e.client.Put(ctx, key, mine.String()); err != nil {
		return 0, fmt.Errorf("note this leader: %w", err)
	}
	return mine.transitions, nil
}
