package etcd

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/storage/backend"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

// A Snapshot is what a member had applied at a moment, while it goes on. It costs the member nothing but pages
// of its database that can't be used again until Close, which must be called. It is for one goroutine.
type Snapshot struct {
	tx backend.Snapshot
	// Revision is the newest that it holds, Compacted the one that history was compacted to, or 0.
	Revision, Compacted int64
}

// Snapshot begins one. It holds what ReadIndex returned before, or more.
func (m *Member) Snapshot() (*Snapshot, error) {
	s := &Snapshot{tx: m.srv.Backend().Snapshot()}
	// etcd hands out its transaction, but says only that it can be copied.
	tx, ok := s.tx.(interface {
		Bucket(name []byte) *bolt.Bucket
	})
	if !ok {
		s.Close()
		return nil, errors.New("take a snapshot of etcd: this version of etcd does not show which revision it is of")
	}
	var err error
	if s.Revision, s.Compacted, err = revisions(tx); err != nil {
		s.Close()
		return nil, fmt.Errorf("take a snapshot of etcd: %w", err)
	}
	return s, nil
}

// Size is how many bytes WriteTo writes.
func (s *Snapshot) Size() int64 { return s.tx.Size() + sha256.Size }

// WriteTo writes the snapshot as etcdctl does: the database, then the SHA-256 of it.
func (s *Snapshot) WriteTo(w io.Writer) (int64, error) {
	sum := sha256.New()
	n, err := s.tx.WriteTo(io.MultiWriter(w, sum))
	if err != nil {
		return n, fmt.Errorf("copy etcd's database: %w", err)
	}
	more, err := w.Write(sum.Sum(nil))
	return n + int64(more), err
}

// Close gives up the snapshot.
func (s *Snapshot) Close() { _ = s.tx.Close() } // rolls back what never wrote

// DatabaseSize is how large the file of the member's database is, in bytes: a snapshot is as large.
func (m *Member) DatabaseSize() int64 { return m.srv.Backend().Size() }

// Keys counts the keys that there are at a revision which this member has applied, those of others than
// the API included.
func (m *Member) Keys(ctx context.Context, revision int64) (int64, error) {
	resp, err := m.Range(ctx, &etcdserverpb.RangeRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, Revision: revision, CountOnly: true, Serializable: true,
	})
	if err != nil {
		return 0, fmt.Errorf("count etcd's keys: %w", err)
	}
	return resp.Count, nil
}

// revisions reads the newest revision of a database, and what history was compacted to. etcd may be in the
// midst of a compaction: what is scheduled counts as done.
func revisions(tx interface {
	Bucket(name []byte) *bolt.Bucket
}) (newest, compacted int64, err error) {
	keys, meta := tx.Bucket(schema.Key.Name()), tx.Bucket(schema.Meta.Name())
	if keys == nil || meta == nil {
		return 0, 0, errNoDatabase
	}
	for _, name := range [][]byte{schema.ScheduledCompactKeyName, schema.FinishedCompactKeyName} {
		if value := meta.Get(name); value != nil {
			at, err := parseRevision(value)
			if err != nil {
				return 0, 0, err
			}
			compacted = max(compacted, at.Main)
		}
	}
	newest = 1 // that of a store in which nothing was ever written
	if last, _ := keys.Cursor().Last(); last != nil {
		at, err := parseRevision(last)
		if err != nil {
			return 0, 0, err
		}
		newest = at.Main
	}
	return max(newest, compacted), compacted, nil
}
