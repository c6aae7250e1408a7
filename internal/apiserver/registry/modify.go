package registry

import (
	"bytes"
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	fieldadmission "k8s.io/apiserver/pkg/endpoints/handlers/fieldmanager"
	"k8s.io/apiserver/pkg/registry/rest"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// A change is an update or patch under way: what to make of the newest version of an object. It
// may be tried several times.
type change struct {
	op operation
	// uid is a precondition; "" is none.
	uid types.UID
	// creates lets the change create what is missing.
	creates bool
	// skipRules keeps what make makes without the resource's rules (binding).
	skipRules bool
	// direct keeps it from admission too: it was admitted as something else.
	direct bool
	view   view
	// make returns the new object for the one that exists, both as the view shows them. live
	// is shared, and empty if nothing exists; the new object belongs to the caller.
	make func(ctx context.Context, live runtime.Object) (runtime.Object, error)
}

// A view is how a request sees an object: as itself in some version, or as its scale.
type view interface {
	// show returns what clients see of an object of the storage version. It is shared.
	show(obj runtime.Object) (runtime.Object, error)
	// merge puts what a client made of the view into the object of the storage version that
	// it was shown of. The result belongs to the caller; live is not changed.
	merge(live, seen runtime.Object) (runtime.Object, error)
	// empty is what clients see of nothing.
	empty() (runtime.Object, error)
}

// versionView shows the object in the request's version.
type versionView struct{ req Request }

func (v versionView) show(obj runtime.Object) (runtime.Object, error) {
	return v.req.Resource.Codec().Convert(obj, v.req.gv())
}

func (v versionView) merge(_, seen runtime.Object) (runtime.Object, error) {
	return v.req.Resource.Codec().Convert(seen, v.req.Resource.Storage)
}

func (v versionView) empty() (runtime.Object, error) { return v.req.Resource.Codec().New(v.req.gv()) }

// modify carries a change out: it is made of the version in the image, and made again when that
// turns out not to be the newest. An error or a change of nothing counts only once the version
// it was made of is known to be the newest.
func (r *Registry) modify(ctx context.Context, c change) (Result, bool, error) {
	req := c.op.req
	table := r.tableOf(req)
	fresh := false
	entry, _ := table.Get(req.key())
	if entry == nil {
		var err error
		if entry, err = r.refresh(ctx, req); err != nil {
			return Result{}, false, err
		}
		fresh = true
	}
	for {
		if err := ctx.Err(); err != nil {
			return Result{}, false, statusError(err, req.groupResource(), req.Name, "update")
		}
		out, err := r.attempt(ctx, c, table, entry)
		if err == nil && out.wrote {
			return out.result, out.created, nil
		}
		if fresh && !out.lost {
			return out.result, out.created, err
		}
		newest, rerr := r.refresh(ctx, req)
		if rerr != nil {
			return Result{}, false, rerr
		}
		if !out.lost && revisionOf(newest) == revisionOf(entry) {
			return out.result, out.created, err
		}
		entry, fresh = newest, true
	}
}

// refresh reads the newest version of an object; nil if there is none.
func (r *Registry) refresh(ctx context.Context, req Request) (*store.Entry, error) {
	if err := r.reach(ctx, req, ""); err != nil {
		return nil, err
	}
	entry, _ := r.tableOf(req).Get(req.key())
	return entry, nil
}

func revisionOf(entry *store.Entry) int64 {
	if entry == nil {
		return 0
	}
	return entry.Revision()
}

// outcome is what one attempt at a change came to.
type outcome struct {
	result  Result
	created bool
	wrote   bool // the store accepted it
	lost    bool // the store had a newer version: try again
	became  fate
}

// attempt makes a change of one version of an object; entry is nil if there is none.
func (r *Registry) attempt(ctx context.Context, c change, table *store.Table, entry *store.Entry) (outcome, error) {
	req := c.op.req
	if entry == nil {
		return r.attemptCreate(ctx, c)
	}
	live, err := liveObject(req, entry)
	if err != nil {
		return outcome{}, err
	}
	liveMeta, err := meta.Accessor(live)
	if err != nil {
		return outcome{}, apierrors.NewInternalError(err)
	}
	if c.uid != "" && c.uid != liveMeta.GetUID() {
		return outcome{}, uidConflict(req, c.uid, liveMeta.GetUID())
	}
	obj, err := r.seen(ctx, c, live)
	if err != nil {
		return outcome{}, err
	}
	if err := checkVersion(ctx, c, obj, liveMeta); err != nil {
		return outcome{}, err
	}
	finish, err := r.begin(ctx, req, obj, live, c.op.dryRun)
	if err != nil {
		return outcome{}, err
	}
	became := refused
	defer func() { finish(context.WithoutCancel(ctx), became) }()
	stored := obj
	if !c.skipRules {
		if stored, err = c.rules().PrepareUpdate(ctx, obj, live); err != nil {
			return outcome{}, err
		}
	}
	if stored, err = fieldadmission.IgnoreManagedFieldsTimestampsTransformer(ctx, stored, live); err != nil {
		return outcome{}, apierrors.NewInternalError(err)
	}
	if !c.direct {
		if err := r.validateSeen(ctx, c, stored, live); err != nil {
			return outcome{}, err
		}
	}
	out, err := r.keep(ctx, c, table, entry, stored, live)
	became = out.became
	return out, err
}

// liveObject is an entry's object in the version that rules work on.
func liveObject(req Request, entry *store.Entry) (runtime.Object, error) {
	obj, err := entry.Object()
	if err != nil {
		return nil, statusError(err, req.groupResource(), req.Name, "read")
	}
	if obj, err = req.Resource.Codec().Convert(obj, req.Resource.Storage); err != nil {
		return nil, statusError(err, req.groupResource(), req.Name, "read")
	}
	return obj, nil
}

// rules are what a change obeys; scale obeys those of its parent.
func (c change) rules() *api.Rules {
	if rules := c.op.req.rules(); rules != nil {
		return rules
	}
	return c.op.req.Resource.Rules
}

// seen lets the client and mutating admission make the new object. It returns it in the storage
// version.
func (r *Registry) seen(ctx context.Context, c change, live runtime.Object) (runtime.Object, error) {
	shown, err := c.view.show(live)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	made, err := c.make(ctx, shown)
	if err != nil {
		return nil, err
	}
	if !c.direct {
		if err := r.mutate(ctx, c.op, made, shown); err != nil {
			return nil, err
		}
	}
	return c.view.merge(live, made)
}

// validateSeen asks validating admission about the change as the view shows it.
func (r *Registry) validateSeen(ctx context.Context, c change, stored, live runtime.Object) error {
	if _, scaled := c.view.(scaleView); !scaled {
		return r.validate(ctx, c.op, stored, live)
	}
	now, err := c.view.show(stored)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	was, err := c.view.show(live)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	return r.validate(ctx, c.op, now, was)
}

// checkVersion holds a change to the resource version that the client saw.
func checkVersion(ctx context.Context, c change, obj runtime.Object, live metav1.Object) error {
	m, err := meta.Accessor(obj)
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	req := c.op.req
	given := m.GetResourceVersion()
	if given == "" || given == "0" {
		if c.skipRules || c.rules().AllowUnconditionalUpdate(ctx) {
			m.SetResourceVersion(live.GetResourceVersion())
			return nil
		}
		kind := req.groupResource()
		return apierrors.NewInvalid(kindOf(kind.Group, kind.Resource), req.Name, field.ErrorList{
			field.Invalid(field.NewPath("metadata", "resourceVersion"), 0, "must be specified for an update")})
	}
	if _, err := parseVersion(given); err != nil {
		return err
	}
	if given != live.GetResourceVersion() {
		return apierrors.NewConflict(req.groupResource(), req.Name, errModified)
	}
	return nil
}

// keep writes the new version, unless it is the old one, or removes the object when the change
// took away the last thing that held up its deletion.
func (r *Registry) keep(ctx context.Context, c change, table *store.Table, entry *store.Entry, stored, live runtime.Object) (outcome, error) {
	req := c.op.req
	if emptied(stored, live) && !c.skipRules {
		if c.op.dryRun {
			return outcome{result: Result{Object: stored}, wrote: true}, nil
		}
		_, _, err := r.remove(ctx, req, table, entry)
		if err != nil {
			return lost(err, req)
		}
		return outcome{result: Result{Object: stored}, wrote: true}, nil
	}
	value, err := encode(req, stored)
	if err != nil {
		return outcome{}, err
	}
	if plain, perr := entry.Plain(); perr == nil && bytes.Equal(plain, value) && !entry.Stale() {
		return outcome{result: Result{Entry: entry}}, nil
	}
	if c.op.dryRun {
		if _, err := r.charge(ctx, c.op, stored, live); err != nil {
			return outcome{}, err
		}
		m, err := meta.Accessor(stored)
		if err != nil {
			return outcome{}, apierrors.NewInternalError(err)
		}
		result, err := asRead(req, value, m)
		return outcome{result: result}, err
	}
	out := outcome{became: refused}
	err = r.charged(ctx, c.op, stored, live, func(opts store.WriteOptions) error {
		next, err := table.Update(ctx, req.key(), value, entry.Revision(), opts)
		out = outcome{result: Result{Entry: next}, wrote: err == nil, lost: raced(err), became: fateOf(err)}
		return err
	})
	return out, statusError(err, req.groupResource(), req.Name, "update")
}

// lost tells a race that was lost from an error.
func lost(err error, req Request) (outcome, error) {
	status := statusError(err, req.groupResource(), req.Name, "update")
	return outcome{lost: raced(err), became: fateOf(err)}, status
}

// attemptCreate creates what a PUT or an apply found missing.
func (r *Registry) attemptCreate(ctx context.Context, c change) (outcome, error) {
	req := c.op.req
	if !c.creates {
		return outcome{}, notFound(req.groupResource(), req.Name)
	}
	if !req.allows("create") {
		return outcome{}, methodNotSupported(req, "create") // a definition that is going takes no new objects
	}
	if c.uid != "" {
		return outcome{}, uidConflict(req, c.uid, "")
	}
	o := c.op
	o.op = admission.Create
	o.options = createOptions(o.options)
	empty, err := c.view.empty()
	if err != nil {
		return outcome{}, apierrors.NewInternalError(err)
	}
	made, err := c.make(ctx, empty)
	if err != nil {
		return outcome{}, err
	}
	if m, merr := meta.Accessor(made); merr == nil && m.GetUID() != "" {
		return outcome{}, apierrors.NewConflict(req.groupResource(), req.Name,
			fmt.Errorf("uid mismatch: the provided object specified uid %s, and no existing object was found", m.GetUID()))
	}
	if err := r.mutate(ctx, o, made, nil); err != nil {
		return outcome{}, err
	}
	obj, err := c.view.merge(nil, made)
	if err != nil {
		return outcome{}, apierrors.NewBadRequest(err.Error())
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return outcome{}, apierrors.NewInternalError(err)
	}
	rest.WipeObjectMetaSystemFields(m)
	if err := r.authorizeCreate(ctx, req); err != nil {
		return outcome{}, err
	}
	result, err := r.createOnce(ctx, o, obj)
	if apierrors.IsAlreadyExists(err) {
		return outcome{lost: !o.dryRun}, err
	}
	return outcome{result: result, created: err == nil, wrote: err == nil}, err
}

// createOptions says what the options of an update mean for a creation.
func createOptions(options runtime.Object) runtime.Object {
	out := &metav1.CreateOptions{}
	if u, ok := options.(*metav1.UpdateOptions); ok {
		out.DryRun, out.FieldManager, out.FieldValidation = u.DryRun, u.FieldManager, u.FieldValidation
	}
	out.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("CreateOptions"))
	return out
}
