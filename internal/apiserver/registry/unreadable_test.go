package registry_test

import (
	"testing"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
)

// damage writes what is no object in place of a ConfigMap, and waits until the image has it.
func damage(s *server, name string) {
	s.tb.Helper()
	key := []byte("/registry/configmaps/default/" + name)
	if _, err := s.member.Txn(s.tb.Context(), &etcdserverpb.TxnRequest{Success: []*etcdserverpb.RequestOp{{
		Request: &etcdserverpb.RequestOp_RequestPut{RequestPut: &etcdserverpb.PutRequest{Key: key, Value: []byte("k8s\x00garbage")}},
	}}}); err != nil {
		s.tb.Fatal(err)
	}
	if _, err := s.store.ReadIndex(s.tb.Context()); err != nil {
		s.tb.Fatal(err)
	}
}

func causes(err error) []string {
	var keys []string
	status, ok := err.(apierrors.APIStatus)
	if !ok || status.Status().Details == nil {
		return nil
	}
	for _, cause := range status.Status().Details.Causes {
		keys = append(keys, cause.Field)
	}
	return keys
}

// A list that has to look into its objects names all that can't be read.
func TestListNamesWhatCannotBeRead(t *testing.T) {
	s := start(t, nil)
	for _, name := range []string{"a", "c"} {
		damage(s, name)
	}
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("b", nil))
	selector, err := labels.Parse("color=red")
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.List(t.Context(), s.req("configmaps", "default", ""), &metainternalversion.ListOptions{LabelSelector: selector})
	if got := causes(err); !apierrors.IsStoreReadError(err) || len(got) != 2 || got[0] != "/registry/configmaps/default/a" || got[1] != "/registry/configmaps/default/c" {
		t.Errorf("%v, causes %q", err, got)
	}
	if _, err := s.List(t.Context(), s.req("configmaps", "kube-system", ""), &metainternalversion.ListOptions{LabelSelector: selector}); err != nil {
		t.Errorf("another namespace: %v", err)
	}
}

// A watch that meets a version which can't be read ends: for good if that is the object's newest, and otherwise so that
// its client begins anew.
func TestWatchOverWhatCannotBeRead(t *testing.T) {
	s := start(t, nil)
	one := create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("one", nil))
	selector, err := labels.Parse("color=red")
	if err != nil {
		t.Fatal(err)
	}
	opts := &metainternalversion.ListOptions{LabelSelector: selector, ResourceVersion: one.ResourceVersion}
	damage(s, "one")
	w := watching(s, t.Context(), s.req("configmaps", "default", ""), opts)
	if _, err := w.Next(soon(t)); !apierrors.IsInternalError(err) {
		t.Errorf("the newest version: %v", err)
	}
	if _, _, err := s.Delete(t.Context(), s.req("configmaps", "default", "one"), ignoring()); err != nil {
		t.Fatal(err)
	}
	w = watching(s, t.Context(), s.req("configmaps", "default", ""), opts)
	if _, err := w.Next(soon(t)); !apierrors.IsResourceExpired(err) {
		t.Errorf("history: %v", err)
	}
}

func ignoring() *metav1.DeleteOptions {
	return &metav1.DeleteOptions{IgnoreStoreReadErrorWithClusterBreakingPotential: ptr.To(true)}
}

// What can't be read can be removed, by those who say that they know, and nothing else can be so.
func TestDeleteOfWhatCannotBeRead(t *testing.T) {
	s := start(t, nil)
	ctx := t.Context()
	damage(s, "broken")
	create[*corev1.ConfigMap](s, "configmaps", "default", newConfigMap("fine", nil))
	broken := s.req("configmaps", "default", "broken")
	if _, _, err := s.Delete(ctx, broken, nil); !apierrors.IsInternalError(err) {
		t.Errorf("an ordinary deletion: %v", err)
	}
	if _, _, err := s.Delete(ctx, s.req("configmaps", "default", "fine"), ignoring()); !apierrors.IsConflict(err) {
		t.Errorf("of what can be read: %v", err)
	}
	if _, _, err := s.Delete(ctx, s.req("configmaps", "default", "none"), ignoring()); !apierrors.IsNotFound(err) {
		t.Errorf("of nothing: %v", err)
	}
	graceful := ignoring()
	graceful.GracePeriodSeconds = ptr.To[int64](1)
	if _, _, err := s.Delete(ctx, broken, graceful); !apierrors.IsInvalid(err) {
		t.Errorf("with grace: %v", err)
	}
	if _, err := s.DeleteCollection(ctx, s.req("configmaps", "default", ""), ignoring(), nil); !apierrors.IsInvalid(err) {
		t.Errorf("of all: %v", err)
	}
	dry := ignoring()
	dry.DryRun = []string{metav1.DryRunAll}
	for _, opts := range []*metav1.DeleteOptions{dry, ignoring()} {
		if value, err := s.raw("/registry/configmaps/default/broken"); err != nil || value == nil {
			t.Fatalf("it is gone before: %q, %v", value, err)
		}
		result, deleted, err := s.Delete(ctx, broken, opts)
		if status, ok := result.Object.(*metav1.Status); err != nil || !deleted || !ok || status.Status != metav1.StatusSuccess {
			t.Fatalf("%v, %v, %v", result, deleted, err)
		}
	}
	if _, err := s.Get(ctx, broken, nil); !apierrors.IsNotFound(err) {
		t.Errorf("it is still there: %v", err)
	}
}
