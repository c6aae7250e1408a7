package kit_test

import (
	"errors"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

func TestAdoptersAreThoseWhoseSelectorTakesTheOrphan(t *testing.T) {
	set := func(namespace, name string, selector *metav1.LabelSelector) *appsv1.ReplicaSet {
		return &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: appsv1.ReplicaSetSpec{Selector: selector}}
	}
	web := map[string]string{"app": "web"}
	w := controllertest.New(t,
		set("ns", "takes", &metav1.LabelSelector{MatchLabels: web}),
		set("ns", "other", &metav1.LabelSelector{MatchLabels: map[string]string{"app": "db"}}),
		set("ns", "nothing", &metav1.LabelSelector{}),
		set("elsewhere", "takes", &metav1.LabelSelector{MatchLabels: web}))
	adopters := kit.Adopters(w.Deps(), &appsv1.ReplicaSetList{}, func(rs *appsv1.ReplicaSet) *metav1.LabelSelector { return rs.Spec.Selector })
	for range 2 { // the second call must not see what the first one listed
		got := adopters(pod("orphan", nil, web))
		if len(got) != 1 || got[0].String() != "ns/takes" {
			t.Errorf("adopters %v", got)
		}
	}
	if got := adopters(pod("orphan", nil, nil)); got != nil {
		t.Errorf("adopters of a pod without labels: %v", got)
	}
}

func TestListsLackWhatCannotBeRead(t *testing.T) {
	w := controllertest.New(t, pod("a", nil, nil), pod("b", nil, nil))
	w.Damaged = func(obj client.Object) bool { return obj.GetName() == "a" }
	deps := w.Deps()
	got, err := kit.List[*corev1.Pod](t.Context(), deps.Client, &corev1.PodList{})
	if len(got) != 1 || got[0].Name != "b" || err == nil || kit.Readable(err) != nil {
		t.Errorf("%v, %v", got, err)
	}
	if requests := kit.Where(deps, &corev1.PodList{}, func(*corev1.Pod) bool { return true }); len(requests) != 1 || requests[0].Name != "b" {
		t.Errorf("requests %v", requests)
	}
	if other := errors.New("no quorum"); kit.Readable(other) == nil {
		t.Error("another error is forgiven")
	}
}

func TestConcerns(t *testing.T) {
	web := labels.SelectorFromSet(map[string]string{"app": "web"})
	in, out := pod("p", nil, map[string]string{"app": "web"}), pod("p", nil, nil)
	for name, c := range map[string]struct {
		e    barqueclient.Event
		want bool
	}{
		"came":   {barqueclient.Event{New: in}, true},
		"went":   {barqueclient.Event{Old: in}, true},
		"left":   {barqueclient.Event{Old: in, New: out}, true},
		"joined": {barqueclient.Event{Old: out, New: in}, true},
		"never":  {barqueclient.Event{Old: out, New: out}, false},
	} {
		if got := kit.Concerns(web, c.e); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
}

func TestNamespaceLives(t *testing.T) {
	ending := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ending"}, Status: corev1.NamespaceStatus{Phase: corev1.NamespaceTerminating}}
	w := controllertest.New(t, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "living"}}, ending)
	for name, want := range map[string]bool{"living": true, "ending": false, "gone": false} {
		if got, err := kit.NamespaceLives(t.Context(), w, name); err != nil || got != want {
			t.Errorf("%s: %v, %v", name, got, err)
		}
	}
}
