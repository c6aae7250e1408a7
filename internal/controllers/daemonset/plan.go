package daemonset

import (
	"cmp"
	"slices"
	"strconv"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"barque.dev/internal/controllers/pods"
)

// A state is all that decisions about a DaemonSet are made of.
type state struct {
	ds *appsv1.DaemonSet
	placement
	nodes []*corev1.Node           // by name
	pods  map[string][]*corev1.Pod // by node, the ones with a node first, then by age
	hash  string                   // of the current revision
	now   time.Time
	// wait is how long a failed pod on a node must still be left alone, so that a pod that a
	// node refuses at once is not made again at once. nil means 0.
	wait func(node string) time.Duration
}

// A plan is which pods to delete and on which nodes to create one.
type plan struct {
	create []string
	delete []*corev1.Pod
	// ended are those of delete that failed or, against a daemon's nature, succeeded.
	ended []*corev1.Pod
	// again is when to look again because of a pod that must be left alone; 0 for not at all.
	again time.Duration
}

func (p plan) empty() bool { return len(p.create) == 0 && len(p.delete) == 0 }

// newState groups claimed pods by node. A pod that has ended and is being deleted is out of
// the picture.
func newState(ds *appsv1.DaemonSet, nodes []*corev1.Node, claimed []*corev1.Pod, hash string, now time.Time) state {
	s := state{ds: ds, placement: newPlacement(ds), nodes: nodes, pods: map[string][]*corev1.Pod{}, hash: hash, now: now}
	for _, p := range claimed {
		if pods.Terminal(p) && p.DeletionTimestamp != nil {
			continue
		}
		if node := target(p); node != "" {
			s.pods[node] = append(s.pods[node], p)
		}
	}
	for _, list := range s.pods {
		slices.SortFunc(list, func(a, b *corev1.Pod) int {
			bound := 0
			if (a.Spec.NodeName == "") != (b.Spec.NodeName == "") {
				bound = 1
				if b.Spec.NodeName == "" {
					bound = -1
				}
			}
			return cmp.Or(bound, a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.Name, b.Name))
		})
	}
	return s
}

// updated tells whether a pod is of the current template.
func (s state) updated(p *corev1.Pod) bool {
	if s.hash != "" && p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == s.hash {
		return true
	}
	g, ok := generation(s.ds)
	return ok && p.Labels[generationLabel] == g
}

const generationLabel = "pod-template-generation"

// generation is the template's generation, which DaemonSets of before apps/v1 were updated by.
func generation(ds *appsv1.DaemonSet) (string, bool) {
	n, err := strconv.ParseInt(ds.Annotations[appsv1.DeprecatedTemplateGeneration], 10, 64)
	return strconv.FormatInt(n, 10), err == nil
}

func (s state) available(p *corev1.Pod) bool {
	return pods.Available(p, s.ds.Spec.MinReadySeconds, s.now)
}

// bounds are how many nodes may have a second pod, and how many may be without an available
// one, during an update, of desired nodes.
func (s state) bounds(desired int) (surge, unavailable int) {
	ru := s.ds.Spec.UpdateStrategy.RollingUpdate
	if s.ds.Spec.UpdateStrategy.Type != appsv1.RollingUpdateDaemonSetStrategyType || ru == nil {
		return 0, 0
	}
	zero := intstr.FromInt32(0)
	// Malformed percentages do not pass validation; they count as 0 here.
	surge, _ = intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxSurge, zero), desired, true)
	unavailable, _ = intstr.GetScaledValueFromIntOrPercent(intstr.ValueOrDefault(ru.MaxUnavailable, zero), desired, true)
	if desired > 0 && surge == 0 && unavailable == 0 {
		unavailable = 1
	}
	return surge, unavailable
}

func (s state) surges() bool {
	surge, _ := s.bounds(1)
	return surge > 0
}

// manage sees to it that each node has the pod it should have, whatever its revision.
func (s state) manage() plan {
	var p plan
	known := map[string]bool{}
	for _, node := range s.nodes {
		known[node.Name] = true
		here := s.pods[node.Name]
		start, stay := s.fits(node)
		switch {
		case start && len(here) == 0:
			p.create = append(p.create, node.Name)
		case stay:
			s.tidy(&p, node.Name, here, start)
		default:
			p.delete = append(p.delete, alive(here)...)
		}
	}
	// A pod that is pinned to a node that is gone will never be scheduled.
	for node, list := range s.pods {
		if !known[node] {
			p.delete = append(p.delete, pods.Filter(list, func(p *corev1.Pod) bool {
				return p.Spec.NodeName == "" && p.DeletionTimestamp == nil
			})...)
		}
	}
	return p
}

func alive(list []*corev1.Pod) []*corev1.Pod {
	return pods.Filter(list, func(p *corev1.Pod) bool { return p.DeletionTimestamp == nil })
}

// tidy removes from a node the pods that ended and those that are too many.
func (s state) tidy(p *plan, node string, here []*corev1.Pod, start bool) {
	var running []*corev1.Pod
	for _, pod := range alive(here) {
		switch pod.Status.Phase {
		case corev1.PodFailed:
			if s.wait != nil {
				if left := s.wait(node); left > 0 {
					if p.again == 0 || left < p.again {
						p.again = left
					}
					continue
				}
			}
			fallthrough
		case corev1.PodSucceeded:
			p.ended = append(p.ended, pod)
			p.delete = append(p.delete, pod)
		default:
			running = append(running, pod)
		}
	}
	switch {
	case !s.surges():
		if len(running) > 1 {
			p.delete = append(p.delete, running[1:]...)
		}
	case len(running) == 0:
		if start {
			p.create = append(p.create, node)
		}
	default:
		p.delete = append(p.delete, s.tooMany(running)...)
	}
}

// tooMany keeps, while updates surge, the oldest pod of the current revision and the oldest of
// another, the latter as long as it is ready and the former not yet available.
func (s state) tooMany(running []*corev1.Pod) []*corev1.Pod {
	var surplus []*corev1.Pod
	var current, former *corev1.Pod
	for _, p := range running {
		switch isCurrent := p.Labels[appsv1.DefaultDaemonSetUniqueLabelKey] == s.hash; {
		case isCurrent && current == nil:
			current = p
		case !isCurrent && former == nil:
			former = p
		default:
			surplus = append(surplus, p)
		}
	}
	if current != nil && former != nil && (!pods.Ready(former) || s.available(current)) {
		surplus = append(surplus, former)
	}
	return surplus
}

// pair finds the pods of the current revision and of another on a node; ok is false if there
// are more than one of either.
func (s state) pair(node string) (current, former *corev1.Pod, ok bool) {
	for _, p := range alive(s.pods[node]) {
		slot := &former
		if s.updated(p) {
			slot = &current
		}
		if *slot != nil {
			return nil, nil, false
		}
		*slot = p
	}
	return current, former, true
}

// update is the next step of a rolling update, for nodes that manage has nothing to do on.
func (s state) update() plan {
	desired := 0
	nodes := map[string]*corev1.Node{}
	for name := range s.pods {
		nodes[name] = nil
	}
	for _, n := range s.nodes {
		start, _ := s.fits(n)
		if start {
			desired++
		}
		if _, has := nodes[n.Name]; has || start {
			nodes[n.Name] = n
		}
	}
	surge, unavailable := s.bounds(desired)
	if surge == 0 {
		return s.replace(nodes, unavailable)
	}
	return s.surge(nodes, surge, desired)
}

// replace deletes former pods: all that are not available anyway, and as many others as may be
// missing beside what is missing already.
func (s state) replace(nodes map[string]*corev1.Node, unavailable int) plan {
	var p plan
	var candidates []*corev1.Pod
	missing := 0
	for _, name := range sortedNames(nodes) {
		current, former, ok := s.pair(name)
		switch {
		case !ok, (current == nil) == (former == nil):
			missing++
		case current != nil:
			if !s.available(current) {
				missing++
			}
		case !s.available(former):
			p.delete = append(p.delete, former)
			missing++
		default:
			candidates = append(candidates, former)
		}
	}
	p.delete = append(p.delete, candidates[:min(len(candidates), max(0, unavailable-missing))]...)
	return p
}

// surge creates current pods beside former ones: wherever the former is not available anyway,
// and at as many other nodes as the surge allows; a former pod goes when the current one is
// available. Where the set no longer belongs, a former pod goes only when there are enough
// available ones without it.
func (s state) surge(nodes map[string]*corev1.Node, surge, desired int) plan {
	var p plan
	var candidates []string
	var leaving []*corev1.Pod
	surging, available := 0, 0
	for _, name := range sortedNames(nodes) {
		current, former, ok := s.pair(name)
		if !ok {
			surging++
			continue
		}
		if one := cmp.Or(former, current); one != nil && s.available(one) {
			available++
		}
		switch start := s.starts(nodes[name]); {
		case former == nil:
		case current != nil && s.available(current):
			p.delete = append(p.delete, former)
		case current != nil:
			surging++
		case !start && s.available(former):
			leaving = append(leaving, former)
		case !start:
			p.delete = append(p.delete, former)
		case !s.available(former):
			p.create = append(p.create, name)
		default:
			candidates = append(candidates, name)
		}
	}
	p.delete = append(p.delete, leaving[:min(len(leaving), max(0, available-desired))]...)
	p.create = append(p.create, candidates[:min(len(candidates), max(0, surge-surging))]...)
	return p
}

func (s state) starts(node *corev1.Node) bool {
	if node == nil {
		return false
	}
	start, _ := s.fits(node)
	return start
}

func sortedNames(nodes map[string]*corev1.Node) []string {
	names := make([]string, 0, len(nodes))
	for n := range nodes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// status counts nodes, by the first pod of each.
func (s state) status() appsv1.DaemonSetStatus {
	st := *s.ds.Status.DeepCopy()
	st.ObservedGeneration = s.ds.Generation
	st.DesiredNumberScheduled, st.CurrentNumberScheduled, st.NumberMisscheduled = 0, 0, 0
	st.NumberReady, st.NumberAvailable, st.UpdatedNumberScheduled = 0, 0, 0
	for _, node := range s.nodes {
		here := s.pods[node.Name]
		if start, _ := s.fits(node); !start {
			if len(here) > 0 {
				st.NumberMisscheduled++
			}
			continue
		}
		st.DesiredNumberScheduled++
		if len(here) == 0 {
			continue
		}
		st.CurrentNumberScheduled++
		if pods.Ready(here[0]) {
			st.NumberReady++
		}
		if s.available(here[0]) {
			st.NumberAvailable++
		}
		if s.updated(here[0]) {
			st.UpdatedNumberScheduled++
		}
	}
	st.NumberUnavailable = st.DesiredNumberScheduled - st.NumberAvailable
	return st
}
