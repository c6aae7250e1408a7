// Package daemonset runs a DaemonSet's pod on every node that the set's node selection and
// tolerations take in. It pins each pod to its node by node affinity and leaves the binding to
// the scheduler.
//
// Decisions are methods of [state], pure: which pods to make and remove (manage), the next step
// of a rolling update (update), and the status. Pod templates are kept as ControllerRevisions.
package daemonset

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/history"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

const hashLabel = appsv1.DefaultDaemonSetUniqueLabelKey

var kind = schema.GroupVersionKind{Group: appsv1.GroupName, Version: "v1", Kind: "DaemonSet"}

type reconciler struct {
	kit.Deps
	recorder record.EventRecorder
	pods     pods.Control
	waits    waits
}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	recorder := deps.Recorder("daemonset-controller")
	r := &reconciler{Deps: deps, recorder: recorder, pods: pods.Control{Client: deps.Client, Recorder: recorder}}
	adopters := kit.Adopters(deps, &appsv1.DaemonSetList{}, func(ds *appsv1.DaemonSet) *metav1.LabelSelector { return ds.Spec.Selector })
	return kit.Controller{
		Name:    "daemonset",
		Account: "daemon-set-controller",
		Workers: 2,
		Watches: []kit.Watch{
			{Kind: &appsv1.DaemonSet{}, Requests: kit.Self},
			{Kind: &corev1.Pod{}, Requests: kit.Owner(kind.Kind, adopters)},
			{Kind: &appsv1.ControllerRevision{}, Requests: revisionChanged(kit.Owner(kind.Kind, adopters))},
			{Kind: &corev1.Node{}, Requests: r.nodeChanged},
		},
		Reconcile: r.reconcile,
	}
}

// revisionChanged requests the set that a revision belongs to, unless the revision is new and names it already: it
// is the set's own work, or somebody gave the set a further one, which stays until there is something to do.
func revisionChanged(owner func(barqueclient.Event) []reconcile.Request) func(barqueclient.Event) []reconcile.Request {
	return func(e barqueclient.Event) []reconcile.Request {
		before, _ := e.Old.(*appsv1.ControllerRevision)
		after, _ := e.New.(*appsv1.ControllerRevision)
		if before == nil && after != nil && metav1.GetControllerOfNoCopy(after) != nil {
			return nil
		}
		return owner(e)
	}
}

// nodeChanged requests the sets to which the change of a node makes a difference.
func (r *reconciler) nodeChanged(e barqueclient.Event) []reconcile.Request {
	before, _ := e.Old.(*corev1.Node)
	after, _ := e.New.(*corev1.Node)
	if before != nil && after != nil && maps.Equal(before.Labels, after.Labels) &&
		equality.Semantic.DeepEqual(before.Spec.Taints, after.Spec.Taints) {
		return nil
	}
	return kit.Where(r.Deps, &appsv1.DaemonSetList{}, func(ds *appsv1.DaemonSet) bool { return concerns(ds, before, after) })
}

// concerns tells whether a node's change, nil standing for a node that is not there, may change
// what ds does or reports.
func concerns(ds *appsv1.DaemonSet, before, after *corev1.Node) bool {
	p := newPlacement(ds)
	fits := func(n *corev1.Node) [2]bool {
		if n == nil {
			return [2]bool{}
		}
		start, stay := p.fits(n)
		return [2]bool{start, stay}
	}
	return fits(before) != fits(after)
}

func (r *reconciler) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var ds appsv1.DaemonSet
	if err := r.Client.Get(ctx, req.NamespacedName, &ds); apierrors.IsNotFound(err) {
		return reconcile.Result{}, nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("get DaemonSet %s: %w", req, err)
	}
	if equality.Semantic.DeepEqual(ds.Spec.Selector, &metav1.LabelSelector{}) {
		r.recorder.Event(&ds, corev1.EventTypeWarning, "SelectingAll", "This daemon set is selecting all pods. A non-empty selector is required.")
		return reconcile.Result{}, nil
	}
	if ds.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	result, err := r.sync(ctx, &ds)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("DaemonSet %s: %w", req, err)
	}
	return result, nil
}

func (r *reconciler) sync(ctx context.Context, ds *appsv1.DaemonSet) (reconcile.Result, error) {
	nodes, unreadable := r.nodes(ctx)
	if err := kit.Readable(unreadable); err != nil {
		return reconcile.Result{}, err
	}
	all, err := pods.OfOwner(ctx, r.Client, ds)
	if err != nil {
		return reconcile.Result{}, err
	}
	claimed, err := kit.Claim(ctx, kit.Claimer{
		Client: r.Client, Owner: ds, OwnerKind: kind, Selector: kit.Selector(ds.Spec.Selector),
	}, all)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("claim pods: %w", err)
	}
	current, old, err := r.revisions(ctx, ds, claimed)
	if err != nil {
		return reconcile.Result{}, err
	}
	now := r.Clock.Now()
	placed := claimed
	if unreadable != nil {
		placed = onAny(nodes, claimed) // of the others it is not known whether they should run
	}
	s := newState(ds, nodes, placed, current.Labels[hashLabel], now)
	s.wait = func(node string) (left time.Duration) { return r.waits.left(r.waitKey(ds, node), now) }

	p := s.manage()
	again := p.again
	if p.empty() && ds.Spec.UpdateStrategy.Type == appsv1.RollingUpdateDaemonSetStrategyType {
		p = s.update()
	}
	stepErr := r.carryOut(ctx, s, p)
	if stepErr == nil {
		inUse := map[string]bool{}
		for _, pod := range claimed {
			inUse[pod.Labels[hashLabel]] = true
		}
		stepErr = history.Truncate(ctx, r.Client, old, int(*ds.Spec.RevisionHistoryLimit), func(cr *appsv1.ControllerRevision) bool {
			return inUse[cr.Labels[hashLabel]]
		})
	}
	if stepErr == nil || !pods.Quiet(stepErr) {
		stepErr = errors.Join(stepErr, r.writeStatus(ctx, ds, s.status()))
	}
	if next := pods.NextAvailable(claimed, ds.Spec.MinReadySeconds, now); next > 0 && (again == 0 || next < again) {
		again = next
	}
	return reconcile.Result{RequeueAfter: again}, stepErr
}

// onAny are the pods whose node is one of those, or that have none.
func onAny(nodes []*corev1.Node, all []*corev1.Pod) []*corev1.Pod {
	known := map[string]bool{"": true}
	for _, n := range nodes {
		known[n.Name] = true
	}
	return pods.Filter(all, func(p *corev1.Pod) bool { return known[target(p)] })
}

func (r *reconciler) waitKey(ds *appsv1.DaemonSet, node string) waitKey {
	return waitKey{ds.UID, ds.Status.ObservedGeneration, node}
}

func (r *reconciler) nodes(ctx context.Context) ([]*corev1.Node, error) {
	nodes, err := kit.List[*corev1.Node](ctx, r.Client, &corev1.NodeList{})
	slices.SortFunc(nodes, func(a, b *corev1.Node) int { return strings.Compare(a.Name, b.Name) })
	return nodes, err
}

func (r *reconciler) carryOut(ctx context.Context, s state, p plan) error {
	for _, pod := range p.ended {
		node := target(pod)
		if pod.Status.Phase == corev1.PodFailed {
			r.waits.failed(r.waitKey(s.ds, node), s.now)
			r.recorder.Eventf(s.ds, corev1.EventTypeWarning, "FailedDaemonPod", "Found failed daemon pod %s/%s on node %s, will try to kill it", pod.Namespace, pod.Name, node)
		} else {
			r.recorder.Eventf(s.ds, corev1.EventTypeNormal, "SucceededDaemonPod", "Found succeeded daemon pod %s/%s on node %s, will try to delete it", pod.Namespace, pod.Name, node)
		}
	}
	ref := metav1.NewControllerRef(s.ds, kind)
	_, createErr := kit.SlowStart(min(len(p.create), kit.MaxBurst), func(i int) error {
		return r.pods.Create(ctx, newPod(s, p.create[i], ref), s.ds)
	})
	deleteErr := kit.Each(min(len(p.delete), kit.MaxBurst), func(i int) error { return r.pods.Delete(ctx, p.delete[i], s.ds) })
	return errors.Join(createErr, deleteErr)
}

// newPod makes the pod for a node.
func newPod(s state, node string, ref *metav1.OwnerReference) *corev1.Pod {
	pod := pods.FromTemplate(&s.ds.Spec.Template, s.ds, ref, "")
	pod.Spec.Tolerations = slices.Clone(s.tolerations)
	pod.Spec.Affinity = pinTo(pod.Spec.Affinity, node)
	if pod.Labels == nil {
		pod.Labels = map[string]string{}
	}
	pod.Labels[hashLabel] = s.hash
	if g, ok := generation(s.ds); ok {
		pod.Labels[generationLabel] = g
	}
	return pod
}

func (r *reconciler) writeStatus(ctx context.Context, ds *appsv1.DaemonSet, status appsv1.DaemonSetStatus) error {
	if equality.Semantic.DeepEqual(ds.Status, status) {
		return nil
	}
	changed := ds.DeepCopy()
	changed.Status = status
	if err := r.Client.Status().Update(ctx, changed); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}

// revisions returns the revision of the current template, which it makes if there is none, and
// the others in order.
func (r *reconciler) revisions(ctx context.Context, ds *appsv1.DaemonSet, claimed []*corev1.Pod) (*appsv1.ControllerRevision, []*appsv1.ControllerRevision, error) {
	all, err := history.List(ctx, r.Client, ds, kind, kit.Selector(ds.Spec.Selector))
	if err != nil {
		return nil, nil, err
	}
	content, err := history.TemplatePatch(&ds.Spec.Template)
	if err != nil {
		return nil, nil, err
	}
	var current, old []*appsv1.ControllerRevision
	for _, cr := range all {
		if cr.Labels[hashLabel] == "" { // adopted without one; its name is as unique
			if cr, err = r.label(ctx, cr); err != nil {
				return nil, nil, err
			}
		}
		if bytes.Equal(cr.Data.Raw, content) {
			current = append(current, cr)
		} else {
			old = append(old, cr)
		}
	}
	number := history.Next(old)
	if len(current) == 0 {
		cr, err := r.newRevision(ctx, ds, content, number)
		return cr, old, err
	}
	cr, err := r.keepNewest(ctx, current, claimed)
	if err == nil && cr.Revision < number {
		cr, err = history.Renumber(ctx, r.Client, cr, number)
	}
	return cr, old, err
}

func (r *reconciler) label(ctx context.Context, cr *appsv1.ControllerRevision) (*appsv1.ControllerRevision, error) {
	changed := cr.DeepCopy()
	if changed.Labels == nil {
		changed.Labels = map[string]string{}
	}
	changed.Labels[hashLabel] = cr.Name
	if err := r.Client.Update(ctx, changed); err != nil {
		return nil, fmt.Errorf("label ControllerRevision %s: %w", cr.Name, err)
	}
	return changed, nil
}

// newRevision makes the revision of the current template. If its name, which holds the
// template's hash, is taken by another template, the set's collision count changes it.
func (r *reconciler) newRevision(ctx context.Context, ds *appsv1.DaemonSet, content []byte, number int64) (*appsv1.ControllerRevision, error) {
	hash := pods.TemplateHash(&ds.Spec.Template, ds.Status.CollisionCount)
	cr, collision, err := history.Create(ctx, r.Client,
		history.New(ds, kind, ds.Name+"-"+hash, ds.Spec.Template.Labels, hashLabel, hash, content, number))
	if err != nil {
		return nil, err
	}
	if !collision {
		return cr, nil
	}
	changed := ds.DeepCopy()
	changed.Status.CollisionCount = new(ptr.Deref(ds.Status.CollisionCount, 0) + 1)
	if err := r.Client.Status().Update(ctx, changed); err != nil {
		return nil, fmt.Errorf("count a collision of names: %w", err)
	}
	return nil, fmt.Errorf("the name of ControllerRevision %s is another's", cr.Name)
}

// keepNewest deletes all but the newest of several revisions with the same content, having
// moved their pods over to it.
func (r *reconciler) keepNewest(ctx context.Context, same []*appsv1.ControllerRevision, claimed []*corev1.Pod) (*appsv1.ControllerRevision, error) {
	kept := same[len(same)-1]
	if len(same) == 1 {
		return kept, nil
	}
	doubles := map[string]bool{}
	for _, cr := range same[:len(same)-1] {
		doubles[cr.Labels[hashLabel]] = true
	}
	for i, pod := range claimed {
		if !doubles[pod.Labels[hashLabel]] {
			continue
		}
		changed := pod.DeepCopy()
		changed.Labels[hashLabel] = kept.Labels[hashLabel]
		if err := r.Client.Update(ctx, changed); client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("label pod %s: %w", pod.Name, err)
		}
		claimed[i] = changed
	}
	for _, cr := range same[:len(same)-1] {
		if err := r.Client.Delete(ctx, cr, client.Preconditions{UID: &cr.UID}); client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("delete ControllerRevision %s: %w", cr.Name, err)
		}
	}
	return kept, nil
}
