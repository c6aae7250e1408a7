package etcd

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/mvcc"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"go.uber.org/zap"
	"google.golang.org/protobuf/proto"
)

var errNoDatabase = errors.New("it is no database of etcd's")

// DatabaseInfo is what is known of a database after it was read from its beginning to its end.
type DatabaseInfo struct {
	// Revision is the newest, Compacted the one that history was compacted to, or 0.
	Revision, Compacted int64
	// Keys are those that there are at Revision.
	Keys int64
	// Alarms are those that etcd had raised, such as NOSPACE.
	Alarms []string
}

// CheckDatabase reads the file of a database twice: page by page, with every revision that it holds, and then by
// opening it as a store, all of whose keys are read. visit is given each with its value; it may be nil. The
// file is a copy that nobody else has open, and may be changed: what a compaction left undone is done.
//
// While a store is open, etcd's metrics of this process tell of it, and pages that make no sense can end the
// process: compare the checksum first, and let a server have another process check.
func CheckDatabase(ctx context.Context, path string, visit func(key, value []byte) error) (info DatabaseInfo, err error) {
	defer describeDamage(path, &err)
	if err = checkPages(ctx, path, &info); err != nil {
		return info, err
	}
	return info, readStore(ctx, path, &info, visit)
}

// describeDamage makes an error of what went wrong. Damaged pages can lead anywhere: to a panic, or to memory
// that is not there.
func describeDamage(path string, err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("%w: %v", ErrDamaged, r)
	}
	if *err != nil {
		*err = fmt.Errorf("check %s: %w", path, *err)
	}
}

// openPages opens a database as it lies there.
func openPages(path string) (*bolt.DB, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, err
	}
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoDatabase, err)
	}
	return db, nil
}

// checkPages looks at the structure of the file, and decodes every revision.
func checkPages(ctx context.Context, path string, info *DatabaseInfo) error {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err := openPages(path)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	return db.View(func(tx *bolt.Tx) error {
		var broken error
		for err := range tx.Check() { // to the end: who checks waits for who listens
			broken = errors.Join(broken, err)
		}
		if broken != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, broken)
		}
		if info.Revision, info.Compacted, err = revisions(tx); err != nil {
			return err
		}
		return eachRevision(ctx, tx, 0, func(mvcc.BucketKey, *mvccpb.KeyValue) error { return nil })
	})
}

// eachRevision calls visit with every change after a revision that the database holds, oldest first.
func eachRevision(ctx context.Context, tx *bolt.Tx, after int64, visit func(mvcc.BucketKey, *mvccpb.KeyValue) error) error {
	cursor := tx.Bucket(schema.Key.Name()).Cursor()
	from := mvcc.RevToBytes(mvcc.Revision{Main: after + 1}, mvcc.NewRevBytes())
	for k, v := cursor.Seek(from); k != nil; k, v = cursor.Next() {
		if err := ctx.Err(); err != nil {
			return err
		}
		at, err := parseRevision(k)
		if err != nil {
			return err
		}
		var kv mvccpb.KeyValue
		if err := proto.Unmarshal(v, &kv); err != nil {
			return fmt.Errorf("%w: revision %d: %w", ErrDamaged, at.Main, err)
		}
		if err := visit(at, &kv); err != nil {
			return err
		}
	}
	return nil
}

// A Change is one write to one key.
type Change struct {
	Revision int64
	Key      string
	// Version counts the writes since the key was created; 0 says that it was deleted.
	Version int64
	// Value is what was written, as it is stored. It may not be kept.
	Value []byte
}

// History calls visit with every change in the file of a database that history still holds, oldest first.
func History(ctx context.Context, path string, visit func(Change) error) (err error) {
	defer describeDamage(path, &err)
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	db, err := openPages(path)
	if err != nil {
		return err
	}
	defer func() { _ = db.Close() }()
	return db.View(func(tx *bolt.Tx) error {
		_, compacted, err := revisions(tx)
		if err != nil {
			return err
		}
		return eachRevision(ctx, tx, compacted, func(at mvcc.BucketKey, kv *mvccpb.KeyValue) error {
			return visit(Change{Revision: at.Main, Key: string(kv.Key), Version: kv.Version, Value: kv.Value})
		})
	})
}

// parseRevision reads the name that a change has in the database.
func parseRevision(name []byte) (at mvcc.BucketKey, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%w: %v", ErrDamaged, r)
		}
	}()
	return mvcc.BytesToBucketKey(name), nil
}

// pageBytes is how much is read of a store at a time, about. etcd looks through all keys for each page.
const pageBytes = 16 << 20

// readStore opens the database as etcd does and reads every key.
func readStore(ctx context.Context, path string, info *DatabaseInfo, visit func(key, value []byte) error) error {
	stat, err := os.Stat(path)
	if err != nil {
		return err
	}
	be := backend.New(scratchBackend(path))
	defer func() { _ = be.Close() }()
	schema.CreateMetaBucket(be.BatchTx())
	alarms := schema.NewAlarmBackend(zap.NewNop(), be)
	alarms.CreateAlarmBucket()
	raised, err := alarms.GetAllAlarms()
	if err != nil {
		return err
	}
	for _, alarm := range raised {
		if alarm.Alarm != etcdserverpb.AlarmType_NONE {
			info.Alarms = append(info.Alarms, alarm.Alarm.String())
		}
	}
	kv := mvcc.NewStore(zap.NewNop(), be, &lease.FakeLessor{}, mvcc.StoreConfig{})
	defer func() { _ = kv.Close() }()
	if rev := kv.Rev(); rev != info.Revision {
		return fmt.Errorf("%w: the store is at revision %d, and its newest change is %d", ErrDamaged, rev, info.Revision)
	}
	all, err := kv.Range(ctx, []byte{0}, []byte{}, mvcc.RangeOptions{Rev: info.Revision, CountOnly: true})
	if err != nil {
		return err
	}
	info.Keys = int64(all.Count)
	read, err := readPages(ctx, kv, info.Revision, max(500, pageBytes*info.Keys/max(1, stat.Size())), visit)
	if err == nil && read != info.Keys {
		err = fmt.Errorf("%w: there are %d keys, and %d can be read", ErrDamaged, info.Keys, read)
	}
	return err
}

// readPages reads all keys at a revision, so many at a time, and returns how many they were.
func readPages(ctx context.Context, kv mvcc.KV, revision, page int64, visit func(key, value []byte) error) (int64, error) {
	var read int64
	for from := []byte{0}; ctx.Err() == nil; {
		part, err := kv.Range(ctx, from, []byte{}, mvcc.RangeOptions{Rev: revision, Limit: page})
		if err != nil {
			return read, err
		}
		for _, pair := range part.KVs {
			read++
			if visit == nil {
				continue
			}
			if err := visit(pair.Key, pair.Value); err != nil {
				return read, err
			}
		}
		if int64(len(part.KVs)) < page {
			return read, nil
		}
		from = append(part.KVs[len(part.KVs)-1].Key, 0)
	}
	return read, ctx.Err()
}

// scratchBackend is for a copy that can be made again: nobody waits for its disk.
func scratchBackend(path string) backend.BackendConfig {
	cfg := backend.DefaultBackendConfig(zap.NewNop())
	cfg.Path, cfg.UnsafeNoFsync = path, true
	return cfg
}
