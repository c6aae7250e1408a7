package namespace

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/controllers/controllertest"
)

func TestConditions(t *testing.T) {
	now := metav1.Unix(1000, 0)
	left := remaining{kinds: map[string]int{"pods.": 2, "widgets.example.com": 1}, finalizers: map[string]int{"example.com/hold": 3}}
	got := conditions(nil, left, nil, now)
	want := map[corev1.NamespaceConditionType]string{
		corev1.NamespaceDeletionContentFailure: "False ContentDeleted All content successfully deleted, may be waiting on finalization",
		corev1.NamespaceContentRemaining:       "True SomeResourcesRemain Some resources are remaining: pods. has 2 resource instances, widgets.example.com has 1 resource instances",
		corev1.NamespaceFinalizersRemaining:    "True SomeFinalizersRemain Some content in the namespace has finalizers remaining: example.com/hold in 3 resource instances",
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

// What pods stand on stays until the last of them is gone.
func TestEmptiesANamespaceThenLetsItGo(t *testing.T) {
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "ns"}, Spec: corev1.NamespaceSpec{Finalizers: []corev1.FinalizerName{corev1.FinalizerKubernetes}}}
	held := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "p", Finalizers: []string{"example.com/hold"}}}
	secret := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "s"}}
	other := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Name: "s"}}
	w := controllertest.New(t, ns, held, secret, other)
	c := &controller{client: w, deps: w.Deps()}

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
