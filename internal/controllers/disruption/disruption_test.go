package disruption

import (
	"context"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

func TestStatusIsWrittenOnce(t *testing.T) {
	pdb := budget("1", "")
	w := controllertest.New(t, pdb, pod("a", true), pod("b", true))
	c := New(w.Deps())
	w.Settle(c)
	if s := controllertest.Reload(w, pdb).Status; s.DisruptionsAllowed != 1 || s.CurrentHealthy != 2 || s.ObservedGeneration != pdb.Generation {
		t.Errorf("%+v", s)
	}
	version := pdb.ResourceVersion
	w.Reconcile(c, pdb)
	if controllertest.Reload(w, pdb).ResourceVersion != version {
		t.Error("an unchanged status was written again")
	}
}

// A budget that cannot be worked out allows nothing and says why.
func TestUnknownOwnerClosesTheBudget(t *testing.T) {
	pdb := budget("", "1")
	owned := pod("a", true)
	owned.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(
		&appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Name: "gone", UID: "u"}}, appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	w := controllertest.New(t, pdb, owned)
	controllertest.Change(w, pdb, func(p *policyv1.PodDisruptionBudget) { p.Status.DisruptionsAllowed = 1 })
	if _, err := New(w.Deps()).Reconcile(context.Background(), kit.RequestFor(pdb)); err == nil {
		t.Error("no error, so that the budget is not tried again")
	}
	s := controllertest.Reload(w, pdb).Status
	condition := meta.FindStatusCondition(s.Conditions, policyv1.DisruptionAllowedCondition)
	if s.DisruptionsAllowed != 0 || condition == nil || condition.Reason != policyv1.SyncFailedReason || !strings.Contains(condition.Message, `pod "a"`) {
		t.Errorf("%+v", s)
	}
}

func TestUnmanagedPodsAreToldOf(t *testing.T) {
	pdb := budget("", "1")
	w := controllertest.New(t, pdb, pod("a", true))
	w.Settle(New(w.Deps()))
	if s := controllertest.Reload(w, pdb).Status; s.ExpectedPods != 0 || s.DisruptionsAllowed != 0 {
		t.Errorf("%+v", s)
	}
	if events := strings.Join(w.Events(), "\n"); !strings.Contains(events, "Warning UnmanagedPods") || !strings.Contains(events, "app=web") {
		t.Errorf("events: %s", events)
	}
}

// A pod that leaves a budget by its labels wakes the budget too.
func TestBudgetsOfAPod(t *testing.T) {
	other := budget("1", "")
	other.Name, other.Spec.Selector.MatchLabels = "db", map[string]string{"app": "db"}
	w := controllertest.New(t, budget("1", ""), other)
	moved := pod("a", true)
	moved.Labels = map[string]string{"app": "db"}
	c := &controller{deps: w.Deps()}
	if got := c.budgetsOf(barqueclient.Event{Old: pod("a", true), New: moved}); len(got) != 2 {
		t.Errorf("woke %v, want both", got)
	}
	if got := c.budgetsOf(barqueclient.Event{New: moved}); len(got) != 1 || got[0].Name != "db" {
		t.Errorf("woke %v, want db", got)
	}
}

func TestStaleDisruptionIsTakenBack(t *testing.T) {
	evicted := pod("a", true)
	evicted.Status.Conditions = append(evicted.Status.Conditions, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: "EvictionByEvictionAPI", LastTransitionTime: metav1.Time{Time: noon},
	})
	w := controllertest.New(t, evicted)
	c := NewStale(w.Deps())
	if again := w.Reconcile(c, evicted).RequeueAfter; again != staleTimeout {
		t.Errorf("looks again in %v", again)
	}
	w.Clock.Step(staleTimeout + time.Second)
	w.Reconcile(c, evicted)
	condition := pods.Condition(controllertest.Reload(w, evicted), corev1.DisruptionTarget)
	if condition == nil || condition.Status != corev1.ConditionFalse || condition.Reason != "" {
		t.Errorf("%+v", condition)
	}
}
