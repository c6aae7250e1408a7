package namespace

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

func TestConditions(t *testing.T) {
	now := metav1.Unix(1000, 0)
	left := remaining{kinds: map[string]int{"pods.": 2, "widgets.example.com": 1}, finalizers: map[string]int{"example.com/hold": 3}}
	got := conditions(nil, left, nil, now)
	want := map[corev1.NamespaceConditionType]string{
		corev1.NamespaceDeletionDiscoveryFailure: "False ResourcesDiscovered All resources successfully discovered",
		corev1.NamespaceDeletionGVParsingFailure: "False ParsedGroupVersions All legacy kube types successfully parsed",
		corev1.NamespaceDeletionContentFailure:   "False ContentDeleted All content successfully deleted, may be waiting on finalization",
		corev1.NamespaceContentRemaining:         "True SomeResourcesRemain Some resources are remaining: pods. has 2 resource instances, widgets.example.com has 1 resource instances",
		corev1.NamespaceFinalizersRemaining:      "True SomeFinalizersRemain Some content in the namespace has finalizers remaining: example.com/hold in 3 resource instances",
	}
	for _, c := range got {
		if text := string(c.Status) + " " + c.Reason + " " + c.Message; text != want[c.Type] {
			t.Errorf("%s: %s\nwant %s", c.Type, text, want[c.Type])
		}
		delete(want, c.Type)
	}
	if len(want) > 0 {
		t.Errorf("missing: %v", want)
	}
	later := metav1.Unix(2000, 0)
	again := conditions(got, left, nil, later)
	if !slices.EqualFunc(got, again, func(a, b corev1.NamespaceCondition) bool { return a == b }) {
		t.Error("a second look changes the conditions")
	}
}

func TestPodsGoFirst(t *testing.T) {
	all := ordered(api.Resources())
	if all[0].Resource != "pods" || all[0].Group != "" {
		t.Errorf("%s goes first", all[0].GroupResource)
	}
	if len(all) != len(api.Resources()) {
		t.Error("a kind is missing")
	}
}

// elsewhere are other servers.
type elsewhere struct {
	left  map[schema.GroupResource][]metav1.PartialObjectMetadata
	mute  []string
	err   error
	asked int
}

func (e *elsewhere) EmptyNamespace(context.Context, string) (map[schema.GroupResource][]metav1.PartialObjectMetadata, []string, error) {
	e.asked++
	return e.left, e.mute, e.err
}

// A namespace does not go while other servers keep something of it, or don't say whether they do.
func TestWaitsForOtherServers(t *testing.T) {
	now := metav1.Now()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}
	ns.DeletionTimestamp, ns.Finalizers = &now, []string{"example.com/hold"}
	w := controllertest.New(t)
	held := ns.DeepCopy()
	held.DeletionTimestamp = nil
	w.MustCreate(held)
	if err := w.Delete(t.Context(), held); err != nil {
		t.Fatal(err)
	}
	flunders := schema.GroupResource{Group: "wardle.example.com", Resource: "flunders"}
	there := &elsewhere{err: errors.New("it refuses")}
	c := New(w.Deps(), there)
	expect := func(what string, kind corev1.NamespaceConditionType, status corev1.ConditionStatus, says string, finalizers int) {
		t.Helper()
		_, err := c.Reconcile(t.Context(), kit.RequestFor(ns))
		if (err != nil) != (there.err != nil || there.mute != nil) {
			t.Errorf("%s: %v", what, err)
		}
		got := controllertest.Reload(w, ns)
		i := slices.IndexFunc(got.Status.Conditions, func(c corev1.NamespaceCondition) bool { return c.Type == kind })
		if i < 0 || got.Status.Conditions[i].Status != status || !strings.Contains(got.Status.Conditions[i].Message, says) || len(got.Spec.Finalizers) != finalizers {
			t.Errorf("%s: %+v, held by %v", what, got.Status.Conditions, got.Spec.Finalizers)
		}
	}
	expect("a server that refuses", corev1.NamespaceDeletionContentFailure, corev1.ConditionTrue, "it refuses", 1)
	there.err, there.mute = nil, []string{"v1.wardle.example.com"}
	expect("a silent server", corev1.NamespaceDeletionDiscoveryFailure, corev1.ConditionTrue, "1 failing: v1.wardle.example.com", 1)
	there.mute = nil
	there.left = map[schema.GroupResource][]metav1.PartialObjectMetadata{flunders: {{ObjectMeta: metav1.ObjectMeta{Name: "a", Finalizers: []string{"example.com/hold"}}}}}
	expect("something left", corev1.NamespaceContentRemaining, corev1.ConditionTrue, "flunders.wardle.example.com has 1 resource instances", 1)
}

// What pods stand on stays until the last of them is gone.
func TestEmptiesANamespaceThenLetsItGo(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}
	held := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", Finalizers: []string{"example.com/hold"}}}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}
	other := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "s"}}
	w := controllertest.New(t, ns, held, secret, other)
	there := &elsewhere{left: map[schema.GroupResource][]metav1.PartialObjectMetadata{}}
	c := &controller{client: w, deps: w.Deps(), elsewhere: there}

	left, err := c.empty(t.Context(), "ns")
	if err != nil {
		t.Fatal(err)
	}
	if left.kinds["pods."] != 1 || left.finalizers["example.com/hold"] != 1 {
		t.Errorf("left: %+v", left)
	}
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(secret), &corev1.Secret{}); err != nil {
		t.Errorf("the secret went before the pod: %v", err)
	}
	if there.asked != 0 {
		t.Error("what other servers keep went before the pod")
	}

	controllertest.Change(w, held, func(p *corev1.Pod) { p.Finalizers = nil })
	if left, err = c.empty(t.Context(), "ns"); err != nil || len(left.kinds) != 0 {
		t.Fatalf("left: %+v, %v", left, err)
	}
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(secret), &corev1.Secret{}); !apierrors.IsNotFound(err) {
		t.Errorf("the secret is still there: %v", err)
	}
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(other), &corev1.Secret{}); err != nil {
		t.Errorf("another namespace's secret: %v", err)
	}
}

// What another server has just made in a namespace goes with it, and before it.
func TestLateObject(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns", Finalizers: []string{"example.com/hold"}},
		Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}
	w := controllertest.New(t, ns, secret)
	if err := w.Delete(t.Context(), ns); err != nil {
		t.Fatal(err)
	}
	w.Late = func(obj client.Object) bool { _, late := obj.(*corev1.Secret); return late }
	w.Cut = errors.New("no quorum")
	c := New(w.Deps(), &elsewhere{})
	if _, err := c.Reconcile(t.Context(), kit.RequestFor(ns)); !errors.Is(err, w.Cut) {
		t.Errorf("cut off: %v", err)
	}
	w.Cut = nil
	w.Reconcile(c, ns)
	if err := w.Get(t.Context(), client.ObjectKeyFromObject(secret), secret); !apierrors.IsNotFound(err) {
		t.Errorf("the secret is left behind: %v", err)
	}
}
