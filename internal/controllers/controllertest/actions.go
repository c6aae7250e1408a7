package controllertest

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

// Settle lets the controllers reconcile every object of the first kind that they watch, until
// none of them writes any more. A controller that never stops writing ends the test.
func (w *World) Settle(controllers ...kit.Controller) {
	w.t.Helper()
	for range 50 {
		before := w.count()
		for _, c := range controllers {
			objs, err := w.list(context.Background(), c.Watches[0].Kind)
			if err != nil {
				w.t.Fatal(err)
			}
			for _, obj := range objs {
				w.Reconcile(c, obj)
			}
		}
		if w.count() == before {
			return
		}
	}
	w.t.Fatal("the controllers keep writing")
}

func (w *World) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.writes
}

// MustCreate creates obj or ends the test.
func (w *World) MustCreate(obj client.Object) {
	w.t.Helper()
	if err := w.Create(context.Background(), obj); err != nil {
		w.t.Fatalf("create %T %s: %v", obj, obj.GetName(), err)
	}
}

// Change reads obj anew, lets f change it and writes it, and its status if f changed that: a
// controller that is running may write the status as soon as it sees the rest.
func Change[T client.Object](w *World, obj T, f func(T)) {
	w.t.Helper()
	ctx := context.Background()
	if err := w.Get(ctx, client.ObjectKeyFromObject(obj), obj); err != nil {
		w.t.Fatalf("get %T %s: %v", obj, obj.GetName(), err)
	}
	before := obj.DeepCopyObject().(client.Object)
	f(obj)
	want := obj.DeepCopyObject().(client.Object)
	if err := w.Update(ctx, obj); err != nil {
		w.t.Fatalf("update %T %s: %v", obj, obj.GetName(), err)
	}
	status := field(want, "Status")
	if !status.IsValid() || equality.Semantic.DeepEqual(field(before, "Status").Interface(), status.Interface()) || w.current(obj) == nil {
		return
	}
	want.SetResourceVersion(obj.GetResourceVersion())
	if err := w.Status().Update(ctx, want); err != nil {
		w.t.Fatalf("update status of %T %s: %v", obj, obj.GetName(), err)
	}
	Reload(w, obj)
}

// Reload reads obj anew.
func Reload[T client.Object](w *World, obj T) T {
	w.t.Helper()
	if err := w.Get(context.Background(), client.ObjectKeyFromObject(obj), obj); err != nil {
		w.t.Fatalf("get %T %s: %v", obj, obj.GetName(), err)
	}
	return obj
}

// Reconcile calls the controller for obj and ends the test if that fails.
func (w *World) Reconcile(c kit.Controller, obj client.Object) reconcile.Result {
	w.t.Helper()
	result, err := c.Reconcile(context.Background(), kit.RequestFor(obj))
	if err != nil {
		w.t.Fatalf("reconcile %s: %v", obj.GetName(), err)
	}
	return result
}

// Pods lists all pods by name.
func (w *World) Pods() []corev1.Pod {
	w.t.Helper()
	var list corev1.PodList
	if err := w.List(context.Background(), &list); err != nil {
		w.t.Fatal(err)
	}
	return list.Items
}

// Run makes a pod run, and be ready or not, since now.
func (w *World) Run(pod *corev1.Pod, ready bool) {
	w.t.Helper()
	Change(w, pod, func(p *corev1.Pod) {
		status := corev1.ConditionFalse
		if ready {
			status = corev1.ConditionTrue
		}
		p.Spec.NodeName = "node"
		p.Status.Phase = corev1.PodRunning
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Time{Time: w.Clock.Now()},
		}}
	})
}

// End makes a pod succeed or fail.
func (w *World) End(pod *corev1.Pod, phase corev1.PodPhase) {
	w.t.Helper()
	Change(w, pod, func(p *corev1.Pod) {
		p.Status.Phase = phase
		p.Status.Conditions = []corev1.PodCondition{{
			Type: corev1.PodReady, Status: corev1.ConditionFalse, LastTransitionTime: metav1.Time{Time: w.Clock.Now()},
		}}
	})
}
