package podgc

import (
	"errors"
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/controllertest"
)

func pod(name, node string, edit ...func(*corev1.Pod)) corev1.Pod {
	p := corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	p.Spec.NodeName = node
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i"}}
	p.Status.Phase = corev1.PodRunning
	for _, e := range edit {
		e(&p)
	}
	return p
}

func deleted(p *corev1.Pod) {
	now := metav1.Now()
	p.DeletionTimestamp = &now
}

func succeeded(p *corev1.Pod) { p.Status.Phase = corev1.PodSucceeded }

func tolerating(p *corev1.Pod) {
	p.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeOutOfService, Operator: corev1.TolerationOpExists}}
}

func lostNode(name string) *corev1.Node {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
	n.Status.Conditions = []corev1.NodeCondition{{Type: corev1.NodeReady, Status: corev1.ConditionUnknown}}
	return n
}

func TestPlan(t *testing.T) {
	now := time.Unix(10000, 0)
	ready := lostNode("ready")
	ready.Status.Conditions[0].Status = corev1.ConditionTrue
	nodes := map[string]*corev1.Node{"well": {}, "lost": lostNode("lost"), "ready": ready}
	gone := map[string]time.Time{"gone": now.Add(-quarantine), "just-gone": now.Add(-time.Second)}
	tests := []struct {
		name string
		pod  corev1.Pod
		want reason
	}{
		{"runs", pod("p", "well"), ""},
		{"waits for a node", pod("p", ""), ""},
		{"deleted before it had a node", pod("p", "", deleted), unscheduled},
		{"its node is gone", pod("p", "gone"), orphaned},
		{"its node may come back", pod("p", "just-gone"), ""},
		{"its node is lost", pod("p", "lost"), outOfService},
		{"lost, but tolerated", pod("p", "lost", tolerating), ""},
		{"lost, tolerated, but deleted", pod("p", "lost", tolerating, deleted), outOfService},
		{"tainted, but ready after all", pod("p", "ready"), ""},
		{"ended, and there is room", pod("p", "well", succeeded), ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			victims := plan([]corev1.Pod{tt.pod}, nodes, gone, now, 1)
			got := reason("")
			if len(victims) > 0 {
				got = victims[0].why
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestOldestEndedPodsGoFirst(t *testing.T) {
	var pods []corev1.Pod
	for i := range 5 {
		pods = append(pods, pod(fmt.Sprint("p", i), "well", succeeded, func(p *corev1.Pod) {
			p.CreationTimestamp = metav1.Unix(int64(100-i), 0)
		}))
	}
	victims := plan(pods, map[string]*corev1.Node{"well": {}}, nil, time.Now(), 3)
	if len(victims) != 2 || victims[0].pod.Name != "p4" || victims[1].pod.Name != "p3" {
		t.Errorf("got %v", victims)
	}
}

// A pod on a lost node is marked as failed before it goes, so that a Job does not count it as
// its own failure.
func TestReplacesPodsOfALostNode(t *testing.T) {
	p := pod("p", "lost")
	w := controllertest.New(t, lostNode("lost"), &p)
	var marked bool
	w.After = func(verb string, obj client.Object) error {
		if q, ok := obj.(*corev1.Pod); ok && q.Status.Phase == corev1.PodFailed {
			for _, c := range q.Status.Conditions {
				marked = marked || c.Type == corev1.DisruptionTarget && c.Status == corev1.ConditionTrue
			}
		}
		return nil
	}
	w.Reconcile(New(w.Deps()), lostNode("lost"))
	if !marked {
		t.Error("the pod was not marked as disrupted")
	}
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(&p), &p); !apierrors.IsNotFound(err) {
		t.Errorf("the pod is still there: %v", err)
	}
}

// TestSparesASuccessor: a StatefulSet gives a pod that is gone a successor of the same name, which has no part in why
// its predecessor was to go.
func TestSparesASuccessor(t *testing.T) {
	p := pod("web-0", "lost")
	w := controllertest.New(t, lostNode("lost"), &p)
	victims := plan([]corev1.Pod{*p.DeepCopy()}, map[string]*corev1.Node{"lost": lostNode("lost")}, nil, time.Now(), 1)
	if err := w.Delete(t.Context(), p.DeepCopy()); err != nil {
		t.Fatal(err)
	}
	successor := pod("web-0", "well")
	w.MustCreate(&successor)
	c := &controller{deps: w.Deps()}
	if err := c.remove(t.Context(), victims[0]); err != nil {
		t.Error(err)
	}
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(&successor), &successor); err != nil || successor.Status.Phase != corev1.PodRunning {
		t.Errorf("the successor is %s: %v", successor.Status.Phase, err)
	}
}

// TestLateNode: the pods of a node that has not come to the image yet stay, and so do all as long as that can't be
// found out.
func TestLateNode(t *testing.T) {
	p, q := pod("p", "late"), pod("q", "gone")
	w := controllertest.New(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "late"}}, &p, &q)
	there := func(p corev1.Pod) bool {
		err := w.Get(t.Context(), client.ObjectKeyFromObject(&p), &p)
		return !apierrors.IsNotFound(err)
	}
	c := New(w.Deps())
	w.Late = func(obj client.Object) bool { _, late := obj.(*corev1.Node); return late }
	w.Cut = errors.New("no quorum")
	w.Reconcile(c, &corev1.Node{})
	w.Clock.Step(quarantine)
	if _, err := c.Reconcile(t.Context(), reconcile.Request{}); !errors.Is(err, w.Cut) || !there(p) || !there(q) {
		t.Errorf("cut off: %v, there %v, %v", err, there(p), there(q))
	}
	w.Cut = nil
	w.Reconcile(c, &corev1.Node{})
	if !there(p) || there(q) {
		t.Errorf("the pod of the late node is there: %v, that of the gone one: %v", there(p), there(q))
	}
}

// TestDamaged: a pod or a node that can't be read keeps nobody else's pods, and the pods of such a node stay.
func TestDamaged(t *testing.T) {
	p, q, r := pod("p", "damaged"), pod("q", "gone"), pod("r", "gone")
	w := controllertest.New(t, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "damaged"}}, &p, &q, &r)
	w.Damaged = func(obj client.Object) bool { return obj.GetName() == "damaged" || obj.GetName() == "r" }
	c := New(w.Deps())
	w.Reconcile(c, &corev1.Node{})
	w.Clock.Step(quarantine)
	w.Reconcile(c, &corev1.Node{})
	var left []string
	for _, p := range w.Pods() {
		left = append(left, p.Name)
	}
	if fmt.Sprint(left) != "[p r]" {
		t.Errorf("left: %v", left)
	}
}
