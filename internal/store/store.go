// Package store keeps the cluster's objects: a revisioned key-value store in etcd, and beside
// it in memory an image of what etcd holds, from which every read is answered.
//
// The image is fed by one watch over the whole keyspace, in process. An object version is one
// immutable [Entry]: the bytes as stored, the typed object decoded at most once, and each wire
// encoding made at most once, all shared by everybody who reads or watches. Each resource is a
// [Table]: an ordered copy-on-write tree of entries and a bounded, append-only log of events.
// A watch is a [Cursor] on that log, a position and not a queue, so that a slow watcher delays
// nobody; one that falls off the log's tail gets [ErrCompacted].
//
// Writes are one etcd transaction that compares the object's mod revision, and the fence of a
// leader when the context carries one (see [WithFence]); they return when the local image holds
// them. Consistent reads ask raft for the read index and then the image ([Store.ReadIndex]).
//
// Keys and values are laid out as kube-apiserver lays them out, so that the state is portable.
package store

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/runtime"
)

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotFound: no object has the key.
	ErrNotFound = errors.New("not found")
	// ErrExists: Create found an object at the key.
	ErrExists = errors.New("already exists")
	// ErrConflict: the object's mod revision is not the expected one.
	ErrConflict = errors.New("revision conflict")
	// ErrOvertaken: another object that the write was to change, or was decided on, has changed meanwhile.
	ErrOvertaken = errors.New("overtaken by another write")
	// ErrFenced: the context's fence no longer holds; the caller is a deposed leader.
	ErrFenced = errors.New("fenced: leadership was lost")
	// ErrCompacted: the revision is older than the history that is kept (HTTP 410).
	ErrCompacted = errors.New("revision is too old")
	// ErrFuture: the revision lies ahead of the image (HTTP 504, "Too large resource version").
	ErrFuture = errors.New("revision is too large")
	// ErrUnavailable: no quorum, so nothing consistent can be read and nothing written (HTTP 503).
	ErrUnavailable = errors.New("no quorum")
	// ErrUncertain, beside ErrUnavailable: a write was proposed, and may be made yet.
	ErrUncertain = errors.New("the outcome is unknown")
	// ErrClosed: the store stopped, or the table was unregistered; watches end.
	ErrClosed = errors.New("closed")
	// ErrRejected: etcd refused the request before proposing it: too large, no space left,
	// too many requests. Nothing was written.
	ErrRejected = errors.New("rejected by etcd")
	// ErrLeaseNotFound: the lease of a write has expired. Nothing was written.
	ErrLeaseNotFound = errors.New("lease not found")
)

// An IndexFunc returns the values under which an index finds an object.
type IndexFunc = func(obj runtime.Object) []string

// Schema says how one resource is kept.
type Schema struct {
	// Prefix is where its keys start, with a slash at the end: "/registry/pods/".
	Prefix string
	// Namespaced tells whether a key is Prefix + namespace/name or Prefix + name.
	Namespaced bool
	// Decode makes the typed object of stored (decrypted) bytes, with its resourceVersion
	// set to revision. The object is shared: nobody may change it.
	Decode func(value []byte, revision int64) (runtime.Object, error)
	// Indexes maps an index name to a function that says under which values an object is
	// found. It must be pure. Example: "spec.nodeName" of pods.
	Indexes map[string]IndexFunc
	// Transform encrypts at rest; nil stores plainly.
	Transform Transformer
}

// A Transformer turns plain bytes into stored bytes and back. dataCtx authenticates the key
// that the value stands at (kube-apiserver's value.Context). It is safe for concurrent use.
type Transformer interface {
	ToStorage(ctx context.Context, plain []byte, dataCtx string) ([]byte, error)
	FromStorage(ctx context.Context, stored []byte, dataCtx string) ([]byte, error)
}

// A Staler is a Transformer that can tell that a value should be written again, because its
// key was rotated or it stands unencrypted. See [Entry.Stale].
type Staler interface {
	Stale(stored []byte, dataCtx string) bool
}

// A Guarder is a Transformer whose values may only be written while what they were made with still
// holds. A write makes that a condition of its transaction; when it fails, the value is made again.
type Guarder interface {
	// Guard returns the key in etcd, and the revision at which it was written last, that must still
	// stand when stored, which ToStorage returned, is written. Revision 0 means that there must be no
	// such key; a negative one that stored must be made again in any case.
	Guard(stored []byte) (key string, revision int64)
}

// A Remote is a Transformer that may have to ask a service before it can decrypt. The image takes
// such values in without decrypting them: indexes know them once somebody has read them, and until
// then look at each (see [Snapshot.ByIndex]).
type Remote interface {
	Remote() bool
}

// Key names an object in its table.
type Key struct {
	Namespace string // empty for cluster-scoped resources
	Name      string
}

// EventType says what an event did to its key.
type EventType int8

const (
	// Put is a creation or a change: Entry holds the new version.
	Put EventType = iota
	// Delete is a removal: Entry is nil, Prev the last version.
	Delete
)

// An Event is one change of one object. Events of a table are ordered by revision.
type Event struct {
	Type     EventType
	Revision int64
	Key      Key
	Entry    *Entry // after the change; nil for Delete
	Prev     *Entry // before the change; nil for a creation
}

// A Fence is a key that a leader holds; a write under it succeeds only while the key still has
// the create revision that the leader saw.
type Fence struct {
	Key            string
	CreateRevision int64
}

type fenceKey struct{}

// WithFence returns a context whose writes, through any layer, are conditional on fence.
func WithFence(ctx context.Context, fence Fence) context.Context {
	return context.WithValue(ctx, fenceKey{}, fence)
}

// FenceFrom returns the context's fence.
func FenceFrom(ctx context.Context) (Fence, bool) {
	f, ok := ctx.Value(fenceKey{}).(Fence)
	return f, ok
}
