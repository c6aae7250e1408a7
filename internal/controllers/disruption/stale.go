package disruption

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

// staleTimeout is how long a pod may announce a disruption without being deleted (stock's).
const staleTimeout = 2 * time.Minute

type staleController struct{ deps kit.Deps }

// NewStale makes the controller that resets the condition DisruptionTarget of pods that nobody
// deleted after all.
func NewStale(deps kit.Deps) kit.Controller {
	c := &staleController{deps: deps}
	return kit.Controller{
		Name:    "stale-disruption",
		Account: "disruption-controller",
		Watches: []kit.Watch{{Kind: &corev1.Pod{}, Requests: func(e barqueclient.Event) []reconcile.Request {
			if pod, ok := e.New.(*corev1.Pod); ok && announced(pod) != nil {
				return kit.Self(e)
			}
			return nil
		}}},
		Reconcile: c.reconcile,
		Workers:   1,
	}
}

func (c *staleController) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &pod); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	condition := announced(&pod)
	if condition == nil {
		return reconcile.Result{}, nil
	}
	now := c.deps.Clock.Now()
	if left := condition.LastTransitionTime.Add(staleTimeout).Sub(now); left > 0 {
		return reconcile.Result{RequeueAfter: left}, nil
	}
	changed := pod.DeepCopy()
	condition = announced(changed)
	*condition = corev1.PodCondition{
		Type: condition.Type, Status: corev1.ConditionFalse, LastTransitionTime: metav1.NewTime(now),
		ObservedGeneration: condition.ObservedGeneration,
	}
	if err := c.deps.Client.Status().Update(ctx, changed); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("reset condition %s of pod %s/%s: %w", corev1.DisruptionTarget, pod.Namespace, pod.Name, err)
	}
	return reconcile.Result{}, nil
}

// announced returns the condition of a disruption that may yet come; nil if there is none. What
// the node's agent announces it also does, however long that takes.
func announced(pod *corev1.Pod) *corev1.PodCondition {
	condition := pods.Condition(pod, corev1.DisruptionTarget)
	if condition == nil || condition.Status != corev1.ConditionTrue || condition.Reason == corev1.PodReasonTerminationByKubelet ||
		pod.DeletionTimestamp != nil || pods.Terminal(pod) {
		return nil
	}
	return condition
}
