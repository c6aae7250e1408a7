package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.opentelemetry.io/otel/attribute"

	"barque.dev/internal/tracing"
)

// WriteOptions are the rare parts of a write.
type WriteOptions struct {
	// TTL removes the object that long after this write, rounded up to seconds and a little
	// more, because objects of similar age share a lease. Zero keeps it.
	TTL time.Duration
	// KeepTTL leaves the object the time that it has.
	KeepTTL bool
	// With are changes of other objects that are made in the same transaction, or not at all.
	With []Change
	// Since, if its table is not nil, makes the write fail with ErrOvertaken when something of it
	// is newer than whoever decided on the write has seen.
	Since Since
}

// Since is what was seen of a namespace of a table: everything that was written until Revision.
type Since struct {
	Table     *Table
	Namespace string
	Revision  int64
}

// A Change replaces the version of an object that was written at revision Expected. When it is no
// longer the newest, the write fails with ErrOvertaken.
type Change struct {
	Table    *Table
	Key      Key
	Value    []byte
	Expected int64
}

// Create writes a new object. It returns ErrExists when there is one, ErrFenced when the context's
// fence is gone, ErrUnavailable when nothing can be written now; with the last, if the error wraps
// ErrUncertain too, the write may yet have been made. Conditions hold for all three writes. Once
// the write is durable, Create waits for the image to hold it, at most until ctx ends.
func (t *Table) Create(ctx context.Context, key Key, value []byte, opts WriteOptions) (entry *Entry, err error) {
	ctx, span := t.span(ctx, "Create etcd", key)
	defer func() { span.End(err) }()
	w, err := t.newWrite(ctx, "create", key, value, opts)
	if err != nil {
		return nil, err
	}
	entry, _, err = w.run(ctx)
	return entry, err
}

// Update replaces the version that was written at revision expected, or whichever there is when
// expected is 0. It returns ErrNotFound, ErrConflict, and what Create returns.
func (t *Table) Update(ctx context.Context, key Key, value []byte, expected int64, opts WriteOptions) (entry *Entry, err error) {
	ctx, span := t.span(ctx, "Update etcd", key)
	defer func() { span.End(err) }()
	w, err := t.newWrite(ctx, "update", key, value, opts)
	if err != nil {
		return nil, err
	}
	w.expected, w.exists = expected, true
	entry, _, err = w.run(ctx)
	return entry, err
}

// Delete removes the version that was written at revision expected, or whichever there is when
// expected is 0. It returns the version that it removed and the revision of the removal, or
// ErrNotFound, ErrConflict, and what Create returns.
func (t *Table) Delete(ctx context.Context, key Key, expected int64) (prev *Entry, revision int64, err error) {
	ctx, span := t.span(ctx, "Delete etcd", key)
	defer func() { span.End(err) }()
	w, err := t.newWrite(ctx, "delete", key, nil, WriteOptions{})
	if err != nil {
		return nil, 0, err
	}
	w.expected, w.exists, w.remove = expected, true, true
	return w.run(ctx)
}

// span begins the span of a write.
func (t *Table) span(ctx context.Context, name string, key Key) (context.Context, tracing.Span) {
	ctx, span := tracing.Start(ctx, name)
	if span.On() {
		span.Set(attribute.String("prefix", t.Schema().Prefix), attribute.String("namespace", key.Namespace), attribute.String("name", key.Name))
	}
	return ctx, span
}

// write is one compare-and-swap, which may take several attempts.
type write struct {
	table    *Table
	verb     string
	path     string
	key      []byte
	plain    []byte
	stored   []byte // as it will stand in etcd
	ttl      time.Duration
	expected int64 // mod revision; 0: see exists
	exists   bool  // the object must exist (update, delete) or must not (create)
	remove   bool
	fence    Fence
	fenced   bool
	with     []companion
	guards   []guard
	since    Since
	keepTTL  bool
	passed   int64 // the gate's revision that the last attempt compared
}

// companion is a change that is made together with a write.
type companion struct {
	space              *keyspace
	key, plain, stored []byte
	expected           int64
}

// guard is what must hold so that an encrypted value may be written; see Guarder.
type guard struct {
	key      string
	revision int64
}

func (t *Table) newWrite(ctx context.Context, verb string, key Key, value []byte, opts WriteOptions) (*write, error) {
	if t.absent {
		return nil, fmt.Errorf("%s %s/%s: its resource is not kept: %w", verb, key.Namespace, key.Name, ErrClosed)
	}
	t = t.heir()
	path, full, err := t.space.etcdKey(key)
	if err != nil {
		return nil, fmt.Errorf("%s in %s: %w", verb, t.space.schema.Prefix, err)
	}
	w := &write{table: t, verb: verb, path: path, key: full, plain: value, ttl: opts.TTL, keepTTL: opts.KeepTTL, since: opts.Since}
	w.fence, w.fenced = FenceFrom(ctx)
	for _, c := range opts.With {
		_, key, err := c.Table.space.etcdKey(c.Key)
		if err != nil {
			return nil, fmt.Errorf("%s %s: with %s: %w", verb, full, c.Table.space.schema.Prefix, err)
		}
		w.with = append(w.with, companion{space: c.Table.space, key: key, plain: c.Value, expected: c.Expected})
	}
	if err := w.encrypt(ctx); err != nil {
		return nil, fmt.Errorf("%s %s: %w", verb, full, err)
	}
	return w, nil
}

// encrypt makes what will stand in etcd. It is done once for all attempts, since the bytes tell
// whether an earlier attempt got through, unless the keys change meanwhile.
func (w *write) encrypt(ctx context.Context) (err error) {
	w.guards = nil
	if w.verb != "delete" {
		if w.stored, err = w.table.space.encrypt(ctx, w.key, w.plain); err != nil {
			return fmt.Errorf("encrypt: %w", err)
		}
		w.guard(w.table.space, w.stored)
	}
	for i := range w.with {
		c := &w.with[i]
		if c.stored, err = c.space.encrypt(ctx, c.key, c.plain); err != nil {
			return fmt.Errorf("with %s: encrypt: %w", c.key, err)
		}
		w.guard(c.space, c.stored)
	}
	return nil
}

func (w *write) guard(space *keyspace, stored []byte) {
	g, ok := space.schema.Transform.(Guarder)
	if !ok {
		return
	}
	if key, revision := g.Guard(stored); key != "" {
		w.guards = append(w.guards, guard{key, revision})
	}
}

func (w *write) errorf(err error) error { return fmt.Errorf("%s %s: %w", w.verb, w.key, err) }

// run attempts the transaction until its outcome is known. A proposal that was under way when the
// leader changed is lost, or applied, or will be applied: run looks for its effect before it tries
// again, and the comparison of revisions, the object's or the gate's, makes sure that only one attempt can take
// effect.
func (w *write) run(ctx context.Context) (*Entry, int64, error) {
	s := w.table.store
	ctx, cancel := context.WithTimeout(ctx, s.cfg.WriteTimeout)
	defer cancel()
	begin := s.revision.Load()
	uncertain := false
	for {
		if err := s.awaitLeader(ctx); err != nil {
			if uncertain {
				err = fmt.Errorf("%w: %w", ErrUncertain, err)
			}
			return nil, 0, w.errorf(err)
		}
		if uncertain && w.recurs() {
			if err := s.gate.raise(ctx, s, w.passed); err != nil {
				return nil, 0, w.errorf(fmt.Errorf("%w: %w", ErrUncertain, err))
			}
		}
		if uncertain {
			if _, err := s.ReadIndex(ctx); err != nil {
				return nil, 0, w.errorf(fmt.Errorf("%w: %w", ErrUncertain, err))
			}
			if e, revision, ok := w.effect(begin); ok {
				return e, revision, nil
			}
			uncertain = !w.recurs()
		}
		attempt, end := s.term.attempt(ctx)
		var resp *etcdserverpb.TxnResponse
		leaseID, err := s.leases.get(attempt, s, w.ttl)
		proposed := err == nil
		if proposed {
			proposal, span := tracing.Start(attempt, "Txn")
			resp, err = s.backend.Txn(proposal, w.txn(leaseID))
			span.End(err)
		}
		end()
		switch {
		case err == nil && resp.Succeeded:
			return w.succeeded(ctx, resp)
		case err == nil:
			e, revision, err := w.failed(ctx, resp, begin, uncertain)
			if errors.Is(err, errGate) {
				continue
			}
			if !errors.Is(err, errGuard) {
				return e, revision, err
			}
			if err := pause(ctx, retryPause); err != nil {
				return nil, 0, w.errorf(fmt.Errorf("%w: %w: %w", ErrUnavailable, errGuard, err))
			}
			if err := w.encrypt(ctx); err != nil {
				return nil, 0, w.errorf(err)
			}
			uncertain = false // an earlier attempt has the same condition
			continue
		case errors.Is(err, ErrLeaseNotFound):
			s.leases.drop(leaseID)
			continue
		case errors.Is(err, ErrRejected):
			return nil, 0, w.errorf(err)
		case s.base.Err() != nil:
			return nil, 0, w.errorf(ErrClosed)
		case ctx.Err() != nil:
			return nil, 0, w.errorf(fmt.Errorf("%w: %w: %w: %w", ErrUnavailable, ErrUncertain, ctx.Err(), err))
		}
		s.log.Debug("write is tried again", "key", string(w.key), "error", err)
		uncertain = uncertain || proposed
		if err := pause(ctx, retryPause); err != nil {
			return nil, 0, w.errorf(fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrUncertain, err))
		}
	}
}

// txn compares the object's revision, and the fence if there is one; when that fails it reads what
// stands at both keys. Of the gate likewise, last of all.
func (w *write) txn(leaseID int64) *etcdserverpb.TxnRequest {
	req := &etcdserverpb.TxnRequest{Failure: []*etcdserverpb.RequestOp{rangeOp(w.key)}}
	switch {
	case w.exists && w.expected == 0:
		req.Compare = append(req.Compare, &etcdserverpb.Compare{
			Key: w.key, Target: etcdserverpb.Compare_VERSION, Result: etcdserverpb.Compare_GREATER,
			TargetUnion: &etcdserverpb.Compare_Version{Version: 0},
		})
	default:
		req.Compare = append(req.Compare, unchanged(w.key, w.expected))
	}
	if w.fenced {
		req.Compare = append(req.Compare, &etcdserverpb.Compare{
			Key: []byte(w.fence.Key), Target: etcdserverpb.Compare_CREATE, Result: etcdserverpb.Compare_EQUAL,
			TargetUnion: &etcdserverpb.Compare_CreateRevision{CreateRevision: w.fence.CreateRevision},
		})
		req.Failure = append(req.Failure, rangeOp([]byte(w.fence.Key)))
	}
	for _, g := range w.guards {
		req.Compare = append(req.Compare, unchanged([]byte(g.key), g.revision))
		req.Failure = append(req.Failure, rangeOp([]byte(g.key)))
	}
	if w.remove {
		req.Success = []*etcdserverpb.RequestOp{{Request: &etcdserverpb.RequestOp_RequestDeleteRange{
			RequestDeleteRange: &etcdserverpb.DeleteRangeRequest{Key: w.key, PrevKv: true},
		}}}
	} else {
		put := putOp(w.key, w.stored, leaseID)
		put.GetRequestPut().IgnoreLease = w.keepTTL
		req.Success = []*etcdserverpb.RequestOp{put}
	}
	if w.since.Table != nil {
		req.Compare = append(req.Compare, w.since.compare())
	}
	// After the object itself: whoever sees a companion changed in the image sees why.
	for _, c := range w.with {
		req.Compare = append(req.Compare, unchanged(c.key, c.expected))
		req.Success = append(req.Success, putOp(c.key, c.stored, 0))
	}
	if w.recurs() {
		w.passed = w.table.store.gate.revision.Load()
		req.Compare = append(req.Compare, unchanged([]byte(gateKey), w.passed))
		req.Failure = append(req.Failure, rangeOp([]byte(gateKey)))
	}
	return req
}

// compare holds if no key of the namespace is newer than the revision.
func (s Since) compare() *etcdserverpb.Compare {
	prefix := s.Table.space.schema.Prefix + s.Namespace + "/"
	return &etcdserverpb.Compare{
		Key: []byte(prefix), RangeEnd: prefixEnd(prefix), Target: etcdserverpb.Compare_MOD, Result: etcdserverpb.Compare_LESS,
		TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: s.Revision + 1},
	}
}

func unchanged(key []byte, revision int64) *etcdserverpb.Compare {
	return &etcdserverpb.Compare{
		Key: key, Target: etcdserverpb.Compare_MOD, Result: etcdserverpb.Compare_EQUAL,
		TargetUnion: &etcdserverpb.Compare_ModRevision{ModRevision: revision},
	}
}

func putOp(key, value []byte, leaseID int64) *etcdserverpb.RequestOp {
	return &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestPut{
		RequestPut: &etcdserverpb.PutRequest{Key: key, Value: value, Lease: leaseID},
	}}
}

func rangeOp(key []byte) *etcdserverpb.RequestOp {
	return &etcdserverpb.RequestOp{Request: &etcdserverpb.RequestOp_RequestRange{
		RequestRange: &etcdserverpb.RangeRequest{Key: key},
	}}
}

// succeeded waits for the image and returns the version that everybody shares.
func (w *write) succeeded(ctx context.Context, resp *etcdserverpb.TxnResponse) (*Entry, int64, error) {
	revision := resp.Header.Revision
	waiting, span := tracing.Start(ctx, "Await image")
	waited := w.table.store.WaitRevision(waiting, revision)
	span.End(waited)
	t := w.table.heir()
	if w.remove {
		kv := resp.Responses[0].GetResponseDeleteRange().GetPrevKvs()[0]
		if waited == nil {
			if e := t.removed(w.path, revision); e != nil {
				return e, revision, nil
			}
		}
		return newEntry(t.space, w.path, kv), revision, nil
	}
	if waited == nil {
		if e := t.find(w.path, revision); e != nil {
			return e, revision, nil
		}
	}
	// The write is durable, though the image is late or has moved on beyond its log.
	create := revision
	if w.exists {
		create = w.createRevision(ctx, revision)
	}
	return newEntry(t.space, w.path, &mvccpb.KeyValue{Value: w.stored, CreateRevision: create, ModRevision: revision}), revision, nil
}

// createRevision asks for the creation of a version that the image doesn't have.
func (w *write) createRevision(ctx context.Context, revision int64) int64 {
	if e, ok := w.table.get(w.path); ok && e.create <= revision {
		return e.create
	}
	resp, err := w.table.store.backend.Range(ctx, &etcdserverpb.RangeRequest{Key: w.key, Revision: revision, Serializable: true})
	if err != nil || len(resp.Kvs) == 0 {
		return 0
	}
	return resp.Kvs[0].CreateRevision
}

// failed says why the comparison failed, unless an earlier attempt is the reason.
func (w *write) failed(ctx context.Context, resp *etcdserverpb.TxnResponse, begin int64, uncertain bool) (*Entry, int64, error) {
	if uncertain {
		if err := w.table.store.WaitRevision(ctx, resp.Header.Revision); err != nil {
			return nil, 0, w.errorf(fmt.Errorf("%w: %w: %w", ErrUnavailable, ErrUncertain, err))
		}
		if e, revision, ok := w.effect(begin); ok {
			return e, revision, nil
		}
	}
	if w.fenced {
		held := resp.Responses[1].GetResponseRange().GetKvs()
		if len(held) == 0 || held[0].CreateRevision != w.fence.CreateRevision {
			return nil, 0, w.errorf(ErrFenced)
		}
	}
	if w.recurs() && w.table.store.gate.missed(resp, w.passed) {
		return nil, 0, errGate
	}
	found := resp.Responses[0].GetResponseRange().GetKvs()
	// The image should hold what the caller will look at next: the reason of its failure.
	waited := w.table.store.WaitRevision(ctx, resp.Header.Revision)
	if w.unguarded(resp) {
		if waited != nil { // the new keys aren't known here
			return nil, 0, w.errorf(fmt.Errorf("%w: %w", ErrUnavailable, waited))
		}
		return nil, 0, errGuard
	}
	var err error
	switch {
	case w.holds(found):
		return nil, 0, w.errorf(ErrOvertaken)
	case len(found) == 0:
		err = ErrNotFound
	case !w.exists:
		err = fmt.Errorf("%w since revision %d", ErrExists, found[0].CreateRevision)
	default:
		err = fmt.Errorf("%w: it is at revision %d, not %d", ErrConflict, found[0].ModRevision, w.expected)
	}
	return nil, 0, w.errorf(err)
}

// recurs tells whether the comparison may come to hold again after it failed: one with a revision never does. Such
// writes pass the gate.
func (w *write) recurs() bool { return w.expected == 0 }

// errGate is the failure of a write that came when the gate had just been raised.
var errGate = errors.New("another proposal was given up")

// errGuard is the failure of a write whose values have to be encrypted again.
var errGuard = errors.New("what the value was encrypted with has changed")

// unguarded tells whether a condition of the values' encryption failed.
func (w *write) unguarded(resp *etcdserverpb.TxnResponse) bool {
	first := 1
	if w.fenced {
		first++
	}
	for i, g := range w.guards {
		revision := int64(0)
		if kvs := resp.Responses[first+i].GetResponseRange().GetKvs(); len(kvs) > 0 {
			revision = kvs[0].ModRevision
		}
		if revision != g.revision {
			return true
		}
	}
	return false
}

// holds tells whether what stands at the object's key is what the write wanted to find.
func (w *write) holds(found []*mvccpb.KeyValue) bool {
	switch {
	case !w.exists:
		return len(found) == 0
	case len(found) == 0:
		return false
	default:
		return w.expected == 0 || found[0].ModRevision == w.expected
	}
}

// effect looks for what an earlier attempt did after revision begin: a version with exactly our
// bytes in place of what we expected, or its removal. The image has to be up to date. A table that
// was replaced meanwhile has the first part of what happened, its heir the rest; where they lack some
// of it, our bytes at the key itself are as good.
// (Objects carry a UID from their creation, so that equal bytes are the same object's; when two
// writers made equal changes of the same version, both got what they wanted.)
func (w *write) effect(begin int64) (*Entry, int64, bool) {
	seen, whole := begin, true
	for t := w.table; t != nil; {
		t.mu.RLock()
		ev := w.logged(&t.log, begin)
		whole = whole && t.log.floor <= seen
		seen = t.known()
		next := t.next
		t.mu.RUnlock()
		t = next
		switch {
		case ev != nil && w.remove:
			return ev.Prev, ev.Revision, true
		case ev != nil:
			return ev.Entry, ev.Revision, true
		}
	}
	if whole || w.remove {
		return nil, 0, false
	}
	if e, ok := w.table.get(w.path); ok && w.made(e, begin) {
		return e, e.mod, true
	}
	return nil, 0, false
}

// logged is the event of our change in a log, after revision begin; nil if it is not there.
func (w *write) logged(log *eventLog, begin int64) *Event {
	var found *Event
	log.backwards(begin, func(ev *Event) bool {
		var path string
		if ev.Entry != nil {
			path = ev.Entry.path
		} else {
			path = ev.Prev.path
		}
		if path != w.path || !w.replaces(ev.Prev) {
			return true
		}
		if w.remove && ev.Type == Delete || !w.remove && ev.Type == Put && bytes.Equal(ev.Entry.stored, w.stored) {
			found = ev
		}
		return found == nil
	})
	return found
}

// made tells whether a version that was written after revision begin can only be ours, going by
// itself alone.
func (w *write) made(e *Entry, begin int64) bool {
	if e.mod <= max(begin, w.expected) || !bytes.Equal(e.stored, w.stored) {
		return false
	}
	switch {
	case !w.exists:
		return e.create == e.mod
	case w.expected == 0:
		return e.create < e.mod
	default:
		return e.create <= w.expected
	}
}

// replaces tells whether prev is what the write expects to find.
func (w *write) replaces(prev *Entry) bool {
	switch {
	case !w.exists:
		return prev == nil
	case w.expected == 0:
		return prev != nil
	default:
		return prev != nil && prev.mod == w.expected
	}
}
