package scheduler

import (
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	policyv1 "k8s.io/api/policy/v1"
	"k8s.io/apimachinery/pkg/api/equality"

	barqueclient "barque.dev/internal/client"
)

// nodeChanged keeps the model; what changes a node's room for pods wakes those that wait.
func (s *Scheduler) nodeChanged(e barqueclient.Event) {
	s.mu.Lock()
	if e.New == nil {
		s.cluster.RemoveNode(e.Old.GetName())
	} else {
		s.cluster.SetNode(e.New.(*corev1.Node))
	}
	s.mu.Unlock()
	if e.New == nil {
		return
	}
	if e.Old == nil || roomChanged(e.Old.(*corev1.Node), e.New.(*corev1.Node)) {
		s.queue.Changed()
	}
}

func roomChanged(a, b *corev1.Node) bool {
	return a.Spec.Unschedulable != b.Spec.Unschedulable ||
		!equality.Semantic.DeepEqual(a.Spec.Taints, b.Spec.Taints) ||
		!equality.Semantic.DeepEqual(a.Labels, b.Labels) ||
		!equality.Semantic.DeepEqual(a.Status.Allocatable, b.Status.Allocatable)
}

func (s *Scheduler) podChanged(e barqueclient.Event) {
	pod := e.Object().(*corev1.Pod)
	over := e.New == nil || pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	switch {
	case over:
		s.queue.Remove(pod.UID)
		s.mu.Lock()
		s.cluster.RemovePod(pod.UID)
		s.mu.Unlock()
		if pod.Spec.NodeName != "" {
			s.queue.Changed()
			s.queue.Freed(pod.Spec.NodeName)
		}
	case pod.Spec.NodeName != "":
		s.queue.Remove(pod.UID)
		p := NewPod(pod)
		s.mu.Lock()
		s.cluster.SetPod(p, pod.Spec.NodeName)
		s.mu.Unlock()
		if e.Old == nil || e.Old.(*corev1.Pod).Spec.NodeName == "" {
			s.queue.Placed(p)
		} else if !maps.Equal(pod.Labels, e.Old.GetLabels()) {
			s.queue.Changed()
		}
	case pod.Spec.SchedulerName != s.cfg.Name || pod.DeletionTimestamp != nil || len(pod.Spec.SchedulingGates) > 0:
		s.queue.Remove(pod.UID)
		s.renounce(pod.UID)
	default:
		s.mu.Lock()
		// A late event of a pod that is being bound must not have it scheduled twice.
		_, assumed := s.cluster.where[pod.UID]
		var p *Pod
		if !assumed {
			p = s.nomination(e)
			s.cluster.Nominate(p)
		}
		s.mu.Unlock()
		if !assumed {
			s.queue.Set(p)
		}
	}
}

// nomination returns the pod with the node that is nominated for it: what the API says, unless it has
// not heard yet of what this scheduler decided. s.mu is held.
func (s *Scheduler) nomination(e barqueclient.Event) *Pod {
	p := NewPod(e.New.(*corev1.Pod))
	if e.Old != nil && e.Old.(*corev1.Pod).Status.NominatedNodeName == p.Nominated {
		if known := s.cluster.Nomination(p.UID); known != p.Nominated {
			p = p.nominatedTo(known)
		}
	}
	return p
}

// namespaceChanged keeps the labels of namespaces, by which terms select pods.
func (s *Scheduler) namespaceChanged(e barqueclient.Event) {
	name := e.Object().GetName()
	s.mu.Lock()
	if e.New == nil {
		s.cluster.RemoveNamespace(name)
	} else if e.Old == nil || !maps.Equal(e.Old.GetLabels(), e.New.GetLabels()) {
		s.cluster.SetNamespace(name, e.New.GetLabels())
	}
	s.mu.Unlock()
	if e.Old != nil && e.New != nil && !maps.Equal(e.Old.GetLabels(), e.New.GetLabels()) {
		s.queue.Changed()
	}
}

// budgetChanged keeps the disruption budgets. The slice is replaced, never changed: decisions look at it.
func (s *Scheduler) budgetChanged(e barqueclient.Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	uid := e.Object().GetUID()
	s.budgets = slices.DeleteFunc(slices.Clone(s.budgets), func(b Budget) bool { return b.UID == uid })
	if e.New == nil {
		return
	}
	if b, ok := NewBudget(e.New.(*policyv1.PodDisruptionBudget)); ok {
		s.budgets = append(s.budgets, b)
	}
}
