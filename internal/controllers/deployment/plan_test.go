package deployment

import (
	"fmt"
	"strings"
	"testing"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"
	"pgregory.net/rapid"
)

func newDeployment(replicas int32, surge, unavailable intstr.IntOrString) *appsv1.Deployment {
	return &appsv1.Deployment{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "web"},
		Spec: appsv1.DeploymentSpec{
			Replicas: &replicas,
			Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "web"}},
			Strategy: appsv1.DeploymentStrategy{
				Type:          appsv1.RollingUpdateDeploymentStrategyType,
				RollingUpdate: &appsv1.RollingUpdateDeployment{MaxSurge: &surge, MaxUnavailable: &unavailable},
			},
			Template: corev1.PodTemplateSpec{
				ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}},
				Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "web", Image: "web:1"}}},
			},
			ProgressDeadlineSeconds: ptr.To[int32](600),
			RevisionHistoryLimit:    ptr.To[int32](10),
		},
	}
}

func newReplicaSet(name string, replicas, available int32, age int) *appsv1.ReplicaSet {
	return &appsv1.ReplicaSet{
		ObjectMeta: metav1.ObjectMeta{
			Name: name, UID: types.UID(name), CreationTimestamp: metav1.Time{Time: time.Date(2030, 1, 1, 12, -age, 0, 0, time.UTC)},
		},
		Spec:   appsv1.ReplicaSetSpec{Replicas: &replicas},
		Status: appsv1.ReplicaSetStatus{Replicas: replicas, AvailableReplicas: available},
	}
}

// A rolling update is played out: ReplicaSets follow their sizes late and pods become available
// in any order, but none fails. There are never more than size + surge pods, neither wanted nor real, never fewer
// available than size - unavailable once that many were, and in the end all are of the newest.
func TestRollKeepsItsBounds(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.Int32Range(0, 20).Draw(t, "size")
		d := newDeployment(size, drawBound(t, "surge"), drawBound(t, "unavailable"))
		surge, unavailable := bounds(d)
		v := view{d: d, newest: newReplicaSet("new", 0, 0, 0)}
		left := size
		for i := range rapid.IntRange(1, 3).Draw(t, "old sets") {
			n := rapid.Int32Range(0, left).Draw(t, "share")
			v.old = append(v.old, newReplicaSet(fmt.Sprint("old", i), n, n, 9-i))
			left -= n
		}
		v.old[0].Spec.Replicas = ptr.To(*v.old[0].Spec.Replicas + left)
		v.old[0].Status.AvailableReplicas += left
		v.old[0].Status.Replicas += left

		pods := map[*appsv1.ReplicaSet]int32{} // that are there, and not about to end
		for _, s := range v.all() {
			pods[s] = wanted(s)
		}
		real := func() int32 { return sum(v.all(), func(s *appsv1.ReplicaSet) int32 { return pods[s] }) }
		total := func() int32 { return sum(v.all(), wanted) }
		sure := func() int32 { return sum(v.all(), sureAvailable) }
		for step := 0; ; step++ {
			if total() > size+surge || real() > size+surge {
				t.Fatalf("%d pods of %d, allowed %d+%d", real(), total(), size, surge)
			}
			if sure() < size-unavailable {
				t.Fatalf("%d pods available, wanted %d-%d", sure(), size, unavailable)
			}
			if wanted(v.newest) == size && v.newest.Status.AvailableReplicas == size && total() == size {
				return
			}
			if step > 1000 {
				t.Fatalf("stuck with %d new of %d, %d in all", wanted(v.newest), size, total())
			}
			for _, r := range v.roll() {
				r.set.Spec.Replicas = ptr.To(r.replicas)
				r.set.Generation++
			}
			// Now and then the template changes while all this is under way.
			if step < 20 && rapid.IntRange(0, 9).Draw(t, "changes") == 0 {
				v.old = append(v.old, v.newest)
				v.newest = newReplicaSet(fmt.Sprint("newer", step), 0, 0, 0)
			}
			// Some time passes for some of the sets, at last for all.
			for _, s := range v.all() {
				if step%5 != 4 && !rapid.Bool().Draw(t, "settles") {
					continue
				}
				// A set counts its pods, and makes or deletes some then.
				s.Status.Replicas, s.Status.ObservedGeneration, pods[s] = pods[s], s.Generation, wanted(s)
				if s.Status.AvailableReplicas > wanted(s) {
					s.Status.AvailableReplicas = wanted(s)
				} else if step%5 == 4 || rapid.Bool().Draw(t, "ready") {
					s.Status.AvailableReplicas = min(wanted(s), s.Status.AvailableReplicas+1)
				}
			}
		}
	})
}

func drawBound(t *rapid.T, name string) intstr.IntOrString {
	if rapid.Bool().Draw(t, name+" in percent") {
		return intstr.FromString(fmt.Sprintf("%d%%", rapid.IntRange(0, 100).Draw(t, name)))
	}
	return intstr.FromInt32(rapid.Int32Range(0, 6).Draw(t, name))
}

func TestProportionMeetsTheNewSize(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		before := rapid.Int32Range(1, 50).Draw(t, "before")
		after := rapid.Int32Range(0, 50).Draw(t, "after")
		d := newDeployment(before, drawBound(t, "surge"), intstr.FromInt32(1))
		surge, _ := bounds(d)
		v := view{d: d, newest: newReplicaSet("new", 0, 0, 0)}
		left := before + surge
		for i := range rapid.IntRange(1, 4).Draw(t, "old sets") {
			n := rapid.Int32Range(0, left).Draw(t, "share")
			s := newReplicaSet(fmt.Sprint("old", i), n, n, 9-i)
			annotateSizes(d, s)
			v.old = append(v.old, s)
			left -= n
		}
		v.newest.Spec.Replicas = &left
		annotateSizes(d, v.newest)
		d.Spec.Replicas = &after
		sizes := map[types.UID]int32{}
		for _, s := range v.all() {
			sizes[s.UID] = wanted(s)
		}
		if len(active(v.all())) < 2 {
			return
		}
		for _, r := range v.proportion() {
			if r.replicas < 0 {
				t.Fatalf("%s shrinks below nothing", r.set.Name)
			}
			sizes[r.set.UID] = r.replicas
		}
		var total int32
		for _, n := range sizes {
			total += n
		}
		surge, _ = bounds(d)
		if want := after + surge; after > 0 && total != want || after == 0 && total != 0 {
			t.Fatalf("%d pods in all, want %d", total, want)
		}
	})
}

func TestProportionExample(t *testing.T) {
	// 10 replicas with a surge of 3 in the midst of a rollout, scaled to 15: the example of
	// the documentation of Deployments, which ends at 11 and 7.
	d := newDeployment(10, intstr.FromInt32(3), intstr.FromInt32(2))
	v := view{d: d, newest: newReplicaSet("new", 5, 0, 0), old: []*appsv1.ReplicaSet{newReplicaSet("old", 8, 8, 5)}}
	for _, s := range v.all() {
		annotateSizes(d, s)
	}
	d.Spec.Replicas = ptr.To[int32](15)
	if !v.scaled() {
		t.Error("the scaling was not noticed")
	}
	got := map[string]int32{}
	for _, r := range v.scale() {
		got[r.set.Name] = r.replicas
	}
	if got["old"] != 11 || got["new"] != 7 {
		t.Errorf("sizes %v", got)
	}
}

func TestBounds(t *testing.T) {
	for _, c := range []struct {
		size               int32
		surge, unavailable string
		wantSurge, wantUn  int32
	}{
		{2, "0%", "1%", 0, 1},
		{1, "0%", "1%", 0, 1},
		{2, "1%", "25%", 1, 0},
		{1, "1%", "25%", 1, 0},
		{4, "25%", "25%", 1, 1},
		{10, "25%", "25%", 3, 2},
		{0, "25%", "25%", 0, 0},
		{3, "0%", "200%", 0, 3},
	} {
		surge, un := bounds(newDeployment(c.size, intstr.FromString(c.surge), intstr.FromString(c.unavailable)))
		if surge != c.wantSurge || un != c.wantUn {
			t.Errorf("%+v: surge %d, unavailable %d", c, surge, un)
		}
	}
}

func TestUnhealthyGoFirst(t *testing.T) {
	d := newDeployment(10, intstr.FromInt32(3), intstr.FromInt32(2))
	// A rollout whose new pods crash is undone: what was the newest is old now.
	v := view{d: d, newest: newReplicaSet("good", 8, 7, 9), old: []*appsv1.ReplicaSet{newReplicaSet("crashing", 5, 0, 1)}}
	v.newest.Spec.Replicas = ptr.To[int32](8)
	steps := v.shrinkOld()
	if len(steps) != 1 || steps[0].set.Name != "crashing" || steps[0].replicas != 1 {
		t.Errorf("steps %+v", steps)
	}
}

func TestRevisionHistory(t *testing.T) {
	d := newDeployment(1, intstr.FromInt32(1), intstr.FromInt32(0))
	d.Annotations = map[string]string{"note": "x", corev1.LastAppliedConfigAnnotation: "no", revisionAnnotation: "7"}
	s := newReplicaSet("s", 1, 1, 0)
	if !annotateNewest(d, s, 3) || s.Annotations[revisionAnnotation] != "3" || s.Annotations["note"] != "x" || s.Annotations[corev1.LastAppliedConfigAnnotation] != "" || s.Annotations[historyAnnotation] != "" {
		t.Errorf("annotations %v", s.Annotations)
	}
	if annotateNewest(d, s, 3) || annotateNewest(d, s, 2) {
		t.Error("changed without need")
	}
	if !annotateNewest(d, s, 5) || s.Annotations[historyAnnotation] != "3" || !annotateNewest(d, s, 9) || s.Annotations[historyAnnotation] != "3,5" {
		t.Errorf("annotations %v", s.Annotations)
	}
	s.Annotations[historyAnnotation] = "1," + strings.Repeat("2", maxHistoryLength-4) + ",3"
	annotateNewest(d, s, 10)
	if h := s.Annotations[historyAnnotation]; h != "3,9" && !strings.HasSuffix(h, ",3,9") || len(h) > maxHistoryLength {
		t.Errorf("history of %d bytes: %.40s", len(h), h)
	}
	s.Annotations[revisionAnnotation] = "nonsense"
	annotateNewest(d, s, 11)
	if s.Annotations[revisionAnnotation] != "nonsense" {
		t.Error("a revision that is no number was overwritten")
	}
}

func TestSurplusKeepsTheNewestRevisionsAndBusySets(t *testing.T) {
	d := newDeployment(1, intstr.FromInt32(1), intstr.FromInt32(0))
	d.Spec.RevisionHistoryLimit = ptr.To[int32](2)
	v := view{d: d}
	for i, n := range []string{"3", "1", "2", "4", "5"} {
		s := newReplicaSet("r"+n, 0, 0, i)
		s.Annotations = map[string]string{revisionAnnotation: n}
		v.old = append(v.old, s)
	}
	v.old[2].Status.Replicas = 1 // r2 still has a pod
	var names []string
	for _, s := range v.surplus() {
		names = append(names, s.Name)
	}
	if fmt.Sprint(names) != "[r1 r3]" {
		t.Errorf("surplus %v", names)
	}
}

func TestProgress(t *testing.T) {
	noon := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	d := newDeployment(3, intstr.FromInt32(1), intstr.FromInt32(0))
	d.Spec.ProgressDeadlineSeconds = ptr.To[int32](60)
	v := view{d: d, newest: newReplicaSet("new", 1, 0, 0), old: []*appsv1.ReplicaSet{newReplicaSet("old", 3, 3, 9)}}
	reason := func(now time.Time) string {
		t.Helper()
		d.Status = v.rollout(now)
		return condition(&d.Status, appsv1.DeploymentProgressing).Reason
	}
	if r := reason(noon); r != reasonSetUpdated {
		t.Errorf("at first: %s", r)
	}
	if next := nextCheck(d, &d.Status, noon.Add(50*time.Second)); next != 11*time.Second {
		t.Errorf("next check after %v", next)
	}
	if r := reason(noon.Add(59 * time.Second)); r != reasonSetUpdated {
		t.Errorf("before the deadline: %s", r)
	}
	if r := reason(noon.Add(61 * time.Second)); r != reasonTimedOut || condition(&d.Status, appsv1.DeploymentProgressing).Status != corev1.ConditionFalse {
		t.Errorf("after the deadline: %s", r)
	}
	if next := nextCheck(d, &d.Status, noon.Add(70*time.Second)); next != 0 {
		t.Errorf("next check after %v", next)
	}
	v.newest.Status.AvailableReplicas = 1
	if r := reason(noon.Add(80 * time.Second)); r != reasonSetUpdated {
		t.Errorf("after progress: %s", r)
	}
	v.newest, v.old = newReplicaSet("new", 3, 3, 0), nil
	if r := reason(noon.Add(90 * time.Second)); r != reasonSetAvailable {
		t.Errorf("when complete: %s", r)
	}
	v.newest.Status.AvailableReplicas = 1
	if r := reason(noon.Add(900 * time.Second)); r != reasonSetAvailable {
		t.Errorf("long after: %s", r)
	}
	if c := condition(&d.Status, appsv1.DeploymentAvailable); c.Status != corev1.ConditionFalse {
		t.Error("available with one of three")
	}
}
