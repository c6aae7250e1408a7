//lint:file-ignore SA1019 Old clients still send orphanDependents.

package registry

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/warning"

	"barque.dev/internal/store"
)

// Delete deletes an object, or marks it for deletion when a grace period or finalizers hold it
// up; deleted tells which. opts are not changed.
func (r *Registry) Delete(ctx context.Context, req Request, opts *metav1.DeleteOptions) (Result, bool, error) {
	if !req.allows("delete") || req.Subresource != "" {
		return Result{}, false, methodNotSupported(req, "delete")
	}
	if opts == nil {
		opts = metav1.NewDeleteOptions(0)
	}
	if errs := metav1validation.ValidateDeleteOptions(opts); len(errs) > 0 {
		return Result{}, false, apierrors.NewInvalid(kindOf(metav1.GroupName, "DeleteOptions"), "", errs)
	}
	if IgnoresReadErrors(opts) {
		return r.deleteUnreadable(ctx, req, isDryRun(opts.DryRun))
	}
	opts = opts.DeepCopy()
	opts.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("DeleteOptions"))
	ctx = r.context(ctx, req, "delete")
	return r.delete(ctx, operation{req: req, op: admission.Delete, options: opts, dryRun: isDryRun(opts.DryRun), name: req.Name}, opts)
}

// delete tries until the version that it acts on is the newest.
func (r *Registry) delete(ctx context.Context, o operation, opts *metav1.DeleteOptions) (Result, bool, error) {
	req := o.req
	if err := r.checkNamespace(ctx, o); err != nil {
		return Result{}, false, err
	}
	warnOfOrphans(ctx, req, opts)
	table := r.tableOf(req)
	entry, fresh := (*store.Entry)(nil), false
	if found, ok := table.Get(req.key()); ok {
		entry = found
	}
	for {
		if err := ctx.Err(); err != nil {
			return Result{}, false, statusError(err, req.groupResource(), req.Name, "delete")
		}
		if entry == nil {
			if fresh {
				return Result{}, false, notFound(req.groupResource(), req.Name)
			}
			newest, err := r.refresh(ctx, req)
			if err != nil {
				return Result{}, false, err
			}
			entry, fresh = newest, true
			continue
		}
		d := deletion{o: o, opts: opts.DeepCopy(), table: table, entry: entry}
		result, deleted, err := r.deleteOnce(ctx, &d)
		if err == nil && (d.wrote || fresh) {
			return result, deleted, nil
		}
		if err != nil && fresh && !d.lost {
			return result, deleted, err
		}
		newest, rerr := r.refresh(ctx, req)
		if rerr != nil {
			return Result{}, false, rerr
		}
		if !d.lost && revisionOf(newest) == revisionOf(entry) {
			return result, deleted, err
		}
		if d.gone && newest == nil {
			// It was marked here, and somebody else removed it: the deletion is done.
			return r.deletedResult(req, d.entry, 0), true, nil
		}
		entry, fresh = newest, true
	}
}

// deletion is one attempt at a deletion.
type deletion struct {
	o     operation
	opts  *metav1.DeleteOptions
	table *store.Table
	entry *store.Entry

	wrote bool // the store accepted something
	lost  bool // the store had a newer version: try again
	gone  bool // the deletion was begun in the store
}

// deleteOnce decides and does what deleting one version of an object means: kube-apiserver's
// graceful deletion and finalization.
func (r *Registry) deleteOnce(ctx context.Context, d *deletion) (Result, bool, error) {
	req := d.o.req
	shared, err := d.entry.Object()
	if err != nil {
		return Result{}, false, statusError(err, req.groupResource(), req.Name, "read")
	}
	obj := shared.DeepCopyObject()
	m, err := meta.Accessor(obj)
	if err != nil {
		return Result{}, false, apierrors.NewInternalError(err)
	}
	if ns, ok := obj.(*corev1.Namespace); ok {
		if done, result, err := r.deleteNamespace(ctx, d, ns); done || err != nil {
			return result, false, err
		}
	}
	if crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition); ok && crd.DeletionTimestamp == nil {
		return r.deleteDefinition(ctx, d, crd)
	}
	graceful, pending, err := req.Resource.Rules.PrepareDelete(ctx, obj, d.opts)
	if err != nil {
		return Result{}, false, err
	}
	if pending {
		return r.pendingResult(req, d.entry), false, nil
	}
	if err := r.validateDelete(ctx, d.o, shared); err != nil {
		return Result{}, false, err
	}
	finalizers, changed := collectorFinalizers(ctx, req, m, d.opts)
	if changed {
		m.SetFinalizers(finalizers)
	}
	held := len(m.GetFinalizers()) > 0
	if !graceful && held {
		markDeleted(m, time.Now())
	}
	if graceful || held {
		if stop, result, err := r.markOnce(ctx, d, obj, graceful, held); stop || err != nil {
			return result, false, err
		}
	}
	if d.o.dryRun && (graceful || held || changed) {
		return Result{Object: obj}, true, nil
	}
	if d.o.dryRun {
		return r.deletedResult(req, d.entry, 0), true, nil
	}
	prev, revision, err := r.remove(ctx, req, d.table, d.entry)
	if err != nil {
		d.lost = raced(err)
		return Result{}, false, statusError(err, req.groupResource(), req.Name, "delete")
	}
	d.wrote = true
	return r.deletedResult(req, prev, revision), true, nil
}

// deleteDefinition marks a definition for deletion. What becomes of its custom resources is no choice of the request's.
func (r *Registry) deleteDefinition(ctx context.Context, d *deletion, crd *apiextensionsv1.CustomResourceDefinition) (Result, bool, error) {
	if _, _, err := d.o.req.Resource.Rules.PrepareDelete(ctx, crd.DeepCopy(), d.opts.DeepCopy()); err != nil {
		return Result{}, false, err
	}
	if err := r.validateDelete(ctx, d.o, crd); err != nil {
		return Result{}, false, err
	}
	holdDefinition(crd)
	now := metav1.Now()
	crd.DeletionTimestamp = &now
	_, result, err := r.markOnce(ctx, d, crd, false, true)
	return result, false, err
}

// holdDefinition keeps a definition that is being deleted until its custom resources are gone, which the finalizer
// asks for.
func holdDefinition(crd *apiextensionsv1.CustomResourceDefinition) {
	if !apihelpers.CRDHasFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer) {
		crd.Finalizers = append(crd.Finalizers, apiextensionsv1.CustomResourceCleanupFinalizer)
	}
	apihelpers.SetCRDCondition(crd, apiextensionsv1.CustomResourceDefinitionCondition{
		Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionTrue, Reason: "InstanceDeletionPending",
		Message: "the definition is to be deleted, and its custom resources before it",
	})
}

// markOnce writes the deletion time, grace period and finalizers of an object. stop tells that
// the object stays for now.
func (r *Registry) markOnce(ctx context.Context, d *deletion, obj runtime.Object, graceful, held bool) (stop bool, result Result, err error) {
	req := d.o.req
	stays := held || (graceful && d.opts.GracePeriodSeconds != nil && *d.opts.GracePeriodSeconds > 0)
	if d.o.dryRun {
		return stays, Result{Object: obj}, nil
	}
	value, err := encode(req, obj)
	if err != nil {
		return true, Result{}, err
	}
	if plain, perr := d.entry.Plain(); stays && perr == nil && bytes.Equal(plain, value) {
		return true, Result{Entry: d.entry}, nil // it is marked already
	}
	next, err := d.table.Update(ctx, req.key(), value, d.entry.Revision(), store.WriteOptions{TTL: req.Resource.TTL})
	if err != nil {
		d.lost = raced(err)
		return true, Result{}, statusError(err, req.groupResource(), req.Name, "delete")
	}
	d.wrote, d.gone, d.entry = stays, !stays, next
	if !stays && d.opts.Preconditions != nil && d.opts.Preconditions.ResourceVersion != nil {
		version := strconv.FormatInt(next.Revision(), 10)
		d.opts.Preconditions.ResourceVersion = &version
	}
	return stays, Result{Entry: next}, nil
}

// remove takes an object out of the store and gives back what was allocated for it.
func (r *Registry) remove(ctx context.Context, req Request, table *store.Table, entry *store.Entry) (*store.Entry, int64, error) {
	prev, revision, err := table.Delete(ctx, entry.Key(), entry.Revision())
	if err != nil {
		return nil, 0, err
	}
	r.release(context.WithoutCancel(ctx), req, prev)
	return prev, revision, nil
}

// raced tells a race that was lost from other errors of the store.
func raced(err error) bool {
	return errors.Is(err, store.ErrConflict) || errors.Is(err, store.ErrNotFound)
}

// pendingResult answers a deletion that is under way already.
func (r *Registry) pendingResult(req Request, entry *store.Entry) Result {
	if req.Resource.ReturnsDeleted {
		return Result{Entry: entry}
	}
	return Result{Object: deletedStatus(req, entry)}
}

// deletedResult answers a deletion that is done; revision is that of the deletion, if known.
func (r *Registry) deletedResult(req Request, entry *store.Entry, revision int64) Result {
	if !req.Resource.ReturnsDeleted {
		return Result{Object: deletedStatus(req, entry)}
	}
	obj, err := entry.Object()
	if err != nil || revision == 0 {
		return Result{Entry: entry}
	}
	out := obj.DeepCopyObject()
	if m, err := meta.Accessor(out); err == nil {
		m.SetResourceVersion(strconv.FormatInt(revision, 10))
	}
	return Result{Object: out}
}

func deletedStatus(req Request, entry *store.Entry) *metav1.Status {
	status := success()
	status.Details = &metav1.StatusDetails{Name: entry.Key().Name, Group: req.Resource.Group, Kind: req.Resource.Resource}
	if m := accessor(entry); m != nil {
		status.Details.UID = m.GetUID()
	}
	return status
}

// emptied tells whether a change took away the last thing that held up an object's deletion.
func emptied(obj, old runtime.Object) bool {
	now, err := meta.Accessor(obj)
	if err != nil {
		return false
	}
	was, err := meta.Accessor(old)
	if err != nil {
		return false
	}
	if len(now.GetFinalizers()) > 0 || was.GetDeletionTimestamp() == nil {
		return false
	}
	if ns, ok := obj.(*corev1.Namespace); ok && len(ns.Spec.Finalizers) > 0 {
		return false
	}
	return was.GetDeletionGracePeriodSeconds() == nil || *was.GetDeletionGracePeriodSeconds() == 0
}

// markDeleted sets the deletion time of an object that only finalizers hold.
func markDeleted(m metav1.Object, now time.Time) {
	if m.GetDeletionTimestamp() == nil && m.GetGeneration() > 0 {
		m.SetGeneration(m.GetGeneration() + 1)
	}
	if t := m.GetDeletionTimestamp(); t == nil || t.After(now) {
		at := metav1.NewTime(now)
		m.SetDeletionTimestamp(&at)
	}
	zero := int64(0)
	m.SetDeletionGracePeriodSeconds(&zero)
}

// collectorFinalizers returns an object's finalizers with those that tell the garbage collector
// what to do with dependents, and whether that is a change.
func collectorFinalizers(ctx context.Context, req Request, m metav1.Object, opts *metav1.DeleteOptions) ([]string, bool) {
	orphan, foreground := propagation(ctx, req, m, opts)
	have := m.GetFinalizers()
	out := propagating(have, orphan, foreground)
	same := !slices.ContainsFunc(out, func(f string) bool { return !slices.Contains(have, f) }) &&
		!slices.ContainsFunc(have, func(f string) bool { return !slices.Contains(out, f) })
	return out, !same
}

// propagating returns finalizers with those of the chosen propagation in place of others.
func propagating(finalizers []string, orphan, foreground bool) []string {
	var out []string
	for _, f := range finalizers {
		if f != metav1.FinalizerOrphanDependents && f != metav1.FinalizerDeleteDependents {
			out = append(out, f)
		}
	}
	if orphan {
		out = append(out, metav1.FinalizerOrphanDependents)
	}
	if foreground {
		out = append(out, metav1.FinalizerDeleteDependents)
	}
	return out
}

// propagation decides what becomes of dependents: what the request says, else what finalizers
// say already, else the resource's default.
func propagation(ctx context.Context, req Request, m metav1.Object, opts *metav1.DeleteOptions) (orphan, foreground bool) {
	byDefault, supported := req.Resource.Rules.GarbageCollection(ctx)
	if !supported {
		return false, false
	}
	if opts.OrphanDependents != nil {
		return *opts.OrphanDependents, false
	}
	if opts.PropagationPolicy != nil {
		switch *opts.PropagationPolicy {
		case metav1.DeletePropagationOrphan:
			return true, false
		case metav1.DeletePropagationForeground:
			return false, true
		case metav1.DeletePropagationBackground:
			return false, false
		}
	}
	for _, f := range m.GetFinalizers() {
		switch f {
		case metav1.FinalizerOrphanDependents:
			return true, false
		case metav1.FinalizerDeleteDependents:
			return false, true
		}
	}
	return byDefault, false
}

// warnOfOrphans tells clients of the old kinds that keep their dependents by default.
func warnOfOrphans(ctx context.Context, req Request, opts *metav1.DeleteOptions) {
	if opts.PropagationPolicy != nil || opts.OrphanDependents != nil {
		return
	}
	if orphan, _ := req.Resource.Rules.GarbageCollection(ctx); orphan && req.Resource.Group == "batch" && req.Resource.Resource == "jobs" {
		warning.AddWarning(ctx, "", "child pods are preserved by default when jobs are deleted; "+
			"set propagationPolicy=Background to remove them or set propagationPolicy=Orphan to suppress this warning")
	}
}

// deleteNamespace begins the termination of a namespace. done is false once its contents are
// gone, and the namespace can go the way of every object.
func (r *Registry) deleteNamespace(ctx context.Context, d *deletion, ns *corev1.Namespace) (done bool, result Result, err error) {
	req := d.o.req
	if p := d.opts.Preconditions; p != nil {
		if p.UID != nil && *p.UID != ns.UID {
			return true, Result{}, uidConflict(req, *p.UID, ns.UID)
		}
		if p.ResourceVersion != nil && *p.ResourceVersion != ns.ResourceVersion {
			return true, Result{}, apierrors.NewConflict(req.groupResource(), req.Name,
				//lint:ignore ST1005 stock's words, which clients show
				fmt.Errorf("Precondition failed: ResourceVersion in precondition: %v, ResourceVersion in object meta: %v", *p.ResourceVersion, ns.ResourceVersion))
		}
	}
	if !ns.DeletionTimestamp.IsZero() {
		if len(ns.Spec.Finalizers) > 0 {
			return true, Result{Entry: d.entry}, nil
		}
		return false, Result{}, nil
	}
	if err := r.validateDelete(ctx, d.o, ns); err != nil {
		return true, Result{}, err
	}
	now := metav1.Now()
	ns.DeletionTimestamp = &now
	ns.Status.Phase = corev1.NamespaceTerminating
	finalizers, changed := namespaceFinalizers(ns, d.opts)
	if changed {
		ns.Finalizers = finalizers
	}
	_, result, err = r.markOnce(ctx, d, ns, false, true)
	return true, result, err
}

// namespaceFinalizers is collectorFinalizers for namespaces, where stock counts the old
// orphanDependents=false as a wish for the foreground.
func namespaceFinalizers(ns *corev1.Namespace, opts *metav1.DeleteOptions) ([]string, bool) {
	orphan := slices.Contains(ns.Finalizers, metav1.FinalizerOrphanDependents)
	foreground := slices.Contains(ns.Finalizers, metav1.FinalizerDeleteDependents)
	switch {
	case opts.OrphanDependents != nil:
		orphan, foreground = *opts.OrphanDependents, !*opts.OrphanDependents
	case opts.PropagationPolicy != nil:
		orphan = *opts.PropagationPolicy == metav1.DeletePropagationOrphan
		foreground = *opts.PropagationPolicy == metav1.DeletePropagationForeground
	}
	out := propagating(ns.Finalizers, orphan, foreground)
	return out, !slices.Equal(out, ns.Finalizers)
}

const (
	// collectionPage is how many objects DeleteCollection lists at a time.
	collectionPage = 10000
	// collectionWorkers is how many of them it deletes at a time, so that the deletions share
	// group commits.
	collectionWorkers = 16
)

// DeleteCollection deletes what the list options select, one object after the other: it is not
// atomic. It returns the list of what was deleted.
func (r *Registry) DeleteCollection(ctx context.Context, req Request, opts *metav1.DeleteOptions, listOpts *metainternalversion.ListOptions) (Result, error) {
	if !req.allows("deletecollection") {
		return Result{}, methodNotSupported(req, "deletecollection")
	}
	if opts == nil {
		opts = &metav1.DeleteOptions{}
	}
	errs := metav1validation.ValidateDeleteOptions(opts)
	if len(errs) == 0 && IgnoresReadErrors(opts) {
		errs = append(errs, field.Invalid(field.NewPath("ignoreStoreReadErrorWithClusterBreakingPotential"), true,
			"is not allowed with DELETECOLLECTION, try again after removing the option"))
	}
	if len(errs) > 0 {
		return Result{}, apierrors.NewInvalid(kindOf(metav1.GroupName, "DeleteOptions"), "", errs)
	}
	listOpts = listOpts.DeepCopy()
	if listOpts == nil {
		listOpts = &metainternalversion.ListOptions{}
	}
	once := listOpts.Limit > 0
	if !once {
		listOpts.Limit = collectionPage
	}
	ctx = r.context(ctx, req, "deletecollection")
	warnOfOrphans(ctx, req, opts)
	var entries []*store.Entry
	revision := int64(0)
	for {
		page, err := r.list(ctx, req, listOpts)
		if err != nil {
			return Result{}, err
		}
		revision = page.Revision
		if err := r.deleteEntries(ctx, req, page.Entries, opts); err != nil {
			return Result{}, err
		}
		entries = append(entries, page.Entries...)
		if once || page.Continue == "" {
			return deletedList(req, entries, revision)
		}
		listOpts.Continue = page.Continue
	}
}

func (r *Registry) deleteEntries(ctx context.Context, req Request, entries []*store.Entry, opts *metav1.DeleteOptions) error {
	work := make(chan *store.Entry)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failure error
	for range min(collectionWorkers, len(entries)) {
		wg.Go(func() {
			for entry := range work {
				if err := r.deleteEntry(ctx, req, entry, opts); err != nil {
					mu.Lock()
					failure = err
					mu.Unlock()
				}
			}
		})
	}
	for _, entry := range entries {
		mu.Lock()
		stop := failure != nil
		mu.Unlock()
		if stop {
			break
		}
		work <- entry
	}
	close(work)
	wg.Wait()
	return failure
}

func (r *Registry) deleteEntry(ctx context.Context, req Request, entry *store.Entry, opts *metav1.DeleteOptions) error {
	one := req
	one.Namespace, one.Name = entry.Key().Namespace, entry.Key().Name
	// Each object has options of its own: a grace period is filled in from the object.
	own := opts.DeepCopy()
	o := operation{req: one, op: admission.Delete, options: own, dryRun: isDryRun(own.DryRun), name: one.Name}
	_, _, err := r.delete(ctx, o, own)
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// deletedList is the answer to DeleteCollection.
func deletedList(req Request, entries []*store.Entry, revision int64) (Result, error) {
	list, err := req.Resource.Codec().NewList(req.Resource.Storage)
	if err != nil {
		return Result{}, apierrors.NewInternalError(err)
	}
	objects := make([]runtime.Object, 0, len(entries))
	for _, entry := range entries {
		obj, err := entry.Object()
		if err != nil {
			return Result{}, statusError(err, req.groupResource(), entry.Key().Name, "read")
		}
		objects = append(objects, obj)
	}
	if err := meta.SetList(list, objects); err != nil {
		return Result{}, apierrors.NewInternalError(err)
	}
	if m, err := meta.ListAccessor(list); err == nil {
		m.SetResourceVersion(strconv.FormatInt(revision, 10))
	}
	return Result{Object: list}, nil
}
