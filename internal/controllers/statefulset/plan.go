package statefulset

import (
	"cmp"
	"slices"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"barque.dev/internal/controllers/pods"
)

// A verb is what to do with a pod.
type verb int8

const (
	// create makes the pod's claims, then the pod.
	create verb = iota
	// remove deletes the pod.
	remove
	// claims makes claims that are missing and settles the owners of all.
	claims
	// fix brings the pod's identity and volumes back, and its claims.
	fix
)

type action struct {
	verb    verb
	pod     *corev1.Pod
	ordinal int
}

// A revision is a template and its name.
type revision struct {
	name     string
	template *corev1.PodTemplateSpec
}

// A view is all that decisions about a set are made of.
type view struct {
	set *appsv1.StatefulSet
	// current is what pods below the partition are made of, update what the others are.
	current, update revision
	pods            []*corev1.Pod
	// claim returns a claim by name, nil if there is none.
	claim func(name string) *corev1.PersistentVolumeClaim
	now   time.Time
}

// ordered tells whether pods come and go one after the other.
func (v view) ordered() bool { return v.set.Spec.PodManagementPolicy != appsv1.ParallelPodManagement }

func (v view) available(p *corev1.Pod) bool {
	return p != nil && p.DeletionTimestamp == nil && pods.Available(p, v.set.Spec.MinReadySeconds, v.now)
}

// split sorts pods into those that the set should have, by ordinal and nil where one is
// missing, and those it should not, the highest ordinal first.
func (v view) split() (replicas, condemned []*corev1.Pod) {
	replicas = make([]*corev1.Pod, *v.set.Spec.Replicas)
	for _, p := range v.pods {
		n, ok := ordinal(p)
		switch {
		case !ok:
		case inRange(v.set, n):
			replicas[n-first(v.set)] = p
		default:
			condemned = append(condemned, p)
		}
	}
	slices.SortFunc(condemned, func(a, b *corev1.Pod) int {
		na, _ := ordinal(a)
		nb, _ := ordinal(b)
		return cmp.Compare(nb, na)
	})
	return replicas, condemned
}

// plan lists what can be done now. An ordered set does one thing after the other: it makes
// pods upwards, each when its predecessors are available; then removes surplus ones downwards,
// each when those above it are gone; then replaces outdated ones downwards. A parallel set
// does all at once, within maxUnavailable for outdated ones.
func (v view) plan() []action {
	if v.set.DeletionTimestamp != nil {
		return nil
	}
	replicas, condemned := v.split()
	actions, blocked := v.planReplicas(replicas)
	if blocked {
		return actions
	}
	more, blocked := v.planCondemned(condemned)
	actions = append(actions, more...)
	if blocked || v.set.Spec.UpdateStrategy.Type != appsv1.RollingUpdateStatefulSetStrategyType {
		return actions
	}
	return append(actions, v.planUpdate(replicas)...)
}

// planReplicas keeps the pods that the set should have. blocked means that an ordered set has
// to wait before it does more.
func (v view) planReplicas(replicas []*corev1.Pod) (actions []action, blocked bool) {
	for i, p := range replicas {
		n := first(v.set) + i
		next, wait := v.planReplica(p, n)
		actions = append(actions, next...)
		if wait && v.ordered() {
			return actions, true
		}
	}
	return actions, false
}

func (v view) planReplica(p *corev1.Pod, n int) (actions []action, wait bool) {
	switch {
	case p == nil:
		pod := v.newPod(n)
		if v.staleClaims(pod, n) {
			return nil, true
		}
		return []action{{create, pod, n}}, true
	case pods.Terminal(p):
		// Also a pod that succeeded: how its process ended does not tell why, as when a node
		// reboots. It is made again when it is gone.
		if p.DeletionTimestamp == nil {
			actions = []action{{remove, p, n}}
		}
		return actions, true
	}
	if p.Status.Phase == corev1.PodPending {
		if !v.hasClaims(p, n) {
			actions = append(actions, action{claims, p, n})
		}
	}
	if v.ordered() && !(v.available(p) && p.Status.Phase == corev1.PodRunning) {
		return actions, true
	}
	if !hasIdentity(v.set, p, n) || !hasStorage(v.set, p, n) || !v.ownersSettled(p, n) {
		actions = append(actions, action{fix, p, n})
	}
	return actions, false
}

// newPod makes the pod with ordinal n of the revision that it should have.
func (v view) newPod(n int) *corev1.Pod {
	rev := v.update
	if v.set.Spec.UpdateStrategy.Type == appsv1.RollingUpdateStatefulSetStrategyType {
		below := int(v.set.Status.CurrentReplicas)
		if ru := v.set.Spec.UpdateStrategy.RollingUpdate; ru != nil {
			below = v.partition()
		}
		if n < first(v.set)+below {
			rev = v.current
		}
	}
	return newPod(v.set, rev.template, rev.name, n)
}

func (v view) partition() int {
	if ru := v.set.Spec.UpdateStrategy.RollingUpdate; ru != nil && ru.Partition != nil {
		return int(*ru.Partition)
	}
	return 0
}

// staleClaims tells whether a claim of the pod still belongs to its predecessor, with which it
// is about to be deleted.
func (v view) staleClaims(pod *corev1.Pod, n int) bool {
	if _, whenScaled := retention(v.set); !whenScaled {
		return false
	}
	return v.anyClaim(n, func(c *corev1.PersistentVolumeClaim) bool { return c != nil && stale(c, pod, podKind) })
}

func (v view) hasClaims(pod *corev1.Pod, n int) bool {
	return !v.anyClaim(n, func(c *corev1.PersistentVolumeClaim) bool {
		return c == nil || c.DeletionTimestamp != nil || !ownersSettled(c, v.set, pod)
	})
}

func (v view) ownersSettled(pod *corev1.Pod, n int) bool {
	return !v.anyClaim(n, func(c *corev1.PersistentVolumeClaim) bool { return c != nil && !ownersSettled(c, v.set, pod) })
}

func (v view) anyClaim(n int, f func(*corev1.PersistentVolumeClaim) bool) bool {
	for i := range v.set.Spec.VolumeClaimTemplates {
		if f(v.claim(claimName(v.set, v.set.Spec.VolumeClaimTemplates[i].Name, n))) {
			return true
		}
	}
	return false
}

// planCondemned removes surplus pods, after it has settled whose their claims are.
func (v view) planCondemned(condemned []*corev1.Pod) (actions []action, blocked bool) {
	var firstUnavailable *corev1.Pod // the one with the lowest ordinal
	for _, p := range condemned {
		n, _ := ordinal(p)
		if !v.ownersSettled(p, n) {
			actions = append(actions, action{claims, p, n})
		}
		if !v.available(p) {
			firstUnavailable = p
		}
	}
	for _, p := range condemned {
		n, _ := ordinal(p)
		dying := p.DeletionTimestamp != nil
		switch {
		case !v.ordered() && dying:
		case v.ordered() && (dying || !v.available(p) && p != firstUnavailable):
			return actions, true
		default:
			actions = append(actions, action{remove, p, n})
			if v.ordered() {
				return actions, true
			}
		}
	}
	return actions, false
}

// planUpdate removes outdated pods, from the highest ordinal down to the partition, as long as
// no more than maxUnavailable are unavailable then. A parallel set removes those that are
// unavailable anyway in any case.
func (v view) planUpdate(replicas []*corev1.Pod) []action {
	budget := v.maxUnavailable()
	for _, p := range replicas {
		if !v.available(p) {
			budget--
		}
	}
	var broken, sound []action
	for i := len(replicas) - 1; i >= v.partition(); i-- {
		p := replicas[i]
		if p == nil || pods.Terminal(p) || p.DeletionTimestamp != nil || revisionOf(p) == v.update.name {
			continue
		}
		a := action{remove, p, first(v.set) + i}
		switch {
		case v.ordered():
			if len(sound) < budget {
				sound = append(sound, a)
			}
		case !v.available(p):
			broken = append(broken, a)
		case len(sound) < budget:
			sound = append(sound, a)
		}
	}
	return append(broken, sound...)
}

func (v view) maxUnavailable() int {
	ru := v.set.Spec.UpdateStrategy.RollingUpdate
	if ru == nil || ru.MaxUnavailable == nil {
		return 1
	}
	// A malformed percentage does not pass validation; it counts as 0, thus 1, here.
	n, _ := intstr.GetScaledValueFromIntOrPercent(ru.MaxUnavailable, int(*v.set.Spec.Replicas), false)
	return max(1, n)
}

// status counts pods. When all are there, updated and ready, the update becomes the current
// revision.
func (v view) status(collisions int32) appsv1.StatefulSetStatus {
	s := appsv1.StatefulSetStatus{
		ObservedGeneration: v.set.Generation,
		CurrentRevision:    v.current.name,
		UpdateRevision:     v.update.name,
		CollisionCount:     &collisions,
		Conditions:         v.set.Status.Conditions,
	}
	for _, p := range v.pods {
		if _, ok := ordinal(p); !ok {
			continue
		}
		s.Replicas++
		if p.Status.Phase == corev1.PodRunning && pods.Ready(p) {
			s.ReadyReplicas++
			if pods.Available(p, v.set.Spec.MinReadySeconds, v.now) {
				s.AvailableReplicas++
			}
		}
		if p.DeletionTimestamp != nil {
			continue
		}
		if revisionOf(p) == v.current.name {
			s.CurrentReplicas++
		}
		if revisionOf(p) == v.update.name {
			s.UpdatedReplicas++
		}
	}
	if n := *v.set.Spec.Replicas; s.UpdatedReplicas == n && s.ReadyReplicas == n && s.Replicas == n {
		s.CurrentReplicas = s.UpdatedReplicas
		s.CurrentRevision = s.UpdateRevision
	}
	return s
}
