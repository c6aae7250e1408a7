package etcd

import (
	"cmp"
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

// LogEnd is where a raft log ends: the term and the index of its last entry.
type LogEnd struct {
	Term, Index uint64
}

// Compare orders logs as raft does when it votes: by the term of the last entry, then by its index; it is negative when e
// comes before other. Of the servers that are left of a cluster, the one whose log ends last has all that was
// acknowledged and that any of them has. Revisions do not tell: a database is written up to a tenth of a second after the log.
func (e LogEnd) Compare(other LogEnd) int {
	return cmp.Or(cmp.Compare(e.Term, other.Term), cmp.Compare(e.Index, other.Index))
}

func (e LogEnd) String() string { return fmt.Sprintf("term %d, index %d", e.Term, e.Index) }

// readEnd finds where the log in a data directory ends, and changes nothing there. What a crash has left of a last,
// unfinished record does not count. A member that runs in the directory may remove files from under it, which
// makes it fail.
func readEnd(dir string) (LogEnd, error) {
	log, walDir := zap.NewNop(), walOf(dir)
	from, err := newestSnapshot(log, walDir)
	if err != nil {
		return LogEnd{}, err
	}
	w, err := wal.OpenForRead(log, walDir, from)
	if err != nil {
		return LogEnd{}, err
	}
	defer func() { _ = w.Close() }()
	_, _, entries, err := w.ReadAll()
	if err != nil {
		return LogEnd{}, err
	}
	if len(entries) == 0 { // all of it is in the snapshot
		return LogEnd{Term: from.GetTerm(), Index: from.GetIndex()}, nil
	}
	last := entries[len(entries)-1]
	return LogEnd{Term: last.GetTerm(), Index: last.GetIndex()}, nil
}

// endAttempts is how often the log of a running member is read: its files come and go.
const endAttempts = 3

// LogEnd is where this member's log ends, which it reads from the disk.
func (m *Member) LogEnd() (LogEnd, error) {
	var failed error
	for range endAttempts {
		end, err := readEnd(m.cfg.DataDir)
		if err == nil {
			return end, nil
		}
		failed = err
	}
	return LogEnd{}, fmt.Errorf("read the end of etcd's log: %w", failed)
}

func walOf(dir string) string { return filepath.Join(dir, "member", "wal") }

// newestSnapshot is the newest that a log tells of, behind which its entries are of interest.
func newestSnapshot(log *zap.Logger, walDir string) (*walpb.Snapshot, error) {
	known, err := wal.ValidSnapshotEntries(log, walDir)
	if err != nil || len(known) == 0 {
		return &walpb.Snapshot{}, err
	}
	return known[len(known)-1], nil
}

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
	log, walDir := zap.NewNop(), walOf(dir)
	from, err := newestSnapshot(log, walDir)
	if err != nil {
		return nil, nil, nil, err
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
