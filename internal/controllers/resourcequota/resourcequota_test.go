package resourcequota_test

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"go.uber.org/goleak"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/resourcequota"
	"barque.dev/internal/testkit"
)

func limited(pairs ...string) *corev1.ResourceQuota {
	q := &corev1.ResourceQuota{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "q"}, Spec: corev1.ResourceQuotaSpec{Hard: corev1.ResourceList{}}}
	for i := 0; i < len(pairs); i += 2 {
		q.Spec.Hard[corev1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return q
}

func asking(name, cpu string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: name}}
	p.Spec.NodeName = "n"
	p.Spec.Containers = []corev1.Container{{Name: "c", Image: "i", Resources: corev1.ResourceRequirements{
		Requests: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse(cpu)}}}}
	return p
}

// run runs the controller until the test ends.
func run(t *testing.T, w *controllertest.World) {
	t.Helper()
	r, err := controllers.NewRunner(controllers.RunnerConfig{
		Watcher: w, Controllers: []controllers.Controller{resourcequota.New(w.Deps())}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- r.Run(ctx, func() { close(ready) }) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		goleak.VerifyNone(t)
	})
	<-ready
}

// shows waits until a quota's status shows that much of each resource, within the second that is
// promised and some more for busy machines.
func shows(t *testing.T, w *controllertest.World, q *corev1.ResourceQuota, pairs ...string) {
	t.Helper()
	err := testkit.Poll(10*time.Second, func() error {
		if err := w.Get(t.Context(), client.ObjectKeyFromObject(q), q); err != nil {
			return err
		}
		right := len(q.Status.Hard) == len(q.Spec.Hard)
		for i := 0; i < len(pairs); i += 2 {
			used, ok := q.Status.Used[corev1.ResourceName(pairs[i])]
			right = right && ok && used.Cmp(resource.MustParse(pairs[i+1])) == 0
		}
		if !right {
			return fmt.Errorf("status %+v, want %v", q.Status, pairs)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestStatus(t *testing.T) {
	one, two := asking("one", "200m"), asking("two", "300m")
	w := controllertest.New(t, one, two, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "m"}},
		&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "b", Name: "elsewhere"}})
	run(t, w)
	q := limited("pods", "5", "requests.cpu", "1", "services", "3")
	w.MustCreate(q)
	shows(t, w, q, "pods", "2", "requests.cpu", "500m", "services", "0")

	w.End(one, corev1.PodSucceeded)
	shows(t, w, q, "pods", "1", "requests.cpu", "300m")

	if err := w.Delete(t.Context(), two); err != nil {
		t.Fatal(err)
	}
	shows(t, w, q, "pods", "0", "requests.cpu", "0")

	controllertest.Change(w, q, func(q *corev1.ResourceQuota) {
		q.Spec.Hard = corev1.ResourceList{"pods": resource.MustParse("7"), "count/pods": resource.MustParse("9")}
	})
	shows(t, w, q, "pods", "0", "count/pods", "1")
	if _, old := q.Status.Used["services"]; old {
		t.Errorf("used of what is not limited: %v", q.Status.Used)
	}
}

func TestScopes(t *testing.T) {
	brief := asking("brief", "200m")
	seconds := int64(60)
	brief.Spec.ActiveDeadlineSeconds = &seconds
	high := asking("high", "1")
	high.Spec.PriorityClassName = "high"
	terminating := limited("pods", "5")
	terminating.Spec.Scopes = []corev1.ResourceQuotaScope{corev1.ResourceQuotaScopeTerminating}
	important := limited("pods", "5")
	important.Name = "important"
	important.Spec.ScopeSelector = &corev1.ScopeSelector{MatchExpressions: []corev1.ScopedResourceSelectorRequirement{
		{ScopeName: corev1.ResourceQuotaScopePriorityClass, Operator: corev1.ScopeSelectorOpIn, Values: []string{"high"}}}}
	w := controllertest.New(t, brief, high, asking("plain", "1"))
	run(t, w)
	w.MustCreate(terminating)
	w.MustCreate(important)
	shows(t, w, terminating, "pods", "1")
	shows(t, w, important, "pods", "1")
	// A pod that gets a deadline moves to the other scope.
	controllertest.Change(w, high, func(p *corev1.Pod) { p.Spec.ActiveDeadlineSeconds = &seconds })
	shows(t, w, terminating, "pods", "2")
}
