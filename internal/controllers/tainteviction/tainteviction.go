// Package tainteviction deletes pods from nodes whose NoExecute taints they do not tolerate, at
// once or when the time they tolerate them for has passed.
package tainteviction

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	corehelpers "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/klog/v2"
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

// New makes the controller. Its requests are pods.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps, recorder: deps.Recorder("taint-eviction-controller")}
	return kit.Controller{
		Name:    "taint-eviction",
		Account: "node-controller",
		Watches: []kit.Watch{
			{Kind: &corev1.Node{}, Requests: c.onNode},
			{Kind: &corev1.Pod{}, Requests: c.onPod},
		},
		Reconcile: c.reconcile,
		Workers:   8,
	}
}

// onNode requests the pods of a node whose NoExecute taints changed.
func (c *controller) onNode(e barqueclient.Event) []reconcile.Request {
	node, ok := e.New.(*corev1.Node)
	if !ok {
		return nil
	}
	var before []corev1.Taint
	if e.Old != nil {
		before = noExecute(e.Old.(*corev1.Node).Spec.Taints)
	}
	if equality.Semantic.DeepEqual(before, noExecute(node.Spec.Taints)) {
		return nil
	}
	everyPod := func(*corev1.Pod) bool { return true }
	return kit.Where(c.deps, &corev1.PodList{}, everyPod, client.MatchingFields{"spec.nodeName": node.Name})
}

// onPod requests a pod that came to a node, or whose tolerations changed.
func (c *controller) onPod(e barqueclient.Event) []reconcile.Request {
	pod, ok := e.New.(*corev1.Pod)
	if !ok || pod.Spec.NodeName == "" {
		return nil
	}
	if e.Old != nil {
		old := e.Old.(*corev1.Pod)
		if old.Spec.NodeName == pod.Spec.NodeName && len(old.Spec.Tolerations) == len(pod.Spec.Tolerations) {
			return nil
		}
	}
	return kit.Self(e)
}

func noExecute(taints []corev1.Taint) []corev1.Taint {
	return slices.DeleteFunc(slices.Clone(taints), func(t corev1.Taint) bool { return t.Effect != corev1.TaintEffectNoExecute })
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &pod); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if pod.Spec.NodeName == "" || pod.DeletionTimestamp != nil || pods.Terminal(&pod) {
		return reconcile.Result{}, nil
	}
	var node corev1.Node
	if err := c.deps.Client.Get(ctx, types.NamespacedName{Name: pod.Spec.NodeName}, &node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	now := c.deps.Clock.Now()
	at, evict := deadline(noExecute(node.Spec.Taints), pod.Spec.Tolerations, now)
	if !evict {
		return reconcile.Result{}, nil
	}
	if wait := at.Sub(now); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	return reconcile.Result{}, c.evict(ctx, &pod, metav1.NewTime(now))
}

// deadline is when a pod must leave because of taints; evict is false when it may stay.
func deadline(taints []corev1.Taint, tolerations []corev1.Toleration, now time.Time) (at time.Time, evict bool) {
	for i := range taints {
		t := &taints[i]
		tolerated, forever := false, false
		var longest time.Duration
		for _, tol := range tolerations {
			if !corehelpers.TolerationsTolerateTaint(klog.Logger{}, []corev1.Toleration{tol}, t, true) {
				continue
			}
			tolerated = true
			if tol.TolerationSeconds == nil {
				forever = true
			} else {
				longest = max(longest, time.Duration(*tol.TolerationSeconds)*time.Second)
			}
		}
		if !tolerated {
			return now, true
		}
		if forever {
			continue
		}
		since := now
		if t.TimeAdded != nil {
			since = t.TimeAdded.Time
		}
		if d := since.Add(longest); !evict || d.Before(at) {
			at, evict = d, true
		}
	}
	return at, evict
}

func (c *controller) evict(ctx context.Context, pod *corev1.Pod, now metav1.Time) error {
	changed := pod.DeepCopy()
	changed.Status.Conditions = append(slices.DeleteFunc(changed.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.DisruptionTarget
	}), corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "DeletionByTaintManager",
		Message: "Taint manager: deleting due to NoExecute taint", LastTransitionTime: now,
	})
	if err := c.deps.Client.Status().Patch(ctx, changed, barqueclient.PatchSame(pod)); barqueclient.IgnoreGone(err) != nil {
		return fmt.Errorf("mark pod %s/%s for eviction: %w", pod.Namespace, pod.Name, err)
	}
	c.recorder.Event(pod, corev1.EventTypeNormal, "TaintManagerEviction", "Marking for deletion Pod "+pod.Namespace+"/"+pod.Name)
	if err := c.deps.Client.Delete(ctx, pod.DeepCopy(), client.Preconditions{UID: &pod.UID}); barqueclient.IgnoreGone(err) != nil {
		return fmt.Errorf("evict pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}
