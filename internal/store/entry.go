package store

import (
	"context"
	"strings"
	"sync"
	"sync/atomic"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"k8s.io/apimachinery/pkg/runtime"
)

// An Entry is one version of one object. It never changes; what is derived from it (plain
// bytes, typed object, wire encodings) is made when it is first asked for and shared by all who
// ask; of versions that only the history has, it is dropped after a while and made again, but for
// what was decrypted, which may not be possible again. All methods are safe for concurrent use, and
// nothing that they return may be changed.
type Entry struct {
	space  *keyspace // of the table
	path   string    // the key below the table's prefix: namespace/name, or name
	stored []byte    // as it stands in etcd
	create int64
	mod    int64
	nsLen  int32 // length of the namespace in path; 0 if none

	mu     sync.Mutex // serialises making of plain and object
	plain  atomic.Pointer[[]byte]
	object atomic.Pointer[decoded]
	wires  atomic.Pointer[wire]
}

// decoded is the result of the one call of Schema.Decode.
type decoded struct {
	obj runtime.Object
	err error
}

// wire is one memoised encoding, a link in a list: an entry has seldom more than two or three.
type wire struct {
	id   any
	next *wire

	mu   sync.Mutex
	data atomic.Pointer[[]byte]
	used atomic.Int64 // sweep in which it was last asked for
}

func newEntry(space *keyspace, path string, kv *mvccpb.KeyValue) *Entry {
	e := &Entry{space: space, path: path, stored: kv.Value, create: kv.CreateRevision, mod: kv.ModRevision}
	if space.schema.Namespaced {
		if i := strings.IndexByte(path, '/'); i > 0 {
			e.nsLen = int32(i)
		}
	}
	return e
}

// Key returns the object's namespace and name.
func (e *Entry) Key() Key {
	if e.nsLen == 0 {
		return Key{Name: e.path}
	}
	return Key{Namespace: e.path[:e.nsLen], Name: e.path[e.nsLen+1:]}
}

// Revision is the etcd revision of the write that made this version (the resourceVersion).
func (e *Entry) Revision() int64 { return e.mod }

// CreateRevision is the etcd revision of the object's creation.
func (e *Entry) CreateRevision() int64 { return e.create }

// Size is the number of bytes in etcd.
func (e *Entry) Size() int { return len(e.stored) }

// Stored returns the bytes that stand in etcd.
func (e *Entry) Stored() []byte { return e.stored }

// Raw returns the decrypted bytes as encoded by whoever wrote them, or nil when they cannot be
// decrypted (see [Entry.Plain] for the reason).
func (e *Entry) Raw() []byte {
	p, err := e.Plain()
	if err != nil {
		return nil
	}
	return p
}

// Plain is Raw with the error of decryption, an [UnreadableError]. A failure is not remembered: the
// key service may come back.
func (e *Entry) Plain() ([]byte, error) {
	t := e.space.schema.Transform
	if t == nil {
		return e.stored, nil
	}
	if p := e.plain.Load(); p != nil {
		return *p, nil
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.plainLocked(t)
}

func (e *Entry) plainLocked(t Transformer) ([]byte, error) {
	if p := e.plain.Load(); p != nil {
		return *p, nil
	}
	p, err := t.FromStorage(context.Background(), e.stored, e.space.schema.Prefix+e.path)
	if err != nil {
		return nil, e.unreadable("decrypt", err)
	}
	e.plain.Store(&p)
	return p, nil
}

// Stale tells whether the value should be written again although the object did not change,
// because its encryption key was rotated.
func (e *Entry) Stale() bool {
	s, ok := e.space.schema.Transform.(Staler)
	return ok && s.Stale(e.stored, e.space.schema.Prefix+e.path)
}

// indexable tells whether it can be found out now, without waiting for anybody, under which values
// indexes find the object.
func (e *Entry) indexable() bool {
	t := e.space.schema.Transform
	if t == nil || e.object.Load() != nil {
		return true
	}
	if e.remote() {
		return false
	}
	_, err := e.Plain()
	return err == nil
}

// remote tells whether decryption may have to wait for a service.
func (e *Entry) remote() bool {
	r, ok := e.space.schema.Transform.(Remote)
	return ok && r.Remote()
}

// Object returns the typed object, decoded once for all and shared: treat it as read-only. Its error is an
// [UnreadableError].
func (e *Entry) Object() (runtime.Object, error) {
	if d := e.object.Load(); d != nil {
		return d.obj, d.err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if d := e.object.Load(); d != nil {
		return d.obj, d.err
	}
	plain := e.stored
	if t := e.space.schema.Transform; t != nil {
		var err error
		if plain, err = e.plainLocked(t); err != nil {
			return nil, err
		}
	}
	d := &decoded{}
	if d.obj, d.err = e.space.schema.Decode(plain, e.mod); d.err != nil {
		d.err = e.unreadable("decode", d.err)
	}
	e.object.Store(d)
	return d.obj, d.err
}

// Wire returns the encoding that id names, calling make for it at most once at a time and
// remembering the result. id must be comparable; small integers or empty structs of a package's
// own type serve best. Encodings that nobody asked for in a while are dropped and made again
// when needed.
func (e *Entry) Wire(id any, make func() ([]byte, error)) ([]byte, error) {
	w := e.wire(id)
	now := e.space.sweeps.Load()
	if w.used.Load() != now { // a shared cache line is written once a sweep, not once a read
		w.used.Store(now)
	}
	if d := w.data.Load(); d != nil {
		return *d, nil
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if d := w.data.Load(); d != nil {
		return *d, nil
	}
	data, err := make()
	if err != nil {
		return nil, err
	}
	w.data.Store(&data)
	return data, nil
}

// Peek returns the encoding that id names if it is there.
func (e *Entry) Peek(id any) ([]byte, bool) {
	for w := e.wires.Load(); w != nil; w = w.next {
		if w.id == id {
			if d := w.data.Load(); d != nil {
				return *d, true
			}
			return nil, false
		}
	}
	return nil, false
}

// wire finds or adds the link of id.
func (e *Entry) wire(id any) *wire {
	head := e.wires.Load()
	for w := head; w != nil; w = w.next {
		if w.id == id {
			return w
		}
	}
	for {
		added := &wire{id: id, next: head}
		if e.wires.CompareAndSwap(head, added) {
			return added
		}
		head = e.wires.Load()
		for w := head; w != nil; w = w.next {
			if w.id == id {
				return w
			}
		}
	}
}

// settle makes the version ready to be forgotten: what is encrypted is decrypted while that can be done. Its key may
// be dropped, or the service that has it be away, by the time that somebody reads the history.
func (e *Entry) settle() error {
	_, err := e.Plain()
	return err
}

// forget drops what was derived, but for what was decrypted: the version is past, and few will ask again. It
// tells whether there was anything.
func (e *Entry) forget() bool {
	wires, object := e.wires.Swap(nil), e.object.Swap(nil)
	return wires != nil || object != nil
}

// dropWires forgets encodings that were not used since sweep.
func (e *Entry) dropWires(sweep int64) {
	for w := e.wires.Load(); w != nil; w = w.next {
		if w.used.Load() < sweep {
			w.data.Store(nil)
		}
	}
}
