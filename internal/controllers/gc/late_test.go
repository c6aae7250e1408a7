package gc

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/controllers/controllertest"
)

// collector is a controller that has seen some ConfigMaps, and follows nothing.
func collector(t *testing.T, w *controllertest.World, seen ...*corev1.ConfigMap) *controller {
	t.Helper()
	c := newController(w.Deps())
	kind := corev1.SchemeGroupVersion.WithKind("ConfigMap")
	for _, r := range api.Resources() {
		if groupKind(r) == kind.GroupKind() {
			c.setResource(kind.GroupKind(), r)
		}
	}
	c.graph.follow(kind.GroupKind(), true)
	for _, obj := range seen {
		c.graph.set(newObject(kind, obj))
	}
	return c
}

func named(name string, owners ...string) *corev1.ConfigMap {
	obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)}}
	for _, o := range owners {
		obj.OwnerReferences = append(obj.OwnerReferences, metav1.OwnerReference{APIVersion: "v1", Kind: "ConfigMap", Name: o, UID: types.UID(o)})
	}
	return obj
}

func isThere(t *testing.T, w *controllertest.World, obj *corev1.ConfigMap) bool {
	t.Helper()
	err := w.Get(t.Context(), client.ObjectKeyFromObject(obj), &corev1.ConfigMap{})
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return !apierrors.IsNotFound(err)
}

// TestLateOwner: what depends on an owner that has not come to the image yet stays, and as long as that can't be found
// out.
func TestLateOwner(t *testing.T) {
	dependent := named("dependent", "owner")
	w := controllertest.New(t, named("owner"), dependent)
	c := collector(t, w, dependent)
	w.Late = func(obj client.Object) bool { return obj.GetName() == "owner" }
	w.Cut = errors.New("no quorum")
	if _, err := c.reconcile(t.Context(), request(dependent.UID)); !errors.Is(err, w.Cut) || !isThere(t, w, dependent) {
		t.Errorf("cut off: %v, there %v", err, isThere(t, w, dependent))
	}
	w.Cut = nil
	if result, err := c.reconcile(t.Context(), request(dependent.UID)); err != nil || result.RequeueAfter != lookAgain || !isThere(t, w, dependent) {
		t.Errorf("%v, %v, there %v", result, err, isThere(t, w, dependent))
	}
}

// TestOwnersKnownToBeGone: an owner that was found to be gone is not looked for again for each dependent.
func TestOwnersKnownToBeGone(t *testing.T) {
	first, second, third := named("first", "gone"), named("second", "gone"), named("third", "gone", "gone too")
	w := controllertest.New(t, first, second, third)
	c := collector(t, w, first, second, third)
	if _, err := c.reconcile(t.Context(), request(first.UID)); err != nil || isThere(t, w, first) {
		t.Fatalf("%v, there %v", err, isThere(t, w, first))
	}
	w.Cut = errors.New("no quorum")
	if _, err := c.reconcile(t.Context(), request(second.UID)); err != nil || isThere(t, w, second) {
		t.Errorf("%v, there %v", err, isThere(t, w, second))
	}
	if _, err := c.reconcile(t.Context(), request(third.UID)); !errors.Is(err, w.Cut) || !isThere(t, w, third) {
		t.Errorf("another owner: %v, there %v", err, isThere(t, w, third))
	}
}

// TestNewOwner: an object that was given another owner since it was looked at stays; one that changed otherwise goes.
func TestNewOwner(t *testing.T) {
	for name, change := range map[string]func(*corev1.ConfigMap){
		"another owner": func(m *corev1.ConfigMap) { m.OwnerReferences = named("x", "new").OwnerReferences },
		"data":          func(m *corev1.ConfigMap) { m.Data = map[string]string{"a": "b"} },
	} {
		for _, when := range []string{"before", "while"} {
			dependent := named("dependent", "gone")
			w := controllertest.New(t, named("new"), dependent)
			c := collector(t, w, dependent)
			act := func() { controllertest.Change(w, dependent.DeepCopy(), change) }
			if when == "before" {
				act()
			}
			w.Fail = func(verb string, _ client.Object) error {
				if verb == "delete" {
					w.Fail = nil
					if when == "while" {
						act()
					}
				}
				return nil
			}
			if _, err := c.reconcile(t.Context(), request(dependent.UID)); err != nil {
				t.Errorf("%s changed %s: %v", name, when, err)
			}
			if got, want := isThere(t, w, dependent), name == "another owner"; got != want {
				t.Errorf("%s changed %s: there %v", name, when, got)
			}
		}
	}
}
