package registry_test

import (
	"testing"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
)

func TestDeleteAnswersWithAStatus(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	result, deleted, err := s.Delete(t.Context(), s.req("configmaps", "default", "one"), &metav1.DeleteOptions{})
	if err != nil || !deleted {
		t.Fatalf("delete: %v, deleted %v", err, deleted)
	}
	status := kept2[*metav1.Status](t, result.Object)
	if status.Status != metav1.StatusSuccess || status.Details.Name != "one" || status.Details.Kind != "configmaps" || status.Details.UID != made.UID {
		t.Errorf("status is %s", asJSON(t, status))
	}
	if _, _, err = s.Delete(t.Context(), s.req("configmaps", "default", "one"), nil); !apierrors.IsNotFound(err) {
		t.Errorf("again: %v", err)
	}
}

// A dry run answers as the deletion would.
func TestDryDeletionAnswersWithAStatus(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	result, deleted, err := s.Delete(t.Context(), s.req("configmaps", "default", "one"), &metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}})
	if err != nil || !deleted {
		t.Fatalf("delete: %v, deleted %v", err, deleted)
	}
	if status := kept2[*metav1.Status](t, result.Object); status.Status != metav1.StatusSuccess || status.Details.UID != made.UID {
		t.Errorf("status is %s", asJSON(t, status))
	}
	get[*corev1.ConfigMap](s, "configmaps", "default", "one")
	result, _, err = s.Delete(t.Context(), s.req("configmaps", "default", "one"),
		&metav1.DeleteOptions{DryRun: []string{metav1.DryRunAll}, PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)})
	if err != nil {
		t.Fatal(err)
	}
	if held := kept2[*corev1.ConfigMap](t, result.Object); held.DeletionTimestamp == nil {
		t.Errorf("one that would stay is shown as %s", asJSON(t, held))
	}
}

// A definition that is being deleted is marked, whatever the options say about its dependents.
func TestDeletionOfDefinitions(t *testing.T) {
	s := start(t, nil)
	const name = "ships.fleet.example.com"
	create[*apiextensionsv1.CustomResourceDefinition](s, "customresourcedefinitions.apiextensions.k8s.io", "", decode[*apiextensionsv1.CustomResourceDefinition](t, `
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: ships.fleet.example.com}
spec:
  group: fleet.example.com
  scope: Cluster
  names: {plural: ships, singular: ship, kind: Ship}
  versions: [{name: v1, served: true, storage: true, schema: {openAPIV3Schema: {type: object}}}]
`))
	req := s.req("customresourcedefinitions.apiextensions.k8s.io", "", name)
	other := &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr.To(types.UID("other"))}}
	if _, _, err := s.Delete(t.Context(), req, other); !apierrors.IsConflict(err) {
		t.Errorf("another UID: %v", err)
	}
	foreground := &metav1.DeleteOptions{PropagationPolicy: ptr.To(metav1.DeletePropagationForeground)}
	result, deleted, err := s.Delete(t.Context(), req, foreground)
	if err != nil || deleted {
		t.Fatalf("delete: %v, deleted %v", err, deleted)
	}
	crd := kept[*apiextensionsv1.CustomResourceDefinition](s, result)
	if len(crd.Finalizers) != 1 || crd.Finalizers[0] != apiextensionsv1.CustomResourceCleanupFinalizer {
		t.Errorf("finalizers %v", crd.Finalizers)
	}
	if crd.DeletionTimestamp == nil || crd.DeletionGracePeriodSeconds != nil || crd.Generation != 1 {
		t.Errorf("marked as %s", asJSON(t, crd.ObjectMeta))
	}
}

func kept2[T any](tb testing.TB, v any) T {
	tb.Helper()
	out, ok := v.(T)
	if !ok {
		tb.Fatalf("result is a %T", v)
	}
	return out
}

func TestPreconditions(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	req := s.req("configmaps", "default", "one")
	_, _, err := s.Delete(t.Context(), req, &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: ptr.To(types.UID("other"))}})
	if !apierrors.IsConflict(err) {
		t.Errorf("another UID: %v", err)
	}
	_, _, err = s.Delete(t.Context(), req, &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{ResourceVersion: ptr.To("1")}})
	if !apierrors.IsConflict(err) {
		t.Errorf("another version: %v", err)
	}
	_, deleted, err := s.Delete(t.Context(), req, &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &made.UID, ResourceVersion: &made.ResourceVersion}})
	if err != nil || !deleted {
		t.Errorf("the right ones: %v", err)
	}
}

func TestFinalizersHoldAnObject(t *testing.T) {
	s := start(t, nil)
	cm := newConfigMap("one", nil)
	cm.Finalizers = []string{"example.com/hold"}
	create[*corev1.ConfigMap](s, "configmaps", "default", cm)
	req := s.req("configmaps", "default", "one")
	if _, deleted, err := s.Delete(t.Context(), req, nil); err != nil || deleted {
		t.Fatalf("delete: %v, deleted %v", err, deleted)
	}
	held := get[*corev1.ConfigMap](s, "configmaps", "default", "one")
	if held.DeletionTimestamp == nil || *held.DeletionGracePeriodSeconds != 0 {
		t.Errorf("metadata is %s", asJSON(t, held.ObjectMeta))
	}
	if _, _, err := s.Delete(t.Context(), req, nil); err != nil {
		t.Error(err)
	}
	if again := get[*corev1.ConfigMap](s, "configmaps", "default", "one"); again.ResourceVersion != held.ResourceVersion {
		t.Error("deleting it twice wrote something")
	}
	held.Finalizers = nil
	if _, _, err := s.Update(t.Context(), req, held, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), req, nil); !apierrors.IsNotFound(err) {
		t.Errorf("without finalizers: %v", err)
	}
}

func TestPropagationPolicies(t *testing.T) {
	s := start(t, nil)
	for policy, want := range map[metav1.DeletionPropagation]string{
		metav1.DeletePropagationOrphan: metav1.FinalizerOrphanDependents, metav1.DeletePropagationForeground: metav1.FinalizerDeleteDependents,
	} {
		create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
		req := s.req("configmaps", "default", "one")
		if _, deleted, err := s.Delete(t.Context(), req, &metav1.DeleteOptions{PropagationPolicy: &policy}); err != nil || deleted {
			t.Fatalf("%s: %v, deleted %v", policy, err, deleted)
		}
		held := get[*corev1.ConfigMap](s, "configmaps", "default", "one")
		if len(held.Finalizers) != 1 || held.Finalizers[0] != want || held.DeletionTimestamp == nil {
			t.Errorf("%s: metadata is %s", policy, asJSON(t, held.ObjectMeta))
		}
		held.Finalizers = nil
		if _, _, err := s.Update(t.Context(), req, held, nil); err != nil {
			t.Fatal(err)
		}
	}
	// batch/v1 jobs keep their pods when nobody says otherwise.
	job := decode[*batchv1.Job](t, `
apiVersion: batch/v1
kind: Job
metadata: {name: once, namespace: default}
spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: x}]}}}
`)
	create[*batchv1.Job](s, "jobs.batch", "default", job)
	if _, deleted, err := s.Delete(t.Context(), s.req("jobs.batch", "default", "once"), &metav1.DeleteOptions{}); err != nil || deleted {
		t.Fatalf("job: %v, deleted %v", err, deleted)
	}
	if got := get[*batchv1.Job](s, "jobs.batch", "default", "once"); len(got.Finalizers) != 1 || got.Finalizers[0] != metav1.FinalizerOrphanDependents {
		t.Errorf("job's finalizers are %v", got.Finalizers)
	}
}

func TestGracefulDeletionOfPods(t *testing.T) {
	s := start(t, nil)
	running := func(name string) {
		create[*corev1.Pod](s, "pods", "default", newPod(name))
		bindPod(s, name, "node1")
		pod := get[*corev1.Pod](s, "pods", "default", name)
		pod.Status.Phase = corev1.PodRunning
		if _, _, err := s.Update(t.Context(), s.sub("pods", "default", name, "status"), pod, nil); err != nil {
			t.Fatal(err)
		}
	}
	running("web")
	req := s.req("pods", "default", "web")
	result, deleted, err := s.Delete(t.Context(), req, &metav1.DeleteOptions{})
	if err != nil || deleted {
		t.Fatalf("delete: %v, deleted %v", err, deleted)
	}
	pod := kept[*corev1.Pod](s, result)
	if pod.DeletionTimestamp == nil || *pod.DeletionGracePeriodSeconds != 30 || pod.Generation != 2 {
		t.Errorf("metadata is %s", asJSON(t, pod.ObjectMeta))
	}
	// A longer period changes nothing, a shorter one does.
	if _, _, err = s.Delete(t.Context(), req, &metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](60)}); err != nil {
		t.Error(err)
	}
	if got := get[*corev1.Pod](s, "pods", "default", "web"); got.ResourceVersion != pod.ResourceVersion {
		t.Error("a longer grace period wrote something")
	}
	if _, _, err = s.Delete(t.Context(), req, &metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](5)}); err != nil {
		t.Error(err)
	}
	if got := get[*corev1.Pod](s, "pods", "default", "web"); *got.DeletionGracePeriodSeconds != 5 {
		t.Errorf("grace period is %d", *got.DeletionGracePeriodSeconds)
	}
	// The agent's last word.
	result, deleted, err = s.Delete(t.Context(), req, &metav1.DeleteOptions{GracePeriodSeconds: ptr.To[int64](0)})
	if err != nil || !deleted {
		t.Fatalf("delete: %v, deleted %v", err, deleted)
	}
	if kept[*corev1.Pod](s, result).Name != "web" {
		t.Error("the answer is not the pod")
	}
	if _, err := s.Get(t.Context(), req, nil); !apierrors.IsNotFound(err) {
		t.Errorf("afterwards: %v", err)
	}
	// A pod that was never scheduled needs no grace.
	create[*corev1.Pod](s, "pods", "default", newPod("pending"))
	if _, deleted, err = s.Delete(t.Context(), s.req("pods", "default", "pending"), &metav1.DeleteOptions{}); err != nil || !deleted {
		t.Errorf("a pending pod: %v, deleted %v", err, deleted)
	}
}

func bindPod(s *server, pod, node string) {
	s.tb.Helper()
	binding := &corev1.Binding{ObjectMeta: metav1.ObjectMeta{Name: pod, Namespace: "default"}, Target: corev1.ObjectReference{Kind: "Node", Name: node}}
	if _, err := s.Create(s.tb.Context(), s.sub("pods", "default", pod, "binding"), binding, nil); err != nil {
		s.tb.Fatal(err)
	}
}

func TestDeleteCollection(t *testing.T) {
	s := start(t, nil)
	for _, name := range []string{"a", "b", "c", "d"} {
		cm := newConfigMap(name, nil)
		cm.Labels = map[string]string{"keep": map[bool]string{true: "yes", false: "no"}[name == "c"]}
		create[*corev1.ConfigMap](s, "configmaps", "default", cm)
	}
	selector, err := labels.Parse("keep=no")
	if err != nil {
		t.Fatal(err)
	}
	result, err := s.DeleteCollection(t.Context(), s.req("configmaps", "default", ""), &metav1.DeleteOptions{}, &metainternalversion.ListOptions{LabelSelector: selector})
	if err != nil {
		t.Fatal(err)
	}
	if got := kept2[*corev1.ConfigMapList](t, result.Object); len(got.Items) != 3 {
		t.Errorf("deleted %d", len(got.Items))
	}
	list, err := s.List(t.Context(), s.req("configmaps", "default", ""), nil)
	if err != nil || len(list.Entries) != 1 || list.Entries[0].Key().Name != "c" {
		t.Errorf("left are %v, %v", list, err)
	}
}
