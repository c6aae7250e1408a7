package registry_test

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

func TestCreateAndGet(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", map[string]string{"a": "1"}))
	if made.UID == "" || made.ResourceVersion == "" || made.CreationTimestamp.IsZero() {
		t.Fatalf("metadata is incomplete: %+v", made.ObjectMeta)
	}
	if len(made.ManagedFields) != 1 || made.ManagedFields[0].Manager != "test" ||
		made.ManagedFields[0].FieldsV1.GetRawString() != `{"f:data":{".":{},"f:a":{}}}` {
		t.Errorf("managed fields are %s", asJSON(t, made.ManagedFields))
	}
	if got := get[*corev1.ConfigMap](s, "configmaps", "default", "one"); asJSON(t, got) != asJSON(t, made) {
		t.Errorf("got %s, made %s", asJSON(t, got), asJSON(t, made))
	}
	_, err := s.Create(t.Context(), s.req("configmaps", "default", ""), newConfigMap("one", nil), nil)
	if !apierrors.IsAlreadyExists(err) {
		t.Errorf("creating it again: %v", err)
	}
	_, err = s.Get(t.Context(), s.req("configmaps", "default", "two"), nil)
	if !apierrors.IsNotFound(err) || err.Error() != `configmaps "two" not found` {
		t.Errorf("getting another: %v", err)
	}
}

func TestGeneratedNamesDiffer(t *testing.T) {
	s := start(t, nil)
	seen := map[string]bool{}
	for range 10 {
		cm := newConfigMap("", nil)
		cm.GenerateName = "x-"
		made := create[*corev1.ConfigMap](s, "configmaps", "default", cm)
		if !strings.HasPrefix(made.Name, "x-") || seen[made.Name] {
			t.Fatalf("name %q", made.Name)
		}
		seen[made.Name] = true
	}
}

func TestInvalidObjectsAreRefused(t *testing.T) {
	s := start(t, nil)
	pod := newPod("Bad_Name")
	_, err := s.Create(t.Context(), s.req("pods", "default", ""), pod, nil)
	if !apierrors.IsInvalid(err) || !strings.Contains(err.Error(), "metadata.name") {
		t.Errorf("got %v", err)
	}
	other := newConfigMap("a", nil)
	other.Namespace = "kube-system"
	_, err = s.Create(t.Context(), s.req("configmaps", "default", ""), other, nil)
	if !apierrors.IsBadRequest(err) {
		t.Errorf("another namespace in the object: %v", err)
	}
}

func TestUpdateChecksTheVersion(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	first := made.DeepCopy()
	first.Data = map[string]string{"a": "1"}
	result, created, err := s.Update(t.Context(), s.req("configmaps", "default", "one"), first, nil)
	if err != nil || created {
		t.Fatalf("update: %v, created %v", err, created)
	}
	second := made.DeepCopy()
	second.Data = map[string]string{"a": "2"}
	_, _, err = s.Update(t.Context(), s.req("configmaps", "default", "one"), second, nil)
	if !apierrors.IsConflict(err) {
		t.Errorf("a stale update: %v", err)
	}
	second.ResourceVersion = ""
	if _, _, err = s.Update(t.Context(), s.req("configmaps", "default", "one"), second, nil); err != nil {
		t.Errorf("an unconditional update: %v", err)
	}
	second.UID = "another"
	if _, _, err = s.Update(t.Context(), s.req("configmaps", "default", "one"), second, nil); !apierrors.IsConflict(err) {
		t.Errorf("an update of another UID: %v", err)
	}
	_, _, err = s.Update(t.Context(), s.req("configmaps", "default", "none"), newConfigMap("none", nil), nil)
	if !apierrors.IsNotFound(err) {
		t.Errorf("an update of what is not there: %v", err)
	}
	if kept[*corev1.ConfigMap](s, result).Data["a"] != "1" {
		t.Error("the result of the first update changed")
	}
}

func TestUpdateOfNothingWritesNothing(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", map[string]string{"a": "1"}))
	result, _, err := s.Update(t.Context(), s.req("configmaps", "default", "one"), made, &metav1.UpdateOptions{FieldManager: "test"})
	if err != nil {
		t.Fatal(err)
	}
	if got := kept[*corev1.ConfigMap](s, result); got.ResourceVersion != made.ResourceVersion {
		t.Errorf("version %s became %s", made.ResourceVersion, got.ResourceVersion)
	}
}

func TestDryRunKeepsNothing(t *testing.T) {
	s := start(t, nil)
	before := s.store.Revision()
	dry := []string{metav1.DryRunAll}
	_, err := s.Create(t.Context(), s.req("configmaps", "default", ""), newConfigMap("one", nil), &metav1.CreateOptions{DryRun: dry})
	if err != nil {
		t.Fatal(err)
	}
	made := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("two", nil))
	after := s.store.Revision()
	if after != before+1 {
		t.Errorf("revision went from %d to %d", before, after)
	}
	made.Data = map[string]string{"a": "1"}
	result, _, err := s.Update(t.Context(), s.req("configmaps", "default", "two"), made, &metav1.UpdateOptions{DryRun: dry})
	if err != nil || kept[*corev1.ConfigMap](s, result).Data["a"] != "1" {
		t.Errorf("update: %v", err)
	}
	_, _, err = s.Patch(t.Context(), s.req("configmaps", "default", "two"), types.MergePatchType, []byte(`{"data":{"b":"2"}}`), &metav1.PatchOptions{DryRun: dry})
	if err != nil {
		t.Error(err)
	}
	if _, _, err = s.Delete(t.Context(), s.req("configmaps", "default", "two"), &metav1.DeleteOptions{DryRun: dry}); err != nil {
		t.Error(err)
	}
	if s.store.Revision() != after {
		t.Errorf("dry runs moved the revision from %d to %d", after, s.store.Revision())
	}
}

func TestNamespaceLifecycle(t *testing.T) {
	s := start(t, nil)
	_, err := s.Create(t.Context(), s.req("configmaps", "nowhere", ""), func() *corev1.ConfigMap {
		cm := newConfigMap("a", nil)
		cm.Namespace = "nowhere"
		return cm
	}(), nil)
	if !apierrors.IsNotFound(err) || err.Error() != `namespaces "nowhere" not found` {
		t.Errorf("a missing namespace: %v", err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "gone"}}
	ns.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Namespace"))
	made := create[*corev1.Namespace](s, "namespaces", "", ns)
	if len(made.Spec.Finalizers) != 1 || made.Status.Phase != corev1.NamespaceActive || made.Labels["kubernetes.io/metadata.name"] != "gone" {
		t.Errorf("namespace is %s", asJSON(t, made))
	}
	result, deleted, err := s.Delete(t.Context(), s.req("namespaces", "", "gone"), nil)
	if err != nil || deleted {
		t.Fatalf("delete: %v, deleted %v", err, deleted)
	}
	if got := kept[*corev1.Namespace](s, result); got.Status.Phase != corev1.NamespaceTerminating || got.DeletionTimestamp == nil {
		t.Errorf("namespace is %s", asJSON(t, got))
	}
	cm := newConfigMap("a", nil)
	cm.Namespace = "gone"
	_, err = s.Create(t.Context(), s.req("configmaps", "gone", ""), cm, nil)
	if !apierrors.IsForbidden(err) || !apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
		t.Errorf("a terminating namespace: %v", err)
	}
	// The namespace controller finalizes it, which removes it.
	final := get[*corev1.Namespace](s, "namespaces", "", "gone")
	final.Spec.Finalizers = nil
	if _, _, err := s.Update(t.Context(), s.sub("namespaces", "", "gone", "finalize"), final, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), s.req("namespaces", "", "gone"), nil); !apierrors.IsNotFound(err) {
		t.Errorf("after finalizing: %v", err)
	}
	if _, _, err = s.Delete(t.Context(), s.req("namespaces", "", "kube-system"), nil); !apierrors.IsForbidden(err) {
		t.Errorf("deleting kube-system: %v", err)
	}
}

func TestStatusIsApart(t *testing.T) {
	s := start(t, nil)
	made := create[*corev1.Pod](s, "pods", "default", newPod("web"))
	if made.Status.Phase != corev1.PodPending || made.Status.QOSClass != corev1.PodQOSBestEffort {
		t.Errorf("status is %s", asJSON(t, made.Status))
	}
	changed := made.DeepCopy()
	changed.Status.Phase = corev1.PodRunning
	changed.Labels["x"] = "y"
	if _, _, err := s.Update(t.Context(), s.req("pods", "default", "web"), changed, nil); err != nil {
		t.Fatal(err)
	}
	got := get[*corev1.Pod](s, "pods", "default", "web")
	if got.Status.Phase != corev1.PodPending || got.Labels["x"] != "y" {
		t.Errorf("an update changed the status: %s", asJSON(t, got))
	}
	got.Status.Phase = corev1.PodRunning
	got.Spec.Containers[0].Image = "example/other"
	got.Annotations = map[string]string{"by": "status"}
	if _, _, err := s.Update(t.Context(), s.sub("pods", "default", "web", "status"), got, nil); err != nil {
		t.Fatal(err)
	}
	got = get[*corev1.Pod](s, "pods", "default", "web")
	if got.Status.Phase != corev1.PodRunning || got.Spec.Containers[0].Image != "example/web:1" {
		t.Errorf("an update of the status changed the rest: %s", asJSON(t, got))
	}
}

func TestConcurrentUpdatesAreAllKept(t *testing.T) {
	s := start(t, nil)
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	const writers = 16
	errs := make(chan error, writers)
	for i := range writers {
		go func() {
			body := fmt.Sprintf(`{"data":{"k%d":"v"}}`, i)
			_, _, err := s.Patch(t.Context(), s.req("configmaps", "default", "one"), types.MergePatchType, []byte(body), nil)
			errs <- err
		}()
	}
	for range writers {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	if got := get[*corev1.ConfigMap](s, "configmaps", "default", "one"); len(got.Data) != writers {
		t.Errorf("%d of %d writes were kept: %v", len(got.Data), writers, got.Data)
	}
}
