// Package statefulset runs pods that have names, numbers and volumes of their own. A pod is
// replaced only when its predecessor of the name is gone from the API, so that no two of them
// run at once; ordered sets change one pod at a time.
//
// The decision is [view.plan], pure: set, revisions, pods and claims in, a list of actions out.
package statefulset

import (
	"context"
	"errors"
	"fmt"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/history"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

var kind = schema.GroupVersionKind{Group: appsv1.GroupName, Version: "v1", Kind: "StatefulSet"}

type reconciler struct {
	kit.Deps
	recorder record.EventRecorder
}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	r := &reconciler{Deps: deps, recorder: deps.Recorder("statefulset-controller")}
	adopters := kit.Adopters(deps, &appsv1.StatefulSetList{}, func(set *appsv1.StatefulSet) *metav1.LabelSelector { return set.Spec.Selector })
	return kit.Controller{
		Name:    "statefulset",
		Workers: 5,
		Watches: []kit.Watch{
			{Kind: &appsv1.StatefulSet{}, Requests: kit.Self},
			{Kind: &corev1.Pod{}, Requests: kit.Owner(kind.Kind, adopters)},
			{Kind: &corev1.PersistentVolumeClaim{}, Requests: r.claimGone},
		},
		Reconcile: r.reconcile,
	}
}

// claimGone requests the sets that may have waited for the end of a claim.
func (r *reconciler) claimGone(e barqueclient.Event) []reconcile.Request {
	if e.New != nil {
		return nil
	}
	return kit.Where(r.Deps, &appsv1.StatefulSetList{}, func(set *appsv1.StatefulSet) bool {
		for i := range set.Spec.VolumeClaimTemplates {
			if strings.HasPrefix(e.Old.GetName(), set.Spec.VolumeClaimTemplates[i].Name+"-"+set.Name+"-") {
				return true
			}
		}
		return false
	}, client.InNamespace(e.Old.GetNamespace()))
}

func (r *reconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var set appsv1.StatefulSet
	if err := r.Client.Get(ctx, req.NamespacedName, &set); apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("get StatefulSet %s: %w", req, err)
	}
	v, rs, err := r.look(ctx, &set)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("StatefulSet %s: %w", req, err)
	}
	stepErr := r.carryOut(ctx, v)
	if stepErr == nil || !pods.Quiet(stepErr) {
		stepErr = errors.Join(stepErr, r.writeStatus(ctx, &set, v.status(rs.collisions)), r.truncate(ctx, v, rs))
	}
	if stepErr != nil {
		return reconcile.Result{}, fmt.Errorf("StatefulSet %s: %w", req, stepErr)
	}
	return reconcile.Result{RequeueAfter: pods.NextAvailable(v.pods, set.Spec.MinReadySeconds, v.now)}, nil
}

// look gathers the view, adopting and releasing pods and revisions.
func (r *reconciler) look(ctx context.Context, set *appsv1.StatefulSet) (view, revisions, error) {
	all, err := pods.OfOwner(ctx, r.Client, set)
	if err != nil {
		return view{}, revisions{}, err
	}
	selector := kit.Selector(set.Spec.Selector)
	claimed, err := kit.Claim(ctx, kit.Claimer{
		Client: r.Client, Owner: set, OwnerKind: kind, Selector: selector,
		Filter: func(obj client.Object) bool { return member(set, obj.GetName()) },
	}, all)
	if err != nil {
		return view{}, revisions{}, fmt.Errorf("claim pods: %w", err)
	}
	rs, err := r.revisions(ctx, set)
	if err != nil {
		return view{}, rs, err
	}
	v := view{set: set, pods: claimed, now: r.Clock.Now()}
	if v.current, err = asRevision(rs.current); err != nil {
		return view{}, rs, err
	}
	if v.update, err = asRevision(rs.update); err != nil {
		return view{}, rs, err
	}
	byName, err := r.claims(ctx, set)
	if err != nil {
		return view{}, rs, err
	}
	v.claim = func(name string) *corev1.PersistentVolumeClaim { return byName[name] }
	return v, rs, nil
}

func asRevision(cr *appsv1.ControllerRevision) (revision, error) {
	template, err := history.Template(cr)
	return revision{cr.Name, template}, err
}

// claims lists the namespace's claims by name, if the set has any.
func (r *reconciler) claims(ctx context.Context, set *appsv1.StatefulSet) (map[string]*corev1.PersistentVolumeClaim, error) {
	byName := map[string]*corev1.PersistentVolumeClaim{}
	if len(set.Spec.VolumeClaimTemplates) == 0 {
		return byName, nil
	}
	claims, err := kit.List[*corev1.PersistentVolumeClaim](ctx, r.Client, &corev1.PersistentVolumeClaimList{}, client.InNamespace(set.Namespace))
	for _, c := range claims {
		byName[c.Name] = c
	}
	return byName, err
}

// carryOut does what the plan says: one after the other and up to the first failure for an
// ordered set, in growing batches for a parallel one.
func (r *reconciler) carryOut(ctx context.Context, v view) error {
	switch v.set.Spec.UpdateStrategy.Type {
	case appsv1.RollingUpdateStatefulSetStrategyType, appsv1.OnDeleteStatefulSetStrategyType:
	default:
		return reconcile.TerminalError(fmt.Errorf("unknown update strategy %q", v.set.Spec.UpdateStrategy.Type))
	}
	actions := v.plan()
	inOrder := func(actions []action) error {
		for _, a := range actions {
			if err := r.do(ctx, v, a); err != nil {
				return err
			}
		}
		return nil
	}
	if v.ordered() {
		return inOrder(actions)
	}
	groups := byOrdinal(actions)
	_, err := kit.SlowStart(len(groups), func(i int) error { return inOrder(groups[i]) })
	return err
}

// byOrdinal keeps together, and in order, what is to be done for one ordinal: a surplus pod
// must not go before its claims know that they go with it.
func byOrdinal(actions []action) [][]action {
	var groups [][]action
	index := map[int]int{}
	for _, a := range actions {
		i, has := index[a.ordinal]
		if !has {
			i = len(groups)
			index[a.ordinal] = i
			groups = append(groups, nil)
		}
		groups[i] = append(groups[i], a)
	}
	return groups
}

func (r *reconciler) do(ctx context.Context, v view, a action) error {
	switch a.verb {
	case create:
		return r.create(ctx, v, a)
	case remove:
		err := r.Client.Delete(ctx, a.pod, client.Preconditions{UID: &a.pod.UID})
		if apierrors.IsNotFound(err) {
			return nil
		}
		return r.record(v.set, "Delete", a.pod.Name, err)
	case claims:
		return r.settleClaims(ctx, v, a)
	}
	return r.fix(ctx, v, a)
}

func (r *reconciler) create(ctx context.Context, v view, a action) error {
	if err := r.createClaims(ctx, v, a); err != nil {
		return r.record(v.set, "Create", a.pod.Name, err)
	}
	err := r.Client.Create(ctx, a.pod)
	if apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create pod %s: the name is another's: %w", a.pod.Name, err)
	}
	if err := r.record(v.set, "Create", a.pod.Name, err); err != nil {
		return err
	}
	return r.settleOwners(ctx, v, a)
}

func (r *reconciler) settleClaims(ctx context.Context, v view, a action) error {
	if inRange(v.set, a.ordinal) {
		if err := r.createClaims(ctx, v, a); err != nil {
			return err
		}
	}
	return r.settleOwners(ctx, v, a)
}

// createClaims makes the claims that are missing. One that is being deleted is an error: the
// pod must not start on it.
func (r *reconciler) createClaims(ctx context.Context, v view, a action) error {
	var errs []error
	for _, c := range newClaims(v.set, a.ordinal) {
		switch have := v.claim(c.Name); {
		case have != nil && have.DeletionTimestamp != nil:
			errs = append(errs, fmt.Errorf("claim %s is being deleted", c.Name))
		case have == nil:
			err := r.Client.Create(ctx, c)
			if apierrors.IsAlreadyExists(err) {
				continue
			}
			errs = append(errs, r.recordClaim(v.set, c.Name, a.pod.Name, err))
		}
	}
	return errors.Join(errs...)
}

// settleOwners gives the pod's claims the owners that the retention policy wants.
func (r *reconciler) settleOwners(ctx context.Context, v view, a action) error {
	for i := range v.set.Spec.VolumeClaimTemplates {
		var c corev1.PersistentVolumeClaim
		key := client.ObjectKey{Namespace: v.set.Namespace, Name: claimName(v.set, v.set.Spec.VolumeClaimTemplates[i].Name, a.ordinal)}
		if err := r.Client.Get(ctx, key, &c); apierrors.IsNotFound(err) {
			continue
		} else if err != nil {
			return fmt.Errorf("get claim %s: %w", key.Name, err)
		}
		if ownersSettled(&c, v.set, a.pod) {
			continue
		}
		if contested(&c, v.set, a.pod) {
			r.recorder.Eventf(v.set, corev1.EventTypeWarning, "ConflictingController", "PersistentVolumeClaim %s has another controller; the retention policy does not apply to it", c.Name)
		}
		changed := c.DeepCopy()
		changed.OwnerReferences, _ = wantedOwners(&c, v.set, a.pod)
		if err := r.Client.Update(ctx, changed); err != nil {
			return fmt.Errorf("set owners of claim %s: %w", c.Name, err)
		}
	}
	return nil
}

func (r *reconciler) fix(ctx context.Context, v view, a action) error {
	if !hasStorage(v.set, a.pod, a.ordinal) {
		if err := r.createClaims(ctx, v, a); err != nil {
			return r.record(v.set, "Update", a.pod.Name, err)
		}
	}
	if err := r.settleOwners(ctx, v, a); err != nil {
		return r.record(v.set, "Update", a.pod.Name, err)
	}
	if hasIdentity(v.set, a.pod, a.ordinal) && hasStorage(v.set, a.pod, a.ordinal) {
		return nil
	}
	changed := a.pod.DeepCopy()
	setIdentity(v.set, changed, a.ordinal)
	setStorage(v.set, changed, a.ordinal)
	return r.record(v.set, "Update", a.pod.Name, r.Client.Update(ctx, changed))
}

// record tells of what was done to a pod and returns err, if any, with its context.
func (r *reconciler) record(set *appsv1.StatefulSet, what, pod string, err error) error {
	if err == nil {
		r.recorder.Eventf(set, corev1.EventTypeNormal, "Successful"+what, "%s Pod %s in StatefulSet %s successful", what, pod, set.Name)
		return nil
	}
	if !pods.Quiet(err) {
		r.recorder.Eventf(set, corev1.EventTypeWarning, "Failed"+what, "%s Pod %s in StatefulSet %s failed error: %v", what, pod, set.Name, err)
	}
	return fmt.Errorf("%s pod %s: %w", strings.ToLower(what), pod, err)
}

func (r *reconciler) recordClaim(set *appsv1.StatefulSet, claim, pod string, err error) error {
	if err == nil {
		r.recorder.Eventf(set, corev1.EventTypeNormal, "SuccessfulCreate", "Create Claim %s Pod %s in StatefulSet %s success", claim, pod, set.Name)
		return nil
	}
	if !pods.Quiet(err) {
		r.recorder.Eventf(set, corev1.EventTypeWarning, "FailedCreate", "Create Claim %s for Pod %s in StatefulSet %s failed error: %v", claim, pod, set.Name, err)
	}
	return fmt.Errorf("create claim %s: %w", claim, err)
}

func (r *reconciler) writeStatus(ctx context.Context, set *appsv1.StatefulSet, status appsv1.StatefulSetStatus) error {
	if equality.Semantic.DeepEqual(set.Status, status) {
		return nil
	}
	changed := set.DeepCopy()
	changed.Status = *status.DeepCopy() // its conditions are shared
	if err := r.Client.Status().Update(ctx, changed); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}
