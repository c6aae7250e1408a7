package store

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
)

// compactKey is where the servers agree who compacts. It is the key, and the protocol, of
// kube-apiserver, so that one running on the same etcd takes its turn too: its value is the
// revision seen at the last turn, its version the number of turns. Whoever moves the version
// from what it saw a period ago has the turn, and compacts to the revision of a period ago.
const compactKey = "compact_rev_key"

// compactAll takes turns with the other servers in compacting etcd.
func (s *Store) compactAll(ctx context.Context) {
	if s.cfg.CompactEvery < 0 {
		return
	}
	ticker := time.NewTicker(s.cfg.CompactEvery)
	defer ticker.Stop()
	var turn compactTurn
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		tctx, cancel := context.WithTimeout(ctx, s.cfg.WriteTimeout)
		compacted, err := s.compactOnce(tctx, &turn)
		cancel()
		switch {
		case err != nil:
			s.log.Warn("compaction of etcd's history failed", "error", err)
		case compacted > 0:
			s.compacted.Store(max(s.compacted.Load(), compacted))
			s.log.Debug("etcd's history is compacted", "revision", compacted)
		}
	}
}

// compactTurn is what the last turn left.
type compactTurn struct {
	version  int64 // of compactKey
	revision int64 // of the store
}

// compactOnce tries to take a turn, and returns the revision that the history was compacted to by
// whoever had the turn; 0 if that is not known.
func (s *Store) compactOnce(ctx context.Context, turn *compactTurn) (int64, error) {
	key := []byte(compactKey)
	resp, err := s.backend.Txn(ctx, &etcdserverpb.TxnRequest{
		Compare: []*etcdserverpb.Compare{{
			Key: key, Target: etcdserverpb.Compare_VERSION, Result: etcdserverpb.Compare_EQUAL,
			TargetUnion: &etcdserverpb.Compare_Version{Version: turn.version},
		}},
		Success: []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestPut{
			RequestPut: &etcdserverpb.PutRequest{Key: key, Value: strconv.AppendInt(nil, turn.revision, 10)},
		}}},
		Failure: []*etcdserverpb.RequestOp{rangeOp(key)},
	})
	if err != nil {
		return 0, err
	}
	target := turn.revision
	turn.revision = resp.Header.Revision
	if !resp.Succeeded { // somebody else had the turn
		turn.version = 0
		kvs := resp.Responses[0].GetResponseRange().GetKvs()
		if len(kvs) == 0 {
			return 0, nil
		}
		turn.version = kvs[0].Version
		theirs, err := strconv.ParseInt(string(kvs[0].Value), 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s holds %q, which is no revision", compactKey, kvs[0].Value)
		}
		return theirs, nil
	}
	turn.version++
	if target == 0 {
		return 0, nil
	}
	if err := s.backend.Compact(ctx, target); err != nil && !errors.Is(err, ErrCompacted) {
		return 0, err
	}
	return target, nil
}
