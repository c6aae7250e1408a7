package etcd

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

// RestoreConfig says what a member is made of.
type RestoreConfig struct {
	// Database is a file that CheckDatabase has found well, and that is changed meanwhile.
	Database string
	// DataDir becomes that of a member, as Config.DataDir; it must be empty, or not there.
	DataDir string
	// At is the revision to go back to; 0 for the newest.
	At int64
}

// revisionLeap is how far ahead the revisions of a restored cluster are of those in the snapshot: further than
// any cluster comes between two snapshots. Whoever still knows a revision of the cluster that was lost finds it
// compacted, and lists anew, instead of waiting for it or missing what became of it.
const revisionLeap = 1_000_000_000

// What a restored member is called, and where it would be reached, until its first start puts the right ones in
// their place: nobody else is of its cluster before that.
const (
	restoredName    = "restored"
	restoredPeerURL = "https://restored.invalid:2380"
)

// ErrNotKept: the revision is not in the history that a snapshot holds.
var ErrNotKept = errors.New("the snapshot's history does not hold the revision")

// Restore makes the data directory of a member that is a cluster of its own. The cluster's identity is a new one:
// members of the cluster that the snapshot is of are strangers to it. Alarms that were raised are taken back.
// What is in DataDir after an error is of no use.
func Restore(ctx context.Context, cfg RestoreConfig) error {
	if cfg.At != 0 {
		if err := rewind(ctx, cfg.Database, cfg.At); err != nil {
			return err
		}
	}
	if err := clearAlarms(cfg.Database); err != nil {
		return fmt.Errorf("take etcd's alarms back: %w", err)
	}
	unique := make([]byte, 16)
	_, _ = rand.Read(unique) // never fails
	err := snapshot.NewV3(zap.NewNop()).Restore(snapshot.RestoreConfig{
		SnapshotPath: cfg.Database, SkipHashCheck: true,
		Name: restoredName, OutputDataDir: cfg.DataDir,
		PeerURLs: []string{restoredPeerURL}, InitialCluster: restoredName + "=" + restoredPeerURL,
		InitialClusterToken: "barque-restored-" + hex.EncodeToString(unique),
		RevisionBump:        revisionLeap, MarkCompacted: true,
	})
	if err != nil {
		return fmt.Errorf("make etcd's data directory: %w", err)
	}
	// etcd relies on its log for what its database lacks; of this one there is no log.
	for _, name := range []string{filepath.Join("member", "snap", "db"), filepath.Join("member", "snap"), "member", "."} {
		if err := syncFile(filepath.Join(cfg.DataDir, name)); err != nil {
			return fmt.Errorf("make etcd's data directory: %w", err)
		}
	}
	return nil
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Sync()
}

// clearAlarms forgets what was wrong with members that are no more: with an alarm etcd takes no writes. If what
// raised it is still so, it is raised again.
func clearAlarms(path string) error {
	be := backend.NewDefaultBackend(zap.NewNop(), path)
	defer func() { _ = be.Close() }()
	alarms := schema.NewAlarmBackend(zap.NewNop(), be)
	alarms.CreateAlarmBucket()
	raised, err := alarms.GetAllAlarms()
	if err != nil {
		return err
	}
	for _, alarm := range raised {
		alarms.MustDeleteAlarm(alarm)
	}
	alarms.ForceCommit()
	return nil
}

// rewind takes back every change after a revision. Changes are only ever added to the database, so that without
// them it is what it was, but for leases: of those that have ended since, the keys are deleted.
func rewind(ctx context.Context, path string, to int64) error {
	db, err := bolt.Open(path, 0o600, nil)
	if err != nil {
		return fmt.Errorf("%w: %w", errNoDatabase, err)
	}
	defer func() { _ = db.Close() }()
	return db.Update(func(tx *bolt.Tx) error {
		newest, compacted, err := revisions(tx)
		if err != nil {
			return err
		}
		if to < max(compacted, 1) || to > newest {
			return fmt.Errorf("%w %d: choose one from %d to %d", ErrNotKept, to, max(compacted, 1), newest)
		}
		changes := tx.Bucket(schema.Key.Name())
		var later [][]byte
		err = eachRevision(ctx, tx, to, func(at mvcc.BucketKey, _ *mvccpb.KeyValue) error {
			later = append(later, mvcc.BucketKeyToBytes(at, mvcc.NewRevBytes()))
			return nil
		})
		if err != nil {
			return err
		}
		for _, name := range later {
			if err := changes.Delete(name); err != nil {
				return err
			}
		}
		return endLeaseless(ctx, tx, to)
	})
}

// endLeaseless deletes the keys whose lease is not there any more, in a revision after the newest.
func endLeaseless(ctx context.Context, tx *bolt.Tx, newest int64) error {
	leases := tx.Bucket(schema.Lease.Name())
	gone := map[string]bool{}
	err := eachRevision(ctx, tx, 0, func(at mvcc.BucketKey, kv *mvccpb.KeyValue) error {
		delete(gone, string(kv.Key))
		if kv.Lease != 0 && (leases == nil || leases.Get(binary.BigEndian.AppendUint64(nil, uint64(kv.Lease))) == nil) {
			gone[string(kv.Key)] = true
		}
		return nil
	})
	if err != nil {
		return err
	}
	names := make([]string, 0, len(gone))
	for name := range gone {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		value, err := proto.Marshal(&mvccpb.KeyValue{Key: []byte(name)})
		if err != nil {
			return err
		}
		at := append(mvcc.RevToBytes(mvcc.Revision{Main: newest + 1, Sub: int64(i)}, mvcc.NewRevBytes()), 't')
		if err := tx.Bucket(schema.Key.Name()).Put(at, value); err != nil {
			return err
		}
	}
	return nil
}
