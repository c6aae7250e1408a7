package etcd

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"go.etcd.io/etcd/client/pkg/v3/types"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/etcd/server/v3/storage/wal/walpb"
	"go.etcd.io/raft/v3/raftpb"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// decideTail notes, in the log of a data directory that no member runs in, that all of the log is decided. A member learns a
// round trip later than the leader what is, and syncs that later still; forcing a new cluster drops what the log does not say is
// decided. The lost members may have acknowledged it, counting on this one's copy.
func decideTail(dir string) error {
	w, state, entries, err := openLog(dir)
	if err != nil {
		return fmt.Errorf("read its log: %w", err)
	}
	if len(entries) > 0 {
		if last := entries[len(entries)-1].GetIndex(); last > state.GetCommit() {
			state.Commit = &last
			err = w.Save(state, nil)
		}
	}
	// It syncs what it has not yet.
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("write its log: %w", err)
	}
	return nil
}

// decideVote has the log of a data directory that no member runs in, all of which is decided, end with the member's
// promotion. A member without a vote, which is left alone, could not decide on anything, that included.
func decideVote(dir string, id uint64) error {
	change, err := json.Marshal(membership.ConfigChangeContext{Member: membership.Member{ID: types.ID(id)}, IsPromote: true})
	if err != nil {
		return fmt.Errorf("encode its promotion: %w", err)
	}
	data, err := proto.Marshal(&raftpb.ConfChange{Type: raftpb.ConfChangeAddNode.Enum(), NodeId: &id, Context: change})
	if err != nil {
		return fmt.Errorf("encode its promotion: %w", err)
	}
	w, state, entries, err := openLog(dir)
	if err != nil {
		return fmt.Errorf("read its log: %w", err)
	}
	index, term := state.GetCommit()+1, state.GetTerm()
	if len(entries) > 0 {
		index = entries[len(entries)-1].GetIndex() + 1
	}
	state.Commit = &index
	err = w.Save(state, []*raftpb.Entry{{Type: raftpb.EntryConfChange.Enum(), Index: &index, Term: &term, Data: data}})
	if err := errors.Join(err, w.Close()); err != nil {
		return fmt.Errorf("write its log: %w", err)
	}
	return nil
}

// openLog opens the log behind the newest snapshot, for writing at its end. What a crash has left of a last, unfinished record
// is cut off.
func openLog(dir string) (*wal.WAL, *raftpb.HardState, []*raftpb.Entry, error) {
	log, walDir := zap.NewNop(), filepath.Join(dir, "member", "wal")
	known, err := wal.ValidSnapshotEntries(log, walDir)
	if err != nil {
		return nil, nil, nil, err
	}
	from := &walpb.Snapshot{}
	if len(known) > 0 {
		from = known[len(known)-1]
	}
	for repaired := false; ; repaired = true {
		w, err := wal.Open(log, walDir, from)
		if err != nil {
			return nil, nil, nil, err
		}
		_, state, entries, err := w.ReadAll()
		if err == nil {
			return w, state, entries, nil
		}
		_ = w.Close()
		if repaired || !errors.Is(err, io.ErrUnexpectedEOF) || !wal.Repair(log, walDir) {
			return nil, nil, nil, err
		}
	}
}
