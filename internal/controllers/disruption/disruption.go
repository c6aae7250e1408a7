// Package disruption keeps the status of pod disruption budgets, by which the eviction
// subresource decides who may go (KEP-85, KEP-3017), and takes back the condition of pods whose
// announced disruption never came (KEP-3329).
//
// What a budget promises is decided by plan, a function of its pods and of the scale of what
// controls them. Eviction counts down by itself between two reconciliations: a pod that it let go
// stands in status.disruptedPods until its deletion is seen here, or two minutes have passed.
package disruption

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	autoscalingv1 "k8s.io/api/autoscaling/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	pdbstatus "k8s.io/component-helpers/apps/poddisruptionbudget"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

type controller struct {
	deps     kit.Deps
	recorder record.EventRecorder
}

// New makes the controller of the budgets' status.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps, recorder: deps.Recorder("controllermanager")}
	return kit.Controller{
		Name: "disruption",
		Watches: []kit.Watch{
			{Kind: &policyv1.PodDisruptionBudget{}, Requests: kit.Self},
			{Kind: &corev1.Pod{}, Requests: c.budgetsOf},
		},
		Reconcile: c.reconcile,
	}
}

// budgetsOf requests the budgets that cover the pod, before or after its change.
func (c *controller) budgetsOf(e barqueclient.Event) []reconcile.Request {
	return kit.Where(c.deps, &policyv1.PodDisruptionBudgetList{}, func(pdb *policyv1.PodDisruptionBudget) bool {
		selector, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
		return err == nil && kit.Concerns(selector, e)
	}, client.InNamespace(e.Object().GetNamespace()))
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pdb policyv1.PodDisruptionBudget
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &pdb); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	again, err := c.sync(ctx, &pdb)
	if err != nil && !apierrors.IsConflict(err) && ctx.Err() == nil {
		// Nobody may be evicted by numbers that are not known to hold.
		return reconcile.Result{}, c.closeDown(ctx, &pdb, err)
	}
	return reconcile.Result{RequeueAfter: again}, err
}

// sync brings the budget's status up to date; it tells after how long to look again, 0 for not.
func (c *controller) sync(ctx context.Context, pdb *policyv1.PodDisruptionBudget) (time.Duration, error) {
	covered, err := c.pods(ctx, pdb)
	if err != nil {
		c.recorder.Eventf(pdb, corev1.EventTypeWarning, "NoPods", "Failed to get pods: %v", err)
		return 0, err
	}
	if len(covered) == 0 {
		c.recorder.Event(pdb, corev1.EventTypeNormal, "NoPods", "No matching pods found")
	}
	world := view{pods: covered, now: c.deps.Clock.Now()}
	if needsScale(pdb) {
		if world.scale, world.unmanaged, err = c.scale(ctx, covered); err != nil {
			c.recorder.Eventf(pdb, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
			return 0, err
		}
	}
	if world.unmanaged {
		c.recorder.Eventf(pdb, corev1.EventTypeWarning, "UnmanagedPods", "Some pods that selector %s takes have no controller, so that what "+
			"is expected cannot be calculated right. Set .spec.minAvailable to a number to have such pods counted.",
			metav1.FormatLabelSelector(pdb.Spec.Selector))
	}
	status, late, again, err := plan(pdb, world)
	if err != nil {
		c.recorder.Eventf(pdb, corev1.EventTypeWarning, "CalculateExpectedPodCountFailed", "Failed to calculate the number of expected pods: %v", err)
		return 0, err
	}
	for _, pod := range late {
		c.recorder.Eventf(pod, corev1.EventTypeWarning, "NotDeleted", "Pod was expected by PDB %s/%s to be deleted but it wasn't", pdb.Namespace, pdb.Name)
	}
	return again, c.write(ctx, pdb, status)
}

func (c *controller) write(ctx context.Context, pdb *policyv1.PodDisruptionBudget, status policyv1.PodDisruptionBudgetStatus) error {
	if equality.Semantic.DeepEqual(pdb.Status, status) {
		return nil
	}
	changed := pdb.DeepCopy()
	changed.Status = status
	if err := c.deps.Client.Status().Update(ctx, changed); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("update status of pod disruption budget %s/%s: %w", pdb.Namespace, pdb.Name, err)
	}
	return nil
}

// closeDown allows no disruption, saying why, and returns the reason so that the budget is tried
// again.
func (c *controller) closeDown(ctx context.Context, pdb *policyv1.PodDisruptionBudget, why error) error {
	status := *pdb.Status.DeepCopy()
	status.DisruptionsAllowed = 0
	meta.SetStatusCondition(&status.Conditions, metav1.Condition{
		Type: policyv1.DisruptionAllowedCondition, Status: metav1.ConditionFalse,
		Reason: policyv1.SyncFailedReason, Message: why.Error(), ObservedGeneration: status.ObservedGeneration,
		LastTransitionTime: metav1.NewTime(c.deps.Clock.Now()),
	})
	if err := c.write(ctx, pdb, status); err != nil {
		return err
	}
	return why
}

// pods lists the pods that the budget covers. An empty selector covers the whole namespace.
func (c *controller) pods(ctx context.Context, pdb *policyv1.PodDisruptionBudget) ([]*corev1.Pod, error) {
	selector, err := metav1.LabelSelectorAsSelector(pdb.Spec.Selector)
	if err != nil {
		return nil, err
	}
	all, err := pods.InNamespace(ctx, c.deps.Client, pdb.Namespace)
	if err != nil {
		return nil, err
	}
	return pods.Filter(all, func(p *corev1.Pod) bool { return selector.Matches(labels.Set(p.Labels)) }), nil
}

// scale adds up what the pods' controllers are scaled to, and tells whether some have none.
func (c *controller) scale(ctx context.Context, covered []*corev1.Pod) (sum int32, unmanaged bool, err error) {
	scales := map[types.UID]int32{}
	seen := map[types.UID]bool{}
	for _, pod := range covered {
		ref := metav1.GetControllerOfNoCopy(pod)
		if ref == nil {
			unmanaged = true
			continue
		}
		if seen[ref.UID] {
			continue
		}
		seen[ref.UID] = true
		uid, replicas, err := c.scaleOf(ctx, pod.Namespace, *ref)
		if err != nil {
			return 0, false, err
		}
		if uid == "" {
			return 0, false, fmt.Errorf("found no controllers for pod %q", pod.Name)
		}
		scales[uid] = replicas
	}
	for replicas := range maps.Values(scales) {
		sum += replicas
	}
	return sum, unmanaged, nil
}

// scaleOf tells what an owner is scaled to, and which one that is: a ReplicaSet of a Deployment
// counts as the Deployment, whose rollout shifts pods between two sets. The UID is empty if there
// is no such owner any more.
func (c *controller) scaleOf(ctx context.Context, namespace string, ref metav1.OwnerReference) (types.UID, int32, error) {
	group := schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind).Group
	if group == appsv1.GroupName && ref.Kind == "ReplicaSet" {
		var set appsv1.ReplicaSet
		err := c.deps.Client.Get(ctx, types.NamespacedName{Namespace: namespace, Name: ref.Name}, &set)
		if err != nil || set.UID != ref.UID {
			return "", 0, client.IgnoreNotFound(err)
		}
		if owner := metav1.GetControllerOfNoCopy(&set); owner != nil && owner.Kind == "Deployment" {
			return c.scaleOf(ctx, namespace, *owner)
		}
	}
	object := &metav1.PartialObjectMetadata{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: ref.Name}}
	object.SetGroupVersionKind(schema.FromAPIVersionAndKind(ref.APIVersion, ref.Kind))
	var scale autoscalingv1.Scale
	err := c.deps.Client.SubResource("scale").Get(ctx, object, &scale)
	if err != nil || scale.UID != ref.UID {
		if client.IgnoreNotFound(err) != nil {
			return "", 0, fmt.Errorf("scale of %s %s: %w", ref.Kind, ref.Name, err)
		}
		return "", 0, nil
	}
	return scale.UID, scale.Spec.Replicas, nil
}

// withCondition returns the status with the condition that says the same.
func withCondition(pdb *policyv1.PodDisruptionBudget, status policyv1.PodDisruptionBudgetStatus, now time.Time) policyv1.PodDisruptionBudgetStatus {
	changed := &policyv1.PodDisruptionBudget{ObjectMeta: pdb.ObjectMeta, Status: status}
	changed.Status.Conditions = slices.Clone(pdb.Status.Conditions)
	if pdbstatus.ConditionsAreUpToDate(changed) {
		return changed.Status
	}
	before := meta.FindStatusCondition(pdb.Status.Conditions, policyv1.DisruptionAllowedCondition)
	pdbstatus.UpdateDisruptionAllowedCondition(changed)
	after := meta.FindStatusCondition(changed.Status.Conditions, policyv1.DisruptionAllowedCondition)
	if before == nil || before.Status != after.Status {
		after.LastTransitionTime = metav1.NewTime(now)
	}
	return changed.Status
}
