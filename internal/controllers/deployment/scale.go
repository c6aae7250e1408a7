package deployment

import (
	"cmp"
	"math"
	"slices"
	"strconv"

	appsv1 "k8s.io/api/apps/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// A view is a deployment and its ReplicaSets: newest is the one that has the deployment's
// template, nil if there is none; old are the others, by creation.
type view struct {
	d      *appsv1.Deployment
	newest *appsv1.ReplicaSet
	old    []*appsv1.ReplicaSet
}

// A resize sets the size of one ReplicaSet. Its annotations that tell the deployment's sizes
// are brought up to date with it, also when the size stays.
type resize struct {
	set      *appsv1.ReplicaSet
	replicas int32
}

func (v view) all() []*appsv1.ReplicaSet {
	all := slices.Clone(v.old)
	if v.newest != nil {
		all = append(all, v.newest)
	}
	return all
}

func active(sets []*appsv1.ReplicaSet) []*appsv1.ReplicaSet {
	var a []*appsv1.ReplicaSet
	for _, s := range sets {
		if *s.Spec.Replicas > 0 {
			a = append(a, s)
		}
	}
	return a
}

func sum(sets []*appsv1.ReplicaSet, f func(*appsv1.ReplicaSet) int32) int32 {
	var n int32
	for _, s := range sets {
		n += f(s)
	}
	return n
}

func wanted(s *appsv1.ReplicaSet) int32 { return *s.Spec.Replicas }

// present is how many pods a set has at most: those that it shall have, or those that it had when it was last looked
// after, of which some are yet to be deleted. What a set is to do that has not heard of its size yet is not known.
func present(s *appsv1.ReplicaSet) (most int32, known bool) {
	return max(wanted(s), s.Status.Replicas), s.Status.ObservedGeneration >= s.Generation
}

// room is by how many pods the newest set may grow so that all sets together never have more than size and surge, at no moment:
// pods that shall go, and are there still, count.
func (v view) room() int32 {
	surge, _ := bounds(v.d)
	room := *v.d.Spec.Replicas + surge
	for _, s := range v.all() {
		most, known := present(s)
		if !known {
			return 0 // its status comes next
		}
		room -= most
	}
	return max(0, room)
}

// sureAvailable counts a set's available pods without those that its size no longer covers:
// they are about to go.
func sureAvailable(s *appsv1.ReplicaSet) int32 {
	return min(s.Status.AvailableReplicas, *s.Spec.Replicas)
}

// bounds returns how many pods more than the deployment's size may exist, and how many fewer
// may be available, during a rollout. Percentages round up for the surge and down for the
// unavailable; if both come to 0, one pod may be unavailable, or nothing would ever move.
func bounds(d *appsv1.Deployment) (surge, unavailable int32) {
	if d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType || d.Spec.Strategy.RollingUpdate == nil {
		return 0, 0
	}
	ru := d.Spec.Strategy.RollingUpdate
	zero := intstr.FromInt32(0)
	total := int(*d.Spec.Replicas)
	// Malformed percentages do not pass validation; they count as 0 here.
	s, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxSurge, zero), total, true)
	u, _ := intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxUnavailable, zero), total, false)
	if s == 0 && u == 0 {
		u = 1
	}
	return int32(s), min(int32(u), *d.Spec.Replicas)
}

// newestSize is how large the newest set, which may be yet to come, may be made now.
func (v view) newestSize() int32 {
	size := *v.d.Spec.Replicas
	if v.d.Spec.Strategy.Type != appsv1.RollingUpdateDeploymentStrategyType {
		return size
	}
	current := int32(0)
	if v.newest != nil {
		current = wanted(v.newest)
	}
	return current + min(v.room(), size-current)
}

// roll is the next step of a rolling update: either the newest set changes, or the old ones
// shrink. There are never more pods than size + surge by it, and the old sets shrink only as far
// as enough pods are available without.
func (v view) roll() []resize {
	size := *v.d.Spec.Replicas
	target := size
	if wanted(v.newest) < size {
		target = v.newestSize()
	}
	if target != wanted(v.newest) {
		return []resize{{v.newest, target}}
	}
	return v.shrinkOld()
}

func (v view) shrinkOld() []resize {
	_, unavailable := bounds(v.d)
	minAvailable := *v.d.Spec.Replicas - unavailable
	// Pods of the newest set that are not available yet count as if they had gone.
	spare := sum(v.all(), wanted) - minAvailable - (wanted(v.newest) - v.newest.Status.AvailableReplicas)
	if spare <= 0 {
		return nil
	}
	old := active(v.old)
	sizes := make([]int32, len(old))
	// Pods that are not available go first: nobody misses them, and they would block the rollout.
	for i, s := range old {
		unhealthy := max(0, wanted(s)-s.Status.AvailableReplicas)
		n := min(unhealthy, spare)
		sizes[i] = wanted(s) - n
		spare -= n
	}
	extra := sum(v.all(), sureAvailable) - minAvailable
	for i := range old {
		n := max(0, min(sizes[i], extra))
		sizes[i] -= n
		extra -= n
	}
	var steps []resize
	for i, s := range old {
		if sizes[i] != wanted(s) {
			steps = append(steps, resize{s, sizes[i]})
		}
	}
	return steps
}

// shrinkAllOld is the first step of the Recreate strategy.
func (v view) shrinkAllOld() []resize {
	var steps []resize
	for _, s := range active(v.old) {
		steps = append(steps, resize{s, 0})
	}
	return steps
}

// scaled tells whether the deployment's size changed since its sets were last told.
func (v view) scaled() bool {
	for _, s := range active(v.all()) {
		if n, ok := annotatedSize(s, desiredAnnotation); ok && n != *v.d.Spec.Replicas {
			return true
		}
	}
	return false
}

// scale brings the sets to a changed size of the deployment, or of a paused one. One active set
// takes it all; several in the midst of a rollout share it in proportion, so that scaling
// does not hasten the rollout.
func (v view) scale() []resize {
	size := *v.d.Spec.Replicas
	if one := v.activeOrLatest(); one != nil {
		if wanted(one) == size {
			return nil
		}
		return []resize{{one, size}}
	}
	if v.saturated() {
		return v.shrinkAllOld()
	}
	if v.d.Spec.Strategy.Type == appsv1.RollingUpdateDeploymentStrategyType {
		return v.proportion()
	}
	return nil
}

// activeOrLatest returns the only active set, or the newest of all if none is active; nil if
// several are active or there is none at all.
func (v view) activeOrLatest() *appsv1.ReplicaSet {
	running := active(v.all())
	switch {
	case len(running) > 1:
		return nil
	case len(running) == 1:
		return running[0]
	case v.newest != nil:
		return v.newest
	case len(v.old) > 0:
		return v.old[len(v.old)-1]
	}
	return nil
}

// saturated tells whether the newest set has all replicas, available, and knows it.
func (v view) saturated() bool {
	if v.newest == nil {
		return false
	}
	size := *v.d.Spec.Replicas
	desired, err := strconv.Atoi(v.newest.Annotations[desiredAnnotation])
	return err == nil && int32(desired) == size && wanted(v.newest) == size && v.newest.Status.AvailableReplicas == size
}

// proportion shares the pods that are to come or go among the active sets by their sizes, the
// larger first; of equal ones the newer grows first and the older shrinks first. What rounding
// leaves goes to the first.
func (v view) proportion() []resize {
	sets := active(v.all())
	if len(sets) == 0 {
		return nil
	}
	var allowed int32
	if *v.d.Spec.Replicas > 0 {
		surge, _ := bounds(v.d)
		allowed = *v.d.Spec.Replicas + surge
	}
	toAdd := allowed - sum(sets, wanted)
	slices.SortStableFunc(sets, func(a, b *appsv1.ReplicaSet) int {
		byAge := compareCreation(a, b)
		if toAdd > 0 {
			byAge = -byAge
		}
		return cmp.Or(cmp.Compare(wanted(b), wanted(a)), byAge)
	})
	steps := make([]resize, len(sets))
	var added int32
	for i, s := range sets {
		share := v.share(s)
		switch left := toAdd - added; {
		case left == 0:
			share = 0
		case left > 0:
			share = min(share, left)
		default:
			share = max(share, left)
		}
		steps[i] = resize{s, wanted(s) + share}
		added += share
	}
	steps[0].replicas = max(0, steps[0].replicas+toAdd-added)
	return steps
}

// share is by how much s would change if everything changed in proportion to the deployment's
// largest size, before and after.
func (v view) share(s *appsv1.ReplicaSet) int32 {
	if *v.d.Spec.Replicas == 0 {
		return -wanted(s)
	}
	before, ok := annotatedSize(s, maxAnnotation)
	if !ok || before == 0 {
		if before = v.d.Status.Replicas; before == 0 {
			return 0
		}
	}
	surge, _ := bounds(v.d)
	after := *v.d.Spec.Replicas + surge
	return int32(math.Round(float64(wanted(s))*float64(after)/float64(before))) - wanted(s)
}

// surplus lists the old sets beyond the history limit that are empty, settled and not being
// deleted, the oldest revisions first.
func (v view) surplus() []*appsv1.ReplicaSet {
	limit := v.d.Spec.RevisionHistoryLimit
	if limit == nil || *limit == math.MaxInt32 {
		return nil
	}
	var living []*appsv1.ReplicaSet
	for _, s := range v.old {
		if s.DeletionTimestamp == nil {
			living = append(living, s)
		}
	}
	n := len(living) - int(*limit)
	if n <= 0 {
		return nil
	}
	slices.SortStableFunc(living, func(a, b *appsv1.ReplicaSet) int {
		ra, okA := revision(a)
		rb, okB := revision(b)
		if okA && okB && ra != rb {
			return cmp.Compare(ra, rb)
		}
		return compareCreation(a, b)
	})
	var surplus []*appsv1.ReplicaSet
	for _, s := range living[:n] {
		if wanted(s) == 0 && s.Status.Replicas == 0 && s.Generation <= s.Status.ObservedGeneration {
			surplus = append(surplus, s)
		}
	}
	return surplus
}

func compareCreation(a, b *appsv1.ReplicaSet) int {
	return cmp.Or(a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
}
