package registry

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"

	"barque.dev/internal/store"
)

const (
	// evictionAttempts is how often an eviction that lost a race starts over.
	evictionAttempts = 20
	// maxDisrupted bounds the evictions of a budget that its controller has not confirmed.
	maxDisrupted = 2000
)

// evict deletes a pod unless its disruption budget forbids that (429).
func (r *Registry) evict(ctx context.Context, o operation, obj runtime.Object) (Result, error) {
	eviction, ok := obj.(*policyv1.Eviction)
	if !ok {
		return Result{}, apierrors.NewBadRequest(fmt.Sprintf("not an Eviction object: %T", obj))
	}
	if o.req.Name != eviction.Name {
		return Result{}, apierrors.NewBadRequest("name in URL does not match name in Eviction object")
	}
	opts, err := evictionOptions(eviction, o.dryRun)
	if err != nil {
		return Result{}, err
	}
	if err := r.validate(ctx, o, eviction, nil); err != nil {
		return Result{}, err
	}
	req := o.req
	req.Subresource, req.Version = "", ""
	free := opts.Preconditions == nil || opts.Preconditions.ResourceVersion == nil
	for attempt := 0; ; attempt++ {
		err := r.evictOnce(ctx, req, opts)
		if err == nil {
			return Result{Object: created()}, nil
		}
		if !apierrors.IsConflict(err) || !free || attempt+1 >= evictionAttempts || ctx.Err() != nil {
			return Result{}, err
		}
	}
}

// evictionOptions are the options of the deletion that an eviction asks for.
func evictionOptions(eviction *policyv1.Eviction, dryRun bool) (*metav1.DeleteOptions, error) {
	opts := eviction.DeleteOptions.DeepCopy()
	if opts == nil {
		opts = &metav1.DeleteOptions{}
	}
	if dryRun {
		opts.DryRun = []string{metav1.DryRunAll}
	}
	if IgnoresReadErrors(opts) {
		return nil, apierrors.NewBadRequest("deleteOptions.ignoreStoreReadErrorWithClusterBreakingPotential can not be set for pod eviction")
	}
	return opts, nil
}

// evictOnce decides about one version of the pod. A conflict means that the pod or the budget
// has changed since.
func (r *Registry) evictOnce(ctx context.Context, req Request, opts *metav1.DeleteOptions) error {
	entry, err := r.find(ctx, req)
	if err != nil {
		return err
	}
	obj, err := entry.Object()
	if err != nil {
		return statusError(err, req.groupResource(), req.Name, "read")
	}
	pod, ok := obj.(*corev1.Pod)
	if !ok {
		return apierrors.NewInternalError(fmt.Errorf("pod %s is a %T", req.Name, obj))
	}
	terminal := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed || !pod.DeletionTimestamp.IsZero()
	exact := false
	if !terminal {
		exact = pod.Status.Phase == corev1.PodPending
		if !exact {
			if exact, err = r.askBudget(ctx, pod, isDryRun(opts.DryRun)); err != nil {
				return err
			}
		}
	}
	own := opts.DeepCopy()
	if exact && (own.Preconditions == nil || own.Preconditions.ResourceVersion == nil) {
		// The decision holds for this version alone.
		if own.Preconditions == nil {
			own.Preconditions = &metav1.Preconditions{}
		}
		version := pod.ResourceVersion
		own.Preconditions.ResourceVersion = &version
	}
	return r.deleteEvicted(ctx, req, own)
}

// askBudget takes a disruption from the pod's budget, if it has one. exact tells that the pod may
// go because it is unhealthy, which must still be so when it is deleted.
func (r *Registry) askBudget(ctx context.Context, pod *corev1.Pod, dryRun bool) (exact bool, err error) {
	budgets, ok := r.Lookup(policyv1.SchemeGroupVersion.WithResource("poddisruptionbudgets"))
	if !ok {
		return false, nil
	}
	entry, pdb, err := r.budgetOf(budgets.GroupResource, pod)
	if err != nil || pdb == nil {
		return false, err
	}
	if !isReady(pod) {
		policy := pdb.Spec.UnhealthyPodEvictionPolicy
		if policy != nil && *policy == policyv1.AlwaysAllow {
			return true, nil
		}
		if pdb.Status.CurrentHealthy >= pdb.Status.DesiredHealthy && pdb.Status.DesiredHealthy > 0 {
			return true, nil
		}
	}
	if err := refuseDisruption(pdb); err != nil {
		return false, err
	}
	if dryRun {
		return false, nil
	}
	out := pdb.DeepCopy()
	out.Status.DisruptionsAllowed--
	if out.Status.DisruptionsAllowed == 0 {
		meta.SetStatusCondition(&out.Status.Conditions, metav1.Condition{
			Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse,
			Reason: policyv1.InsufficientPodsReason, ObservedGeneration: out.Status.ObservedGeneration,
		})
	}
	if out.Status.DisruptedPods == nil {
		out.Status.DisruptedPods = map[string]metav1.Time{}
	}
	// The budget's controller must not count a pod that is about to go.
	out.Status.DisruptedPods[pod.Name] = metav1.Now()
	req := Request{Resource: budgets, Subresource: "status", Namespace: pdb.Namespace, Name: pdb.Name}
	out.ResourceVersion = fmt.Sprint(entry.Revision())
	_, _, err = r.Update(asServer(ctx), req, out, nil)
	return false, err
}

// budgetOf finds the one budget that covers the pod.
func (r *Registry) budgetOf(gr schema.GroupResource, pod *corev1.Pod) (*store.Entry, *policyv1.PodDisruptionBudget, error) {
	var entry *store.Entry
	var found []*policyv1.PodDisruptionBudget
	r.Table(gr).Snapshot().Ascend(pod.Namespace, store.Key{}, func(e *store.Entry) bool {
		obj, err := e.Object()
		if err != nil {
			return true
		}
		pdb, ok := obj.(*policyv1.PodDisruptionBudget)
		if !ok {
			return true
		}
		selector, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
		if err == nil && selector.Matches(labels.Set(pod.Labels)) {
			entry, found = e, append(found, pdb)
		}
		return true
	})
	switch len(found) {
	case 0:
		return nil, nil, nil
	case 1:
		return entry, found[0], nil
	default:
		return nil, nil, apierrors.NewInternalError(fmt.Errorf(
			"this pod has more than one PodDisruptionBudget, which the eviction subresource does not support"))
	}
}

// refuseDisruption says why a budget does not allow a disruption now; nil if it does.
func refuseDisruption(pdb *policyv1.PodDisruptionBudget) error {
	const violates = "Cannot evict pod as it would violate the pod's disruption budget."
	gr := schema.GroupResource{Group: policyv1.GroupName, Resource: "poddisruptionbudgets"}
	status := pdb.Status
	switch {
	case status.ObservedGeneration < pdb.Generation:
		return tooMany(violates, 10*time.Second, fmt.Sprintf("The disruption budget %s is still being processed by the server.", pdb.Name))
	case status.DisruptionsAllowed < 0:
		return withCause(apierrors.NewForbidden(gr, pdb.Name, fmt.Errorf("pdb disruptions allowed is negative")),
			fmt.Sprintf("The disruption budget %s allows a negative number of disruptions.", pdb.Name))
	case len(status.DisruptedPods) > maxDisrupted:
		return withCause(apierrors.NewForbidden(gr, pdb.Name, fmt.Errorf("DisruptedPods map too big - too many evictions not confirmed by PDB controller")),
			fmt.Sprintf("The disruption budget %s has too many evictions that its controller has not confirmed.", pdb.Name))
	case status.DisruptionsAllowed > 0:
		return nil
	}
	why := fmt.Sprintf("The disruption budget %s needs %d healthy pods and has %d currently", pdb.Name, status.DesiredHealthy, status.CurrentHealthy)
	condition := meta.FindStatusCondition(status.Conditions, policyv1.DisruptionAllowedCondition)
	failed := condition != nil && condition.Status == metav1.ConditionFalse && condition.Message != ""
	switch {
	case failed && condition.Reason == policyv1.SyncFailedReason:
		why = fmt.Sprintf("The disruption budget %s does not allow evicting pods currently because it failed sync: %s", pdb.Name, condition.Message)
	case status.CurrentHealthy > status.DesiredHealthy && failed:
		why = fmt.Sprintf("The disruption budget %s does not allow evicting pods currently (%s): %s", pdb.Name, condition.Reason, condition.Message)
	case status.CurrentHealthy > status.DesiredHealthy:
		why = fmt.Sprintf("The disruption budget %s does not allow evicting pods currently", pdb.Name)
	}
	return tooMany(violates, 0, why)
}

func tooMany(message string, retry time.Duration, why string) error {
	return withCause(apierrors.NewTooManyRequests(message, int(retry/time.Second)), why)
}

func withCause(err *apierrors.StatusError, why string) error {
	err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes,
		metav1.StatusCause{Type: policyv1.DisruptionBudgetCause, Message: why})
	return err
}

func isReady(pod *corev1.Pod) bool {
	return slices.ContainsFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

// deleteEvicted says on the pod why it goes, and deletes it.
func (r *Registry) deleteEvicted(ctx context.Context, req Request, opts *metav1.DeleteOptions) error {
	if !isDryRun(opts.DryRun) {
		c := change{
			op: operation{req: req, op: admission.Update, options: &metav1.UpdateOptions{}, name: req.Name}, direct: true,
			skipRules: true, view: versionView{req: req},
			make: func(_ context.Context, live runtime.Object) (runtime.Object, error) {
				pod, ok := live.(*corev1.Pod)
				if !ok {
					return nil, apierrors.NewInternalError(fmt.Errorf("pod %s is a %T", req.Name, live))
				}
				return disrupted(req, pod, opts.Preconditions)
			},
		}
		result, _, err := r.modify(ctx, c)
		if err != nil {
			return err
		}
		if p := opts.Preconditions; p != nil && p.ResourceVersion != nil && result.Entry != nil {
			version := fmt.Sprint(result.Entry.Revision())
			p.ResourceVersion = &version
		}
	}
	o := operation{req: req, op: admission.Delete, options: opts, dryRun: isDryRun(opts.DryRun), name: req.Name}
	_, _, err := r.delete(r.context(asServer(ctx), req, "delete"), o, opts)
	return err
}

// disrupted returns the pod with the condition that tells its owner about the eviction.
func disrupted(req Request, pod *corev1.Pod, p *metav1.Preconditions) (runtime.Object, error) {
	if p != nil && p.UID != nil && *p.UID != "" && *p.UID != pod.UID {
		return nil, uidConflict(req, *p.UID, pod.UID)
	}
	if p != nil && p.ResourceVersion != nil && *p.ResourceVersion != "" && *p.ResourceVersion != pod.ResourceVersion {
		return nil, apierrors.NewConflict(req.groupResource(), pod.Name, errModified)
	}
	out := pod.DeepCopy()
	setCondition(&out.Status, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue,
		Reason: "EvictionByEvictionAPI", Message: "Eviction API: evicting",
	})
	return out, nil
}
