package replicaset

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

var web = map[string]string{"app": "web"}

func newSet(replicas int32) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: appsv1.ReplicaSetSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: web},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: web},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web"}}},
			},
		},
	}
}

func TestDecideNeverOvershoots(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 600).Draw(t, "active")
		want := rapid.Int32Range(0, 1200).Draw(t, "replicas")
		active := make([]*corev1.Pod, n)
		for i := range active {
			active[i] = &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint(i)}}
		}
		p := decide(want, active, nil, time.Now())
		after := n + p.create - len(p.delete)
		switch {
		case p.create > 0 && len(p.delete) > 0:
			t.Fatal("creates and deletes at once")
		case n < int(want) && (after > int(want) || p.create == 0), n > int(want) && (after < int(want) || len(p.delete) == 0), n == int(want) && after != n:
			t.Fatalf("from %d to %d, wanted %d", n, after, want)
		case p.create > kit.MaxBurst || len(p.delete) > kit.MaxBurst:
			t.Fatalf("%d creations, %d deletions at once", p.create, len(p.delete))
		}
	})
}

func TestScalesUpAndDown(t *testing.T) {
	set := newSet(3)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	w.Settle(c)
	list := w.Pods()
	if len(list) != 3 {
		t.Fatalf("%d pods", len(list))
	}
	for _, p := range list {
		if !metav1.IsControlledBy(&p, set) || p.Labels["app"] != "web" || !strings.HasPrefix(p.Name, "web-") || p.Spec.Containers[0].Image != "web" {
			t.Errorf("pod %+v", p)
		}
	}
	w.Run(&list[0], true)
	w.Run(&list[1], false)
	w.Settle(c)
	s := controllertest.Reload(w, set).Status
	if s.Replicas != 3 || s.ReadyReplicas != 1 || s.AvailableReplicas != 1 || s.FullyLabeledReplicas != 3 || s.ObservedGeneration != 1 || *s.TerminatingReplicas != 0 {
		t.Errorf("status %+v", s)
	}
	controllertest.Change(w, set, func(s *appsv1.ReplicaSet) { s.Spec.Replicas = ptr.To[int32](1) })
	w.Settle(c)
	if left := w.Pods(); len(left) != 1 || left[0].Name != list[0].Name {
		t.Errorf("the ready pod was not the one to stay: %v", left)
	}
	events := w.Events()
	if !slices.Contains(events, "Normal SuccessfulCreate Created pod: "+list[0].Name) || !slices.Contains(events, "Normal SuccessfulDelete Deleted pod: "+list[1].Name) {
		t.Errorf("events %q", events)
	}
}

func TestReplacesEndedAndDeletedPods(t *testing.T) {
	set := newSet(2)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	w.Settle(c)
	list := w.Pods()
	w.End(&list[0], corev1.PodFailed)
	controllertest.Change(w, &list[1], func(p *corev1.Pod) { p.Finalizers = []string{"test/hold"} })
	if err := w.Delete(t.Context(), &list[1]); err != nil {
		t.Fatal(err)
	}
	w.Settle(c)
	if n := len(w.Pods()); n != 4 {
		t.Errorf("%d pods, want 2 new ones beside the old", n)
	}
	if s := controllertest.Reload(w, set).Status; s.Replicas != 2 || *s.TerminatingReplicas != 1 {
		t.Errorf("status %+v", s)
	}
}

func TestAdoptsAndReleases(t *testing.T) {
	set := newSet(1)
	orphan := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "orphan", Labels: web}}
	w := controllertest.New(t, set, orphan)
	c := New(w.Deps())
	if requests := c.Watches[1].Requests(eventOf(orphan)); len(requests) != 1 || requests[0].Name != "web" {
		t.Fatalf("the orphan wakes %v", requests)
	}
	w.Settle(c)
	if list := w.Pods(); len(list) != 1 || !metav1.IsControlledBy(&list[0], set) {
		t.Fatalf("the orphan was not adopted: %v", list)
	}
	controllertest.Change(w, orphan, func(p *corev1.Pod) { p.Labels = nil })
	w.Settle(c)
	if metav1.GetControllerOf(controllertest.Reload(w, orphan)) != nil || len(w.Pods()) != 2 {
		t.Error("the pod that matches no longer was not released and replaced")
	}
}

func TestReportsFailure(t *testing.T) {
	set := newSet(5)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	w.Fail = func(verb string, _ client.Object) error {
		if verb == "create" {
			return errors.New("exceeded quota")
		}
		return nil
	}
	if _, err := c.Reconcile(t.Context(), kit.RequestFor(set)); err == nil {
		t.Fatal("no error")
	}
	conditions := controllertest.Reload(w, set).Status.Conditions
	if len(conditions) != 1 || conditions[0].Type != appsv1.ReplicaSetReplicaFailure || conditions[0].Reason != "FailedCreate" || !strings.Contains(conditions[0].Message, "exceeded quota") {
		t.Errorf("conditions %+v", conditions)
	}
	if n := len(w.Events()); n != 1 {
		t.Errorf("%d events for a quota that is used up: slow start was not slow", n)
	}
	w.Fail = nil
	w.Settle(c)
	if s := controllertest.Reload(w, set).Status; len(s.Conditions) != 0 || s.Replicas != 5 {
		t.Errorf("status %+v", s)
	}
}

func TestTerminatingNamespaceIsNoFailure(t *testing.T) {
	set := newSet(2)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	w.Fail = func(verb string, _ client.Object) error {
		if verb != "create" {
			return nil
		}
		err := apierrors.NewForbidden(corev1.Resource("pods"), "web", errors.New("being terminated"))
		err.ErrStatus.Details.Causes = append(err.ErrStatus.Details.Causes, metav1.StatusCause{Type: corev1.NamespaceTerminatingCause})
		return err
	}
	w.Settle(c)
	if n := len(w.Events()); n != 0 {
		t.Errorf("events %q", w.Events())
	}
}

func TestMinReadySeconds(t *testing.T) {
	set := newSet(1)
	set.Spec.MinReadySeconds = 10
	w := controllertest.New(t, set)
	c := New(w.Deps())
	w.Settle(c)
	w.Run(&w.Pods()[0], true)
	w.Clock.Step(4 * time.Second)
	if result := w.Reconcile(c, set); result.RequeueAfter != 6*time.Second {
		t.Errorf("looks again after %v", result.RequeueAfter)
	}
	if s := controllertest.Reload(w, set).Status; s.ReadyReplicas != 1 || s.AvailableReplicas != 0 {
		t.Errorf("status %+v", s)
	}
	w.Clock.Step(6 * time.Second)
	if result := w.Reconcile(c, set); result.RequeueAfter != 0 {
		t.Errorf("looks again after %v", result.RequeueAfter)
	}
	if s := controllertest.Reload(w, set).Status; s.AvailableReplicas != 1 {
		t.Errorf("status %+v", s)
	}
}

func TestReplicationController(t *testing.T) {
	template := newSet(0).Spec.Template
	rc := &corev1.ReplicationController{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec:       corev1.ReplicationControllerSpec{Replicas: ptr.To[int32](2), Selector: web, Template: &template},
	}
	w := controllertest.New(t, rc)
	w.Settle(NewReplicationController(w.Deps()))
	list := w.Pods()
	if len(list) != 2 || !metav1.IsControlledBy(&list[0], rc) || list[0].OwnerReferences[0].Kind != "ReplicationController" {
		t.Fatalf("pods %+v", list)
	}
	if s := controllertest.Reload(w, rc).Status; s.Replicas != 2 || s.FullyLabeledReplicas != 2 || s.ObservedGeneration != 1 {
		t.Errorf("status %+v", s)
	}
}

func TestPrefersNodesWithSiblings(t *testing.T) {
	owner := metav1.OwnerReference{APIVersion: "apps/v1", Kind: "Deployment", Name: "web", UID: "d", Controller: ptr.To(true)}
	set, sibling := newSet(2), newSet(1)
	set.OwnerReferences, sibling.OwnerReferences = []metav1.OwnerReference{owner}, []metav1.OwnerReference{owner}
	sibling.Name, sibling.Spec.Selector.MatchLabels = "sibling", map[string]string{"app": "sibling"}
	sibling.Spec.Template.Labels = sibling.Spec.Selector.MatchLabels
	w := controllertest.New(t, set, sibling)
	c := New(w.Deps())
	w.Settle(c)
	var crowded string
	for i, p := range w.Pods() {
		w.Run(&p, true)
		node := fmt.Sprint("node-", i)
		if p.Labels["app"] == "sibling" || crowded == "" {
			node = "crowded"
		}
		if p.Labels["app"] == "web" && crowded == "" {
			crowded = p.Name
			node = "crowded"
		}
		controllertest.Change(w, &p, func(p *corev1.Pod) { p.Spec.NodeName = node })
	}
	controllertest.Change(w, set, func(s *appsv1.ReplicaSet) { s.Spec.Replicas = ptr.To[int32](1) })
	w.Settle(c)
	for _, p := range w.Pods() {
		if p.Name == crowded {
			t.Error("the pod beside its sibling stayed")
		}
	}
}
