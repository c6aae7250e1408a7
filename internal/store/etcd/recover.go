package etcd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sort"
	"time"

	"go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

const (
	// RevisionGap is by how much a recovery raises the revision: more than the lost members can have been ahead. What they
	// acknowledged last had revisions that would otherwise be given again, to other changes, and whoever saw the former
	// would never learn of the latter.
	RevisionGap = 1_000_000_000
	// recoverTimeout bounds how long the member may take to find itself alone.
	recoverTimeout = time.Minute
	// inspectTimeout bounds the wait for a database that somebody else has open.
	inspectTimeout = time.Second
)

// Contents are what a data directory holds.
type Contents struct {
	Members []MemberInfo
	// End is where its log ends.
	End LogEnd
	// Revision is that of the last change in the database, which may lack the last tenth of a second of the log.
	Revision int64
	// LastWrite is when its log was last written to.
	LastWrite time.Time
}

// Inspect looks into a data directory that no member runs in.
func Inspect(dir string) (Contents, error) {
	if !HasData(dir) {
		return Contents{}, fmt.Errorf("look into %s: %w", dir, os.ErrNotExist)
	}
	c := Contents{LastWrite: lastWrite(walOf(dir))}
	var err error
	if c.End, err = readEnd(dir); err != nil {
		return c, fmt.Errorf("look into %s: read its log: %w", dir, err)
	}
	db, err := bbolt.Open(database(dir), 0o600, &bbolt.Options{ReadOnly: true, Timeout: inspectTimeout})
	if err != nil {
		return c, fmt.Errorf("look into %s: %w", dir, err)
	}
	defer func() { _ = db.Close() }()
	err = db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket(schema.Key.Name()); b != nil {
			if k, _ := b.Cursor().Last(); k != nil {
				c.Revision = mvcc.BytesToRev(k).Main
			}
		}
		if b := tx.Bucket(schema.Members.Name()); b != nil {
			return b.ForEach(func(_, v []byte) error { return c.add(v) })
		}
		return nil
	})
	if err != nil {
		return c, fmt.Errorf("look into %s: %w", dir, err)
	}
	sort.Slice(c.Members, func(i, j int) bool { return c.Members[i].Name < c.Members[j].Name })
	return c, nil
}

func database(dir string) string { return filepath.Join(dir, "member", "snap", "db") }

// add takes in a member as etcd keeps it.
func (c *Contents) add(value []byte) error {
	var m struct {
		ID        uint64   `json:"id"`
		Name      string   `json:"name"`
		PeerURLs  []string `json:"peerURLs"`
		Clients   []string `json:"clientURLs"`
		IsLearner bool     `json:"isLearner"`
	}
	if err := json.Unmarshal(value, &m); err != nil {
		return fmt.Errorf("read a member: %w", err)
	}
	c.Members = append(c.Members, MemberInfo{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, Learner: m.IsLearner, Witness: witnessOf(m.Clients)})
	return nil
}

// LastWrite is when the log in a data directory was last written to; the zero time if it can't be told.
func LastWrite(dir string) time.Time { return lastWrite(walOf(dir)) }

func lastWrite(wal string) (last time.Time) {
	entries, _ := os.ReadDir(wal)
	for _, e := range entries {
		if info, err := e.Info(); err == nil && filepath.Ext(e.Name()) == ".wal" && info.ModTime().After(last) {
			last = info.ModTime()
		}
	}
	return last
}

// Recover makes, of what a data directory holds, that of a cluster with this member alone, and returns its revision. All
// other members are removed: those that still run are told so, and stop, when they find this one again. What they alone had
// is lost; all else stays, also what was not known here to be decided. It gets a vote if it had none. The revision rises by RevisionGap, and
// what is older counts as compacted: whoever watches begins anew.
//
// No member may run in the directory. From when it has begun there is no way back: if it fails, or the process ends, the next
// call finishes it, or Start does.
func Recover(ctx context.Context, name, dir string, cfg Config) (int64, error) {
	if !HasData(dir) {
		return 0, fmt.Errorf("recover %s: %w", dir, os.ErrNotExist)
	}
	// Nobody is to reach it before it is done.
	cfg.Name, cfg.DataDir, cfg.PeerURL, cfg.ListenPeer, cfg.PeerTLS, cfg.ClientListen = name, dir, "http://127.0.0.1:0", "", TLSFiles{}, ""
	cfg.ForceNewCluster, cfg.Existing, cfg.InitialCluster = true, false, nil
	revision, err := recoverData(ctx, dir, &cfg)
	if err != nil && Recovering(dir) {
		err = fmt.Errorf("%w: it has begun, and is finished when the server starts, or by `barque recover` again", err)
	}
	if err != nil {
		return 0, fmt.Errorf("recover %s: %w", dir, err)
	}
	return revision, nil
}

// settle prepares the log for the recovery: all of it is decided, and the member has a vote.
func settle(name, dir string) error {
	if err := decideTail(dir); err != nil {
		return err
	}
	held, err := Inspect(dir)
	if err != nil {
		return err
	}
	for _, mb := range held.Members {
		if mb.Name == name && mb.Learner {
			return decideVote(dir, mb.ID)
		}
	}
	return nil
}

func recoverData(ctx context.Context, dir string, cfg *Config) (int64, error) {
	if err := isolate(ctx, dir, cfg); err != nil {
		return 0, err
	}
	revision, err := raise(dir, cfg)
	if err != nil {
		return 0, err
	}
	if err := removeSynced(filepath.Join(dir, recoveringMark)); err != nil {
		return 0, err
	}
	return revision, nil
}

// isolate is what comes before the revision is raised. In between the member is a cluster of its own that would give away
// numbers a second time: recoveringMark keeps it from being used so.
func isolate(ctx context.Context, dir string, cfg *Config) error {
	// What can't be read can't be recovered: nothing has begun then.
	if _, err := readEnd(dir); err != nil {
		return fmt.Errorf("read its log: %w", err)
	}
	if err := writeSynced(filepath.Join(dir, recoveringMark)); err != nil {
		return err
	}
	if err := settle(cfg.Name, dir); err != nil {
		return err
	}
	return alone(ctx, cfg)
}

// recoveringMark is there while a directory is recovered: from before anything in it is changed until all is.
const recoveringMark = "recovering"

// Recovering tells whether a recovery of a data directory has begun, and has not come to its end.
func Recovering(dir string) bool {
	_, err := os.Lstat(filepath.Join(dir, recoveringMark))
	return err == nil && HasData(dir)
}

// writeSynced makes an empty file that outlives a crash.
func writeSynced(path string) error {
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		return err
	}
	return syncFile(filepath.Dir(path))
}

func removeSynced(path string) error {
	if err := os.Remove(path); err != nil {
		return err
	}
	return syncFile(filepath.Dir(path))
}

// alone lets the member find itself alone. In the end its log begins with a snapshot, so that who joins later gets the database
// as a whole, with what raise does to it, rather than the log that led to it.
func alone(ctx context.Context, cfg *Config) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTimeout)
	defer cancel()
	ec, err := cfg.embedConfig()
	if err != nil {
		return err
	}
	ec.SnapshotCount, ec.SnapshotCatchUpEntries = 1, 1
	e, err := embed.StartEtcd(ec)
	if err != nil {
		if why := because(err); why != nil {
			err = fmt.Errorf("%w: %w", why, err)
		}
		return err
	}
	m := &Member{cfg: *cfg, etcd: e, srv: e.Server, log: cfg.Log}
	defer m.Close()
	if err := m.electAlone(ctx); err != nil {
		return err
	}
	select {
	case <-m.Ready():
	case <-m.Done():
		return errors.New("etcd stopped")
	case <-ctx.Done():
		return fmt.Errorf("it does not lead itself: %w", ctx.Err())
	}
	// A snapshot is made after a change, when there were two since the last.
	for range 3 {
		if err := m.touch(ctx); err != nil {
			return err
		}
	}
	if members := m.Members(); len(members) != 1 || members[0].ID != m.ID() {
		return fmt.Errorf("it still knows of other members: %+v", members)
	}
	return nil
}

// touch has raft decide on something that changes nothing.
func (m *Member) touch(ctx context.Context) error {
	id, err := m.LeaseGrant(ctx, int64(recoverTimeout/time.Second))
	if err != nil {
		return err
	}
	if _, err := m.srv.LeaseRevoke(ctx, &etcdserverpb.LeaseRevokeRequest{ID: id}); err != nil {
		return translate(err)
	}
	return nil
}

// raise adds RevisionGap to a database's revision, and has everything before compacted, as etcdutl's restoring does it.
func raise(dir string, cfg *Config) (int64, error) {
	be := backend.NewDefaultBackend(cfg.zap(halt), database(dir))
	defer func() { _ = be.Close() }()
	tx := be.BatchTx()
	tx.LockOutsideApply()
	var latest mvcc.Revision
	err := tx.UnsafeForEach(schema.Key, func(k, _ []byte) error {
		if rev := mvcc.BytesToRev(k); rev.GreaterThan(latest) {
			latest = rev
		}
		return nil
	})
	if err == nil {
		latest = mvcc.Revision{Main: latest.Main + RevisionGap}
		tx.UnsafePut(schema.Key, mvcc.RevToBytes(latest, mvcc.NewRevBytes()), []byte{})
		mvcc.UnsafeSetScheduledCompact(tx, latest.Main)
	}
	tx.Unlock()
	be.ForceCommit()
	return latest.Main, err
}
