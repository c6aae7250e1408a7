package registry

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	listvalidation "k8s.io/apimachinery/pkg/apis/meta/internalversion/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/validation/field"
	genericstorage "k8s.io/apiserver/pkg/storage"

	"barque.dev/internal/store"
)

// freshTimeout is how long a read waits for a resource version that the server has not reached.
const freshTimeout = 3 * time.Second

// Get reads one object. Without a resource version the read is consistent.
func (r *Registry) Get(ctx context.Context, req Request, opts *metav1.GetOptions) (Result, error) {
	if !req.allows("get") {
		return Result{}, methodNotSupported(req, "get")
	}
	if req.Subresource == "scale" {
		return r.getScale(ctx, req, opts)
	}
	version := ""
	if opts != nil {
		version = opts.ResourceVersion
	}
	if err := r.reach(ctx, req, version); err != nil {
		return Result{}, err
	}
	entry, ok := r.tableOf(req).Get(req.key())
	if !ok {
		return Result{}, notFound(req.groupResource(), req.Name)
	}
	return Result{Entry: entry}, nil
}

// find reads one object consistently.
func (r *Registry) find(ctx context.Context, req Request) (*store.Entry, error) {
	if err := r.reach(ctx, req, ""); err != nil {
		return nil, err
	}
	entry, ok := r.tableOf(req).Get(req.key())
	if !ok {
		return nil, notFound(req.groupResource(), req.Name)
	}
	return entry, nil
}

// CatchUp waits until the image holds every write that was acknowledged anywhere before the call.
func (r *Registry) CatchUp(ctx context.Context) error {
	if _, err := r.store.ReadIndex(ctx); err != nil {
		return statusError(err, schema.GroupResource{}, "", "read")
	}
	return nil
}

// Stale says why what the image holds may be older than what other servers have acknowledged, and can't be made as new as
// that now; nil when it can.
func (r *Registry) Stale() error { return r.store.Healthy() }

// reach waits until the image is as new as a read asks for: "" is every write acknowledged
// before, "0" is whatever there is, another is at least that version.
func (r *Registry) reach(ctx context.Context, req Request, version string) error {
	if version == "" {
		if _, err := r.store.ReadIndex(ctx); err != nil {
			return statusError(err, req.groupResource(), req.Name, "read")
		}
		return nil
	}
	revision, err := parseVersion(version)
	if err != nil {
		return err
	}
	return r.waitFor(ctx, req, revision)
}

func (r *Registry) waitFor(ctx context.Context, req Request, revision int64) error {
	if revision <= r.store.Revision() {
		return nil
	}
	wait, cancel := context.WithTimeout(ctx, freshTimeout)
	defer cancel()
	if err := r.store.WaitRevision(wait, revision); err != nil {
		if ctx.Err() != nil {
			return statusError(ctx.Err(), req.groupResource(), req.Name, "read")
		}
		return futureVersion(revision, r.store.Revision())
	}
	return nil
}

func parseVersion(version string) (int64, error) {
	if version == "" || version == "0" {
		return 0, nil
	}
	revision, err := strconv.ParseUint(version, 10, 63)
	if err != nil {
		return 0, apierrors.NewBadRequest(fmt.Sprintf("invalid resource version: %v", field.Invalid(field.NewPath("resourceVersion"), version, err.Error())))
	}
	return int64(revision), nil
}

// A List is a page of objects of one revision.
type List struct {
	Entries  []*store.Entry
	Revision int64
	// Continue asks for the rest; "" when there is none.
	Continue string
	// Remaining counts the rest, when that is known.
	Remaining *int64
}

// List reads the objects that the options select, with kube-apiserver's semantics of resource
// versions, limits and continuation.
func (r *Registry) List(ctx context.Context, req Request, opts *metainternalversion.ListOptions) (*List, error) {
	if !req.allows("list") {
		return nil, methodNotSupported(req, "list")
	}
	return r.list(ctx, req, opts)
}

func (r *Registry) list(ctx context.Context, req Request, opts *metainternalversion.ListOptions) (*List, error) {
	if opts == nil {
		opts = &metainternalversion.ListOptions{}
	}
	if errs := listvalidation.ValidateListOptions(opts, true); len(errs) > 0 {
		return nil, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "ListOptions"}, "", errs)
	}
	sel, err := newSelector(req, opts)
	if err != nil {
		return nil, err
	}
	snapshot, after, err := r.listAt(ctx, req, opts)
	if err != nil {
		return nil, err
	}
	return page(req, sel, snapshot, after, opts)
}

// listAt finds the snapshot that a list shows, and the key behind which it starts.
func (r *Registry) listAt(ctx context.Context, req Request, opts *metainternalversion.ListOptions) (*store.Snapshot, store.Key, error) {
	if opts.Continue != "" {
		return r.continueAt(ctx, req, opts)
	}
	revision, err := parseVersion(opts.ResourceVersion)
	if err != nil {
		return nil, store.Key{}, err
	}
	exact := opts.ResourceVersionMatch == metav1.ResourceVersionMatchExact ||
		(opts.ResourceVersionMatch == "" && opts.Limit > 0 && revision > 0)
	if exact {
		if err := r.waitFor(ctx, req, revision); err != nil {
			return nil, store.Key{}, err
		}
		snapshot, err := r.snapshotAt(ctx, req, revision)
		return snapshot, store.Key{}, err
	}
	if err := r.reach(ctx, req, opts.ResourceVersion); err != nil {
		return nil, store.Key{}, err
	}
	snapshot, err := r.snapshotAt(ctx, req, 0)
	return snapshot, store.Key{}, err
}

// snapshotAt is what the resource holds at a revision, or now when that is 0. The image has to have reached it before:
// the table may be another one after a wait, and the one from before would lack what was written meanwhile.
func (r *Registry) snapshotAt(ctx context.Context, req Request, revision int64) (*store.Snapshot, error) {
	table := r.tableOf(req)
	if table == r.absent {
		return nil, notFound(req.groupResource(), "")
	}
	snapshot, err := table.At(ctx, revision)
	return snapshot, statusError(err, req.groupResource(), "", "list")
}

// continueAt resumes a list where its token says. When the token's revision is gone, the error
// carries a token that resumes at the newest one, as kube-apiserver's does.
func (r *Registry) continueAt(ctx context.Context, req Request, opts *metainternalversion.ListOptions) (*store.Snapshot, store.Key, error) {
	prefix := listPrefix(req)
	from, revision, err := genericstorage.DecodeContinue(opts.Continue, prefix)
	if err != nil {
		return nil, store.Key{}, apierrors.NewBadRequest(fmt.Sprintf("invalid continue token: %v", err))
	}
	if opts.ResourceVersion != "" && opts.ResourceVersion != "0" {
		return nil, store.Key{}, apierrors.NewBadRequest("specifying resource version is not allowed when using continue")
	}
	after := keyBehind(req, from)
	if revision < 0 {
		if err := r.reach(ctx, req, ""); err != nil {
			return nil, store.Key{}, err
		}
		snapshot, err := r.snapshotAt(ctx, req, 0)
		return snapshot, after, err
	}
	if err := r.waitFor(ctx, req, revision); err != nil {
		return nil, store.Key{}, err
	}
	snapshot, err := r.snapshotAt(ctx, req, revision)
	if !apierrors.IsResourceExpired(err) {
		return snapshot, after, err
	}
	expired := apierrors.NewResourceExpired("The continue token is too old for a consistent list. Start a new list, " +
		"or use the token in this response to go on with an inconsistent one: what changed since the first page may show up in it.")
	if token, err := genericstorage.EncodeContinue(from, prefix, -1); err == nil {
		expired.ErrStatus.ListMeta.Continue = token
	}
	return nil, store.Key{}, expired
}

// listPrefix is what continue tokens are relative to.
func listPrefix(req Request) string {
	if req.Resource.Namespaced && req.Namespace != "" {
		return req.Resource.KeyPrefix() + req.Namespace + "/"
	}
	return req.Resource.KeyPrefix()
}

// keyBehind turns the etcd key that a token starts at into the key that it starts behind. Tokens
// hold the last key that was seen with a zero byte added, the smallest key behind it.
func keyBehind(req Request, from string) store.Key {
	rest := strings.TrimSuffix(strings.TrimPrefix(from, req.Resource.KeyPrefix()), "\x00")
	if !req.Resource.Namespaced {
		return store.Key{Name: rest}
	}
	namespace, name, _ := strings.Cut(rest, "/")
	return store.Key{Namespace: namespace, Name: name}
}

// page collects what a list shows.
func page(req Request, sel *selector, snapshot *store.Snapshot, after store.Key, opts *metainternalversion.ListOptions) (*List, error) {
	out := &List{Revision: snapshot.Revision()}
	// Stock serves resource version 0 from its watch cache, which knows no pages.
	limit := opts.Limit
	if opts.ResourceVersion == "0" && opts.Continue == "" {
		limit = 0
	}
	count := sel.everything() && sel.name == ""
	more, rest := false, int64(0)
	first := after == store.Key{}
	if count {
		room := min(int64(snapshot.Len("")), 8192)
		if limit > 0 {
			room = min(room, limit)
		}
		out.Entries = make([]*store.Entry, 0, room)
	}
	err := sel.scan(snapshot, after, func(entry *store.Entry) bool {
		if limit > 0 && int64(len(out.Entries)) >= limit {
			more = true
			rest++
			return count && !first
		}
		out.Entries = append(out.Entries, entry)
		return true
	})
	if err != nil {
		return nil, listError(err, req, snapshot, sel, after)
	}
	if !more {
		return out, nil
	}
	if count {
		if first {
			rest = int64(snapshot.Len(sel.namespace)) - limit
		}
		out.Remaining = &rest
	}
	last := req.Resource.KeyPrefix() + path(out.Entries[len(out.Entries)-1].Key())
	if out.Continue, err = genericstorage.EncodeContinue(last+"\x00", listPrefix(req), out.Revision); err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return out, nil
}
