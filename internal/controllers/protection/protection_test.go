package protection_test

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/protection"
)

func claim() *corev1.PersistentVolumeClaim {
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p-data"}}
}

func podOn(node string, volume corev1.VolumeSource) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "a", Name: "p"}}
	p.Spec.NodeName = node
	p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: volume}}
	return p
}

func exists(t *testing.T, w *controllertest.World, obj client.Object) bool {
	t.Helper()
	err := w.Get(t.Context(), client.ObjectKeyFromObject(obj), obj)
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatal(err)
	}
	return err == nil
}

func remove(t *testing.T, w *controllertest.World, obj client.Object) {
	t.Helper()
	if err := w.Delete(t.Context(), obj); err != nil {
		t.Fatal(err)
	}
}

func TestClaimsStayWhilePodsUseThem(t *testing.T) {
	named := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "p-data"}}
	other := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "other"}}
	for name, tt := range map[string]struct {
		pod   *corev1.Pod
		owned bool
		stays bool
	}{
		"nobody":                  {nil, false, false},
		"a pod on a node":         {podOn("n", named), false, true},
		"a pod without a node":    {podOn("", named), false, false},
		"a pod of another":        {podOn("n", other), false, false},
		"its pod":                 {podOn("n", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}), true, true},
		"a pod that wants a name": {podOn("n", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}), false, false},
	} {
		t.Run(name, func(t *testing.T) {
			w := controllertest.New(t)
			c := protection.NewClaims(w.Deps())
			held := claim()
			if tt.pod != nil {
				w.MustCreate(tt.pod)
				if tt.owned {
					yes := true
					held.OwnerReferences = []metav1.OwnerReference{{APIVersion: "v1", Kind: "Pod", Name: "p", UID: tt.pod.UID, Controller: &yes}}
				}
			}
			w.MustCreate(held)
			w.Settle(c)
			if !exists(t, w, held) || len(held.Finalizers) != 1 {
				t.Fatalf("finalizers: %v", held.Finalizers)
			}
			remove(t, w, held)
			w.Settle(c)
			if exists(t, w, held) != tt.stays {
				t.Fatalf("stays: %v", !tt.stays)
			}
			if tt.stays {
				remove(t, w, tt.pod)
				w.Settle(c)
				if exists(t, w, held) {
					t.Error("the claim stays without its pod")
				}
			}
		})
	}
}

func TestVolumesStayWhileBound(t *testing.T) {
	w := controllertest.New(t)
	c := protection.NewVolumes(w.Deps())
	bound := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "bound"}, Status: corev1.PersistentVolumeStatus{Phase: corev1.VolumeBound}}
	free := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "free"}}
	for _, v := range []*corev1.PersistentVolume{bound, free} {
		status := v.Status
		w.MustCreate(v)
		v.Status = status
		if err := w.Status().Update(t.Context(), v); err != nil {
			t.Fatal(err)
		}
	}
	w.Settle(c)
	remove(t, w, bound)
	remove(t, w, free)
	w.Settle(c)
	if !exists(t, w, bound) || exists(t, w, free) {
		t.Fatal("the bound one goes, or the free one stays")
	}
	bound.Status.Phase = corev1.VolumeReleased
	if err := w.Status().Update(t.Context(), bound); err != nil {
		t.Fatal(err)
	}
	w.Settle(c)
	if exists(t, w, bound) {
		t.Error("a released volume stays")
	}
}

func TestAttributesStayWhileNamed(t *testing.T) {
	name := "fast"
	user := claim()
	user.Spec.VolumeAttributesClassName = &name
	volume := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "v"}}
	volume.Spec.VolumeAttributesClassName = &name
	for _, user := range []client.Object{user, volume} {
		class := &storagev1.VolumeAttributesClass{ObjectMeta: metav1.ObjectMeta{Name: name}}
		w := controllertest.New(t, user, class)
		c := protection.NewVolumeAttributes(w.Deps())
		w.Settle(c)
		remove(t, w, class)
		w.Settle(c)
		if !exists(t, w, class) {
			t.Fatalf("gone while a %T names it", user)
		}
		remove(t, w, user)
		w.Settle(c)
		if exists(t, w, class) {
			t.Errorf("stays after the %T is gone", user)
		}
	}
}

// A claim stays that a pod uses which has not come to the image yet, and as long as that can't be found out.
func TestLatePod(t *testing.T) {
	named := corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "p-data"}}
	held := claim()
	w := controllertest.New(t, podOn("n", named), held)
	c := protection.NewClaims(w.Deps())
	w.Settle(c)
	remove(t, w, held)
	w.Late = func(obj client.Object) bool { _, late := obj.(*corev1.Pod); return late }
	w.Cut = errors.New("no quorum")
	if _, err := c.Reconcile(t.Context(), kit.RequestFor(held)); !errors.Is(err, w.Cut) || !exists(t, w, held) {
		t.Errorf("cut off: %v", err)
	}
	w.Cut = nil
	w.Reconcile(c, held)
	if !exists(t, w, held) {
		t.Error("a claim that is in use is gone")
	}
}
