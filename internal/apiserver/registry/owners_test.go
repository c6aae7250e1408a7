package registry_test

import (
	"fmt"
	"reflect"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// processorTime is what the process has used of processors: how long something takes depends on what else they do.
func processorTime(tb testing.TB) time.Duration {
	tb.Helper()
	var used unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &used); err != nil {
		tb.Fatal(err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func owned(refs ...metav1.OwnerReference) *corev1.ConfigMap {
	obj := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{GenerateName: "owned-", Namespace: "default", OwnerReferences: refs}}
	obj.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("ConfigMap"))
	return obj
}

// TestOwnersOnce: an owner reference that says the same as one before it is left out, wherever its flags are in memory.
func TestOwnersOnce(t *testing.T) {
	s := start(t, nil)
	flag := func(b bool) *bool { return &b }
	ref := func(uid string, controller, blocks *bool) metav1.OwnerReference {
		return metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: types.UID(uid), Controller: controller, BlockOwnerDeletion: blocks}
	}
	want := []metav1.OwnerReference{
		ref("1", flag(true), flag(true)), ref("1", flag(false), flag(true)), ref("1", nil, flag(true)),
		ref("1", nil, flag(false)), ref("1", nil, nil), ref("2", nil, nil),
	}
	sent := append([]metav1.OwnerReference{}, want...)
	sent = append(sent, ref("1", flag(true), flag(true)), ref("1", nil, nil), ref("2", nil, nil), ref("1", nil, flag(false)))
	got := create[*corev1.ConfigMap](s, "configmaps", "default", owned(sent...)).OwnerReferences
	if !reflect.DeepEqual(got, want) {
		t.Errorf("%s, want %s", asJSON(t, got), asJSON(t, want))
	}
}

// TestOwnersWithoutEnd: a client that names as many owners as a request has room for gets its answer at once.
func TestOwnersWithoutEnd(t *testing.T) {
	s := start(t, nil)
	var many []metav1.OwnerReference
	for i := range 30_000 {
		many = append(many, metav1.OwnerReference{APIVersion: "v1", Kind: "Pod", Name: "p", UID: types.UID(fmt.Sprint(i))})
	}
	began := processorTime(t)
	got := create[*corev1.ConfigMap](s, "configmaps", "default", owned(many...))
	if took := processorTime(t) - began; took > 10*time.Second {
		t.Errorf("it took %v", took)
	}
	if len(got.OwnerReferences) != len(many) {
		t.Errorf("%d owners are left", len(got.OwnerReferences))
	}
}
