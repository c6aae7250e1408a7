package statefulset

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/history"
	"barque.dev/internal/controllers/kit"
)

func newSet(replicas int32) *appsv1.StatefulSet {
	labels := map[string]string{"app": "db"}
	return &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "db"},
		Spec: appsv1.StatefulSetSpec{
			Replicas:            &replicas,
			ServiceName:         "dbs",
			Selector:            &metav1.LabelSelector{MatchLabels: labels},
			PodManagementPolicy: appsv1.OrderedReadyPodManagement,
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: labels},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "db", Image: "db:1"}}},
			},
			UpdateStrategy: appsv1.StatefulSetUpdateStrategy{
				Type:          appsv1.RollingUpdateStatefulSetStrategyType,
				RollingUpdate: &appsv1.RollingUpdateStatefulSetStrategy{Partition: new(int32)},
			},
			RevisionHistoryLimit: ptr.To[int32](2),
		},
	}
}

func withClaims(set *appsv1.StatefulSet, whenDeleted, whenScaled appsv1.PersistentVolumeClaimRetentionPolicyType) *appsv1.StatefulSet {
	set.Spec.VolumeClaimTemplates = []corev1.PersistentVolumeClaim{{ObjectMeta: metav1.ObjectMeta{Name: "data"}}}
	set.Spec.PersistentVolumeClaimRetentionPolicy = &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{WhenDeleted: whenDeleted, WhenScaled: whenScaled}
	return set
}

func podNames(w *controllertest.World) string {
	var list []string
	for _, p := range w.Pods() {
		list = append(list, p.Name)
	}
	return strings.Join(list, " ")
}

// roll lets pods run, one at a time, until nothing moves.
func roll(t *testing.T, w *controllertest.World, c kit.Controller) {
	t.Helper()
	for range 100 {
		w.Settle(c)
		list := w.Pods()
		i := slices.IndexFunc(list, func(p corev1.Pod) bool { return p.Status.Phase == corev1.PodPending })
		if i < 0 {
			return
		}
		w.Run(&list[i], true)
	}
	t.Fatal("the set does not settle")
}

func image(w *controllertest.World, name string) string {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if err := w.Get(context.Background(), client.ObjectKeyFromObject(p), p); err != nil {
		return ""
	}
	return p.Spec.Containers[0].Image
}

func TestStartsInOrderAndNamesItsPods(t *testing.T) {
	set := newSet(3)
	set.Spec.Ordinals = &appsv1.StatefulSetOrdinals{Start: 5}
	w := controllertest.New(t, set)
	c := New(w.Deps())
	for _, want := range []string{"db-5", "db-5 db-6", "db-5 db-6 db-7"} {
		w.Settle(c)
		if got := podNames(w); got != want {
			t.Fatalf("pods %s, want %s", got, want)
		}
		list := w.Pods()
		w.Run(&list[len(list)-1], false)
		w.Settle(c)
		if got := podNames(w); got != want {
			t.Fatalf("pods %s while one is not ready", got)
		}
		w.Run(&list[len(list)-1], true)
	}
	w.Settle(c)
	content, err := history.TemplatePatch(&set.Spec.Template)
	if err != nil {
		t.Fatal(err)
	}
	revision := "db-" + history.Hash(content, new(int32))
	p := w.Pods()[1]
	if p.Spec.Hostname != "db-6" || p.Spec.Subdomain != "dbs" || p.Labels[appsv1.StatefulSetPodNameLabel] != "db-6" || p.Labels[appsv1.PodIndexLabel] != "6" || p.Labels[appsv1.StatefulSetRevisionLabel] != revision {
		t.Errorf("pod %+v", p)
	}
	s := controllertest.Reload(w, set).Status
	if s.Replicas != 3 || s.ReadyReplicas != 3 || s.AvailableReplicas != 3 || s.CurrentReplicas != 3 || s.UpdatedReplicas != 3 || s.CurrentRevision != revision || s.UpdateRevision != revision {
		t.Errorf("status %+v", s)
	}
}

func TestScalesDownFromTheTop(t *testing.T) {
	set := newSet(3)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	roll(t, w, c)
	top := w.Pods()[2]
	controllertest.Change(w, &top, func(p *corev1.Pod) { p.Finalizers = []string{"test/hold"} })
	controllertest.Change(w, set, func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To[int32](1) })
	w.Settle(c)
	if got := podNames(w); got != "db-0 db-1 db-2" {
		t.Errorf("pods %s while db-2 terminates", got)
	}
	controllertest.Change(w, &top, func(p *corev1.Pod) { p.Finalizers = nil })
	w.Settle(c)
	if got := podNames(w); got != "db-0" {
		t.Errorf("pods %s", got)
	}
}

func TestUpdatesDownToThePartition(t *testing.T) {
	set := newSet(3)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	roll(t, w, c)
	controllertest.Change(w, set, func(s *appsv1.StatefulSet) {
		s.Spec.Template.Spec.Containers[0].Image = "db:2"
		s.Spec.UpdateStrategy.RollingUpdate.Partition = ptr.To[int32](1)
	})
	w.Settle(c)
	if image(w, "db-2") != "db:2" || image(w, "db-1") != "db:1" {
		t.Errorf("images %s %s: not one after the other from the top", image(w, "db-1"), image(w, "db-2"))
	}
	roll(t, w, c)
	if image(w, "db-0") != "db:1" || image(w, "db-1") != "db:2" || image(w, "db-2") != "db:2" {
		t.Errorf("images %s %s %s", image(w, "db-0"), image(w, "db-1"), image(w, "db-2"))
	}
	// A pod below the partition comes back as it was.
	p := w.Pods()[0]
	if err := w.Delete(t.Context(), &p); err != nil {
		t.Fatal(err)
	}
	roll(t, w, c)
	if image(w, "db-0") != "db:1" {
		t.Errorf("image %s below the partition", image(w, "db-0"))
	}
	s := controllertest.Reload(w, set).Status
	if s.UpdatedReplicas != 2 || s.CurrentReplicas != 1 || s.CurrentRevision == s.UpdateRevision {
		t.Errorf("status %+v", s)
	}
	controllertest.Change(w, set, func(s *appsv1.StatefulSet) { s.Spec.UpdateStrategy.RollingUpdate.Partition = new(int32) })
	roll(t, w, c)
	if s := controllertest.Reload(w, set).Status; image(w, "db-0") != "db:2" || s.CurrentRevision != s.UpdateRevision || s.CurrentReplicas != 3 {
		t.Errorf("image %s, status %+v", image(w, "db-0"), s)
	}
}

func TestOnDeleteLeavesPodsAlone(t *testing.T) {
	set := newSet(2)
	set.Spec.UpdateStrategy = appsv1.StatefulSetUpdateStrategy{Type: appsv1.OnDeleteStatefulSetStrategyType}
	w := controllertest.New(t, set)
	c := New(w.Deps())
	roll(t, w, c)
	controllertest.Change(w, set, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = "db:2" })
	roll(t, w, c)
	if image(w, "db-0") != "db:1" || image(w, "db-1") != "db:1" {
		t.Error("pods were replaced")
	}
	p := w.Pods()[0]
	if err := w.Delete(t.Context(), &p); err != nil {
		t.Fatal(err)
	}
	roll(t, w, c)
	if image(w, "db-0") != "db:2" || image(w, "db-1") != "db:1" {
		t.Errorf("images %s %s", image(w, "db-0"), image(w, "db-1"))
	}
}

func TestReplacesEndedPodsOnlyWhenTheyAreGone(t *testing.T) {
	set := newSet(1)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	roll(t, w, c)
	p := w.Pods()[0]
	controllertest.Change(w, &p, func(p *corev1.Pod) { p.Finalizers = []string{"test/hold"} })
	w.End(&p, corev1.PodSucceeded)
	w.Settle(c)
	if p := w.Pods()[0]; p.DeletionTimestamp == nil || p.Status.Phase != corev1.PodSucceeded {
		t.Errorf("pod %+v", p.Status)
	}
	controllertest.Change(w, &p, func(p *corev1.Pod) { p.Finalizers = nil })
	w.Settle(c)
	if list := w.Pods(); len(list) != 1 || list[0].UID == p.UID {
		t.Error("the pod was not made again")
	}
}

func claim(w *controllertest.World, name string) *corev1.PersistentVolumeClaim {
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name}}
	if err := w.Get(context.Background(), client.ObjectKeyFromObject(c), c); apierrors.IsNotFound(err) {
		return nil
	}
	return c
}

func TestClaimsFollowTheRetentionPolicy(t *testing.T) {
	const retain, remove = appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType
	for _, c := range []struct {
		whenDeleted, whenScaled appsv1.PersistentVolumeClaimRetentionPolicyType
		within, beyond          string // owner's kind of claims within and beyond the size
	}{
		{retain, retain, "", ""},
		{remove, retain, "StatefulSet", "StatefulSet"},
		{retain, remove, "", "Pod"},
		{remove, remove, "StatefulSet", "Pod"},
	} {
		set := withClaims(newSet(2), c.whenDeleted, c.whenScaled)
		w := controllertest.New(t, set)
		ctl := New(w.Deps())
		roll(t, w, ctl)
		p := w.Pods()[1]
		if v := p.Spec.Volumes[0]; v.Name != "data" || v.PersistentVolumeClaim.ClaimName != "data-db-1" {
			t.Errorf("volume %+v", v)
		}
		owner := func(name string) string {
			ref := metav1.GetControllerOf(claim(w, name))
			if ref == nil {
				return ""
			}
			return ref.Kind
		}
		if got := owner("data-db-1"); got != c.within {
			t.Errorf("%s/%s: within the size %q, want %q", c.whenDeleted, c.whenScaled, got, c.within)
		}
		controllertest.Change(w, &p, func(p *corev1.Pod) { p.Finalizers = []string{"test/hold"} })
		controllertest.Change(w, set, func(s *appsv1.StatefulSet) { s.Spec.Replicas = ptr.To[int32](1) })
		w.Settle(ctl)
		if got := owner("data-db-1"); got != c.beyond {
			t.Errorf("%s/%s: beyond the size %q, want %q", c.whenDeleted, c.whenScaled, got, c.beyond)
		}
		if got := owner("data-db-0"); got != c.within {
			t.Errorf("%s/%s: the other claim %q", c.whenDeleted, c.whenScaled, got)
		}
	}
}

func TestWaitsForTheEndOfAClaim(t *testing.T) {
	set := withClaims(newSet(2), appsv1.RetainPersistentVolumeClaimRetentionPolicyType, appsv1.DeletePersistentVolumeClaimRetentionPolicyType)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	roll(t, w, c)
	scale := func(n int32) {
		controllertest.Change(w, set, func(s *appsv1.StatefulSet) { s.Spec.Replicas = &n })
		w.Settle(c)
	}
	scale(1)
	old := claim(w, "data-db-1") // its owner is gone; the garbage collector is about to delete it
	scale(2)
	if got := podNames(w); got != "db-0" {
		t.Fatalf("pods %s: db-1 came back on a claim that goes with its predecessor", got)
	}
	if err := w.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if requests := c.Watches[2].Requests(removed(old)); len(requests) != 1 {
		t.Errorf("the end of the claim wakes %v", requests)
	}
	w.Settle(c)
	if now := claim(w, "data-db-1"); podNames(w) != "db-0 db-1" || now == nil || now.UID == old.UID {
		t.Errorf("pods %s, claim %v", podNames(w), now)
	}
}

func TestRollbackReusesItsRevision(t *testing.T) {
	set := newSet(1)
	w := controllertest.New(t, set)
	c := New(w.Deps())
	for _, image := range []string{"db:1", "db:2", "db:3", "db:2", "db:4", "db:5"} {
		controllertest.Change(w, set, func(s *appsv1.StatefulSet) { s.Spec.Template.Spec.Containers[0].Image = image })
		roll(t, w, c)
	}
	var list appsv1.ControllerRevisionList
	if err := w.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	numbers := map[string]int64{}
	for _, cr := range list.Items {
		template, err := history.Template(&cr)
		if err != nil {
			t.Fatal(err)
		}
		numbers[template.Spec.Containers[0].Image] = cr.Revision
	}
	if len(numbers) != 3 || numbers["db:2"] != 4 || numbers["db:4"] != 5 || numbers["db:5"] != 6 {
		t.Errorf("revisions %v", numbers)
	}
}

// A set's life is played out with random scaling, updates, failures and slow deletions. No two
// pods of one name are ever asked for at once; an ordered set does one thing at a time, starts
// a pod only when all before it are available, and removes one only when none above it is left.
// No update takes more pods than maxUnavailable.
func TestPlanKeepsTheOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		set := newSet(rapid.Int32Range(0, 5).Draw(t, "replicas"))
		set.UID = "set"
		ordered := rapid.Bool().Draw(t, "ordered")
		if !ordered {
			set.Spec.PodManagementPolicy = appsv1.ParallelPodManagement
		}
		limit := rapid.IntRange(1, 3).Draw(t, "maxUnavailable")
		set.Spec.UpdateStrategy.RollingUpdate.MaxUnavailable = ptr.To(intstr.FromInt(limit))
		rev := func(n int) revision { return revision{fmt.Sprint("r", n), &set.Spec.Template} }
		v := view{set: set, current: rev(0), update: rev(0), claim: func(string) *corev1.PersistentVolumeClaim { return nil }, now: time.Now()}
		uid := 0
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			check(t, v, ordered, limit)
			for _, a := range v.plan() {
				switch a.verb {
				case create:
					uid++
					a.pod.UID = types.UID(fmt.Sprint(uid))
					a.pod.Status.Phase = corev1.PodPending
					v.pods = append(v.pods, a.pod)
				case remove:
					a.pod.DeletionTimestamp = &metav1.Time{Time: v.now}
				}
			}
			for _, p := range slices.Clone(v.pods) {
				switch rapid.IntRange(0, 9).Draw(t, "fate") {
				case 0, 1, 2, 3:
					p.Status.Phase = corev1.PodRunning
					p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
				case 4:
					p.Status.Conditions = nil
				case 5:
					p.Status.Phase = corev1.PodFailed
				}
				if p.DeletionTimestamp != nil && rapid.Bool().Draw(t, "gone") {
					v.pods = slices.DeleteFunc(v.pods, func(other *corev1.Pod) bool { return other == p })
				}
			}
			switch rapid.IntRange(0, 9).Draw(t, "change") {
			case 0:
				set.Spec.Replicas = ptr.To(rapid.Int32Range(0, 5).Draw(t, "replicas"))
			case 1:
				v.update = rev(rapid.IntRange(0, 2).Draw(t, "revision"))
			}
		}
	})
}

func check(t *rapid.T, v view, ordered bool, limit int) {
	byOrdinal := map[int]*corev1.Pod{}
	highest := -1
	for _, p := range v.pods {
		n, _ := ordinal(p)
		byOrdinal[n] = p
		highest = max(highest, n)
	}
	replicas := int(*v.set.Spec.Replicas)
	unavailable := 0
	for n := range replicas {
		if !v.available(byOrdinal[n]) {
			unavailable++
		}
	}
	actions := v.plan()
	changes, updates := 0, 0
	for _, a := range actions {
		p := byOrdinal[a.ordinal]
		switch a.verb {
		case create:
			changes++
			if p != nil {
				t.Fatalf("%s is made while it is there", a.pod.Name)
			}
			for n := range a.ordinal {
				if ordered && !v.available(byOrdinal[n]) {
					t.Fatalf("%s is made before %d is available", a.pod.Name, n)
				}
			}
		case remove:
			changes++
			if p.DeletionTimestamp != nil {
				t.Fatalf("%s is deleted twice", a.pod.Name)
			}
			if a.ordinal >= replicas {
				if ordered && a.ordinal != highest {
					t.Fatalf("%s is removed before %d", a.pod.Name, highest)
				}
			} else if p.Status.Phase != corev1.PodFailed {
				if revisionOf(p) == v.update.name {
					t.Fatalf("%s is up to date and is deleted", a.pod.Name)
				}
				if v.available(p) {
					updates++
				}
			}
		}
	}
	if ordered && changes > 1 && updates == 0 {
		t.Fatalf("an ordered set does %d things at once", changes)
	}
	if updates > 0 && unavailable+updates > limit {
		t.Fatalf("%d pods are unavailable and %d more would be; allowed %d", unavailable, updates, limit)
	}
}
