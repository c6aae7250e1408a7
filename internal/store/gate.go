package store

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// gateKey is raised, that is written, by a server that gives a proposal up.
const gateKey = "/barque/gate"

// A gate keeps a proposal that was given up from taking effect later. A proposal that was forwarded to a
// leader which was cut off waits there, and is passed on when the cut is healed, many seconds after its write
// was tried again. Where revisions are compared it does no harm, since none comes back; but that there is no
// object, or any, may be so again. A write that compares no more than that compares the gate's revision too, and
// before it is tried again the gate is raised: what was proposed with an older revision has taken effect by then,
// or never will.
type gate struct {
	revision atomic.Int64  // as this server knows it; 0 while nobody has raised it
	raising  chan struct{} // holds one: who raises it
}

func (g *gate) init(revision int64) {
	g.revision.Store(revision)
	g.raising = make(chan struct{}, 1)
}

// raise returns once the gate's revision is above the one given. An error is [ErrUnavailable], ErrRejected or
// ErrClosed; the gate may have been raised, or may yet be.
func (g *gate) raise(ctx context.Context, s *Store, above int64) error {
	select {
	case g.raising <- struct{}{}:
		defer func() { <-g.raising }()
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnavailable, ctx.Err())
	}
	for g.revision.Load() <= above {
		if err := s.awaitLeader(ctx); err != nil {
			return err
		}
		attempt, end := s.term.attempt(ctx)
		resp, err := s.backend.Txn(attempt, &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{putOp([]byte(gateKey), nil, 0)}})
		end()
		switch {
		case err == nil:
			g.revision.Store(resp.Header.Revision)
		case errors.Is(err, ErrRejected):
			return err
		case s.base.Err() != nil:
			return ErrClosed
		default:
			if perr := pause(ctx, retryPause); perr != nil {
				return fmt.Errorf("%w: %w: %w", ErrUnavailable, perr, err)
			}
		}
	}
	return nil
}

// missed takes over the revision that a refused transaction has found last of all, and tells whether it is
// another than the one that was compared.
func (g *gate) missed(resp *etcdserverpb.TxnResponse, compared int64) bool {
	found := int64(0)
	if kvs := resp.Responses[len(resp.Responses)-1].GetResponseRange().GetKvs(); len(kvs) > 0 {
		found = kvs[0].ModRevision
	}
	if found == compared {
		return false
	}
	g.revision.Store(found)
	return true
}
