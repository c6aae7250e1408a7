package kit_test

import (
	"errors"
	"reflect"
	"sync/atomic"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

var kind = appsv1.SchemeGroupVersion.WithKind("ReplicaSet")

func pod(name string, owner *appsv1.ReplicaSet, l map[string]string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: l}}
	if owner != nil {
		p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(owner, kind)}
	}
	return p
}

func TestRelate(t *testing.T) {
	now := metav1.Now()
	owner := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rs", UID: "1"}}
	dying := owner.DeepCopy()
	dying.DeletionTimestamp = &now
	other := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "other", UID: "2"}}
	gone := pod("p", nil, nil)
	gone.DeletionTimestamp = &now
	elsewhere := pod("p", nil, nil)
	elsewhere.Namespace = "elsewhere"
	for name, c := range map[string]struct {
		owner   *appsv1.ReplicaSet
		pod     *corev1.Pod
		matches bool
		want    kit.Relation
	}{
		"owned":                     {owner, pod("p", owner, nil), true, kit.Owned},
		"owned, no match":           {owner, pod("p", owner, nil), false, kit.Release},
		"orphan":                    {owner, pod("p", nil, nil), true, kit.Adopt},
		"orphan, no match":          {owner, pod("p", nil, nil), false, kit.Foreign},
		"orphan, being deleted":     {owner, gone, true, kit.Foreign},
		"orphan, elsewhere":         {owner, elsewhere, true, kit.Foreign},
		"another's":                 {owner, pod("p", other, nil), true, kit.Foreign},
		"dying owner, orphan":       {dying, pod("p", nil, nil), true, kit.Foreign},
		"dying owner, owned":        {dying, pod("p", owner, nil), true, kit.Owned},
		"dying owner, not matching": {dying, pod("p", owner, nil), false, kit.Foreign},
	} {
		if got := kit.Relate(c.owner, c.pod, c.matches); got != c.want {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestClaim(t *testing.T) {
	web := map[string]string{"app": "web"}
	owner := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rs"}}
	w := controllertest.New(t, owner)
	owned, orphan, leaving, foreign := pod("owned", owner, web), pod("orphan", nil, web), pod("leaving", owner, nil), pod("foreign", nil, nil)
	for _, p := range []*corev1.Pod{owned, orphan, leaving, foreign} {
		w.MustCreate(p)
	}
	claimer := kit.Claimer{Client: w, Owner: owner, OwnerKind: kind, Selector: labels.SelectorFromSet(web)}
	got, err := kit.Claim(t.Context(), claimer, []*corev1.Pod{owned, orphan, leaving, foreign})
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 2 || got[0].Name != "owned" || got[1].Name != "orphan" || !metav1.IsControlledBy(got[1], owner) {
		t.Errorf("claimed %v", got)
	}
	if orphan.OwnerReferences != nil {
		t.Error("the object that was passed in was changed")
	}
	if !metav1.IsControlledBy(controllertest.Reload(w, orphan), owner) {
		t.Error("the orphan was not adopted")
	}
	if metav1.GetControllerOf(controllertest.Reload(w, leaving)) != nil {
		t.Error("the pod that matches no longer was not released")
	}
}

func TestClaimDoesNotAdoptForAnOwnerThatIsGone(t *testing.T) {
	web := map[string]string{"app": "web"}
	owner := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "rs"}}
	w := controllertest.New(t, owner)
	orphan := pod("orphan", nil, web)
	w.MustCreate(orphan)
	seen := owner.DeepCopy()
	if err := w.Delete(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	got, err := kit.Claim(t.Context(), kit.Claimer{Client: w, Owner: seen, OwnerKind: kind, Selector: labels.SelectorFromSet(web)}, []*corev1.Pod{orphan})
	if err == nil || len(got) != 0 {
		t.Errorf("claimed %v, error %v", got, err)
	}
	if metav1.GetControllerOf(controllertest.Reload(w, orphan)) != nil {
		t.Error("an owner that is gone adopted a pod")
	}
}

func TestOwnerRequests(t *testing.T) {
	a := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "a", UID: "1"}}
	b := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "b", UID: "2"}}
	adopter := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "ns", Name: "adopter"}}
	requests := kit.Owner("ReplicaSet", func(client.Object) []reconcile.Request { return []reconcile.Request{adopter} })
	for name, c := range map[string]struct {
		e    barqueclient.Event
		want []string
	}{
		"added":           {barqueclient.Event{New: pod("p", a, nil)}, []string{"a"}},
		"changed":         {barqueclient.Event{Old: pod("p", a, nil), New: pod("p", a, nil)}, []string{"a"}},
		"moved":           {barqueclient.Event{Old: pod("p", a, nil), New: pod("p", b, nil)}, []string{"a", "b"}},
		"released":        {barqueclient.Event{Old: pod("p", a, nil), New: pod("p", nil, nil)}, []string{"a", "adopter"}},
		"removed":         {barqueclient.Event{Old: pod("p", a, nil)}, []string{"a"}},
		"orphan added":    {barqueclient.Event{New: pod("p", nil, nil)}, []string{"adopter"}},
		"orphan the same": {barqueclient.Event{Old: pod("p", nil, nil), New: pod("p", nil, nil)}, nil},
		"orphan labelled": {barqueclient.Event{Old: pod("p", nil, nil), New: pod("p", nil, map[string]string{"x": "y"})}, []string{"adopter"}},
		"orphan removed":  {barqueclient.Event{Old: pod("p", nil, nil)}, nil},
	} {
		var got []string
		for _, r := range requests(c.e) {
			got = append(got, r.Name)
		}
		if !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}

func TestSlowStartStopsAfterAFailingBatch(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(0, 200).Draw(t, "n")
		bad := rapid.IntRange(0, 250).Draw(t, "bad")
		var calls, failed atomic.Int32
		seen := make([]atomic.Int32, n)
		ok, err := kit.SlowStart(n, func(i int) error {
			calls.Add(1)
			seen[i].Add(1)
			if i >= bad {
				failed.Add(1)
				return errors.New("no")
			}
			return nil
		})
		for i := range seen {
			if seen[i].Load() > 1 {
				t.Fatalf("call %d was made twice", i)
			}
		}
		if int(calls.Load()) != ok+int(failed.Load()) {
			t.Fatalf("%d calls, %d failed, %d reported to have succeeded", calls.Load(), failed.Load(), ok)
		}
		if bad >= n {
			if err != nil || ok != n {
				t.Fatalf("%d of %d succeeded, error %v", ok, n, err)
			}
		} else if err == nil || int(failed.Load()) > bad+1 {
			t.Fatalf("%d calls failed after %d good ones, error %v", failed.Load(), bad, err)
		}
	})
}

func TestSelectorSelectsNothingWhenEmpty(t *testing.T) {
	for _, s := range []*metav1.LabelSelector{nil, {}, {MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Nonsense"}}}} {
		if kit.Selector(s).Matches(labels.Set{"a": "b"}) {
			t.Errorf("selector %v selects", s)
		}
	}
}
