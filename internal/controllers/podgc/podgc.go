// Package podgc removes the pods that nobody else will: those on nodes that are gone, those of
// nodes that are declared out of service (KEP-2268), those that were deleted before they had a
// node, and the oldest ended ones when there are too many.
package podgc

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

const (
	// every is how often all pods are looked through (stock: 20 s).
	every = 20 * time.Second
	// quarantine is how long a node must be gone before its pods are (stock: 40 s), since a
	// node that registers anew finds its pods again.
	quarantine = 40 * time.Second
	// endedThreshold is how many ended pods are kept (stock's default).
	endedThreshold = 12500
)

// A reason says why a pod goes.
type reason string

const (
	orphaned     reason = "orphaned: its node is gone"
	outOfService reason = "its node is out of service"
	unscheduled  reason = "deleted before it had a node"
	ended        reason = "one ended pod too many"
)

type victim struct {
	pod *corev1.Pod
	why reason
}

type controller struct {
	deps kit.Deps
	// goneSince is when a node was first missed, by name. Only the one worker uses it.
	goneSince map[string]time.Time
}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps, goneSince: map[string]time.Time{}}
	all := func(barqueclient.Event) []reconcile.Request { return []reconcile.Request{{}} }
	return kit.Controller{
		Name:    "pod-garbage-collector",
		Account: "pod-garbage-collector",
		Watches: []kit.Watch{{Kind: &corev1.Node{}, Requests: func(e barqueclient.Event) []reconcile.Request {
			if e.Old != nil && e.New != nil && isOutOfService(e.Old.(*corev1.Node)) == isOutOfService(e.New.(*corev1.Node)) {
				return nil
			}
			return all(e)
		}}},
		Reconcile: c.reconcile,
		Workers:   1,
	}
}

func (c *controller) reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	var pods corev1.PodList
	var nodes corev1.NodeList
	// A node that can't be read is missed, but lookAgain does not take it for gone.
	if err := errors.Join(kit.Readable(c.deps.Client.List(ctx, &pods)), kit.Readable(c.deps.Client.List(ctx, &nodes))); err != nil {
		return reconcile.Result{}, err
	}
	byName := map[string]*corev1.Node{}
	for i := range nodes.Items {
		byName[nodes.Items[i].Name] = &nodes.Items[i]
	}
	now := c.deps.Clock.Now()
	c.missNodes(pods.Items, byName, now)
	if err := c.lookAgain(ctx, byName, now); err != nil {
		return reconcile.Result{}, err
	}
	victims := plan(pods.Items, byName, c.goneSince, now, endedThreshold)
	err := kit.Each(len(victims), func(i int) error { return c.remove(ctx, victims[i]) })
	return reconcile.Result{RequeueAfter: every}, err
}

// missNodes notes since when the nodes that pods name are gone.
func (c *controller) missNodes(pods []corev1.Pod, nodes map[string]*corev1.Node, now time.Time) {
	missed := map[string]time.Time{}
	for i := range pods {
		name := pods[i].Spec.NodeName
		if name == "" || nodes[name] != nil {
			continue
		}
		if since, ok := c.goneSince[name]; ok {
			missed[name] = since
		} else {
			missed[name] = now
		}
	}
	c.goneSince = missed
}

// lookAgain adds the nodes that have been missed for so long that their pods would go now, but are there.
func (c *controller) lookAgain(ctx context.Context, nodes map[string]*corev1.Node, now time.Time) error {
	caughtUp := false
	for name, since := range c.goneSince {
		if now.Sub(since) < quarantine {
			continue
		}
		if !caughtUp {
			if err := c.deps.CatchUp(ctx); err != nil {
				return fmt.Errorf("make sure that nodes are gone: %w", err)
			}
			caughtUp = true
		}
		node := &corev1.Node{}
		switch err := c.deps.Client.Get(ctx, client.ObjectKey{Name: name}, node); {
		case apierrors.IsNotFound(err):
			continue
		case err == nil:
			nodes[name] = node
		default:
			c.deps.Log.Warn("a node can't be read; its pods stay", "node", name, "error", err)
		}
		delete(c.goneSince, name)
	}
	return nil
}

// plan decides who goes.
func plan(pods []corev1.Pod, nodes map[string]*corev1.Node, goneSince map[string]time.Time, now time.Time, threshold int) []victim {
	var victims []victim
	var over []*corev1.Pod
	for i := range pods {
		p := &pods[i]
		node := nodes[p.Spec.NodeName]
		since, gone := goneSince[p.Spec.NodeName]
		switch {
		case p.Spec.NodeName == "" && p.DeletionTimestamp != nil:
			victims = append(victims, victim{p, unscheduled})
		case gone && now.Sub(since) >= quarantine:
			victims = append(victims, victim{p, orphaned})
		case node != nil && isOutOfService(node) && (p.DeletionTimestamp != nil || !tolerates(p)):
			victims = append(victims, victim{p, outOfService})
		case hasEnded(p) && p.DeletionTimestamp == nil:
			over = append(over, p)
		}
	}
	if len(over) > threshold {
		slices.SortFunc(over, func(a, b *corev1.Pod) int {
			return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
		for _, p := range over[:len(over)-threshold] {
			victims = append(victims, victim{p, ended})
		}
	}
	return victims
}

func hasEnded(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

// isOutOfService tells whether a node is declared to be so, and indeed does not answer.
func isOutOfService(n *corev1.Node) bool {
	ready := slices.ContainsFunc(n.Status.Conditions, func(c corev1.NodeCondition) bool {
		return c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue
	})
	return !ready && slices.ContainsFunc(n.Spec.Taints, func(t corev1.Taint) bool { return t.Key == corev1.TaintNodeOutOfService })
}

func tolerates(p *corev1.Pod) bool {
	taint := corev1.Taint{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}
	return slices.ContainsFunc(p.Spec.Tolerations, func(t corev1.Toleration) bool {
		return (t.Key == taint.Key || t.Key == "") && (t.Effect == taint.Effect || t.Effect == "") && t.Operator == corev1.TolerationOpExists
	})
}

// remove marks a pod that had not ended as failed, so that its owner counts right, and deletes
// it without grace: nobody is there to wait for.
func (c *controller) remove(ctx context.Context, v victim) error {
	p := v.pod
	if !hasEnded(p) && v.why != unscheduled {
		changed := p.DeepCopy()
		changed.Status.Phase = corev1.PodFailed
		setDisruption(&changed.Status, string(v.why), metav1.NewTime(c.deps.Clock.Now()))
		if err := c.deps.Client.Status().Patch(ctx, changed, barqueclient.PatchSame(p)); barqueclient.IgnoreGone(err) != nil {
			return fmt.Errorf("mark pod %s/%s as failed: %w", p.Namespace, p.Name, err)
		}
	}
	err := c.deps.Client.Delete(ctx, p.DeepCopy(), client.GracePeriodSeconds(0), client.Preconditions{UID: &p.UID})
	if barqueclient.IgnoreGone(err) != nil {
		return fmt.Errorf("delete pod %s/%s (%s): %w", p.Namespace, p.Name, v.why, err)
	}
	c.deps.Log.Info("deleted pod", "namespace", p.Namespace, "pod", p.Name, "node", p.Spec.NodeName, "reason", string(v.why))
	return nil
}

// setDisruption adds the condition by which a Job's failure policy knows that the pod did not
// fail by itself (KEP-3329).
func setDisruption(status *corev1.PodStatus, message string, now metav1.Time) {
	status.Conditions = slices.DeleteFunc(slices.Clone(status.Conditions), func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget
	})
	status.Conditions = append(status.Conditions, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByPodGC",
		Message: "PodGC: " + message, LastTransitionTime: now,
	})
}
