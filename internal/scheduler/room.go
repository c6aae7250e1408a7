package scheduler

import (
	"context"
	"errors"
	"fmt"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/store"
)

// evictions is how many pods are told to go at once for one that needs their room.
const evictions = 16

// nominate has the model know where room is made for p, before the API does.
func (s *Scheduler) nominate(p *Pod, room Preemption) {
	if room.Waits {
		return
	}
	s.mu.Lock()
	for _, other := range room.Displaced {
		s.cluster.Renounce(other.UID)
	}
	s.cluster.Nominate(p.nominatedTo(room.Node))
	s.mu.Unlock()
	for _, other := range room.Displaced {
		s.queue.Nominate(other.UID, "")
	}
	s.queue.Nominate(p.UID, room.Node)
}

func (s *Scheduler) renounce(uid types.UID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cluster.Renounce(uid)
}

// failed has the pod rest; a nomination of one that needs no node any more is forgotten.
func (s *Scheduler) failed(uid types.UID, wait bool) {
	if !s.queue.Failed(uid, wait) {
		s.renounce(uid)
	}
}

// makeRoom tells the API that p has no node and why, and tells those to go whose room it gets. The pod
// is not tried again before that is done.
func (s *Scheduler) makeRoom(ctx context.Context, p *Pod, room Preemption, message string) {
	node := room.Node
	if room.Waits {
		node = p.Nominated
	}
	s.reportFailure(ctx, p, message, node)
	err := s.evict(ctx, p, room)
	switch {
	case err == nil, ctx.Err() != nil, errors.Is(err, store.ErrFenced):
	default:
		s.cfg.Log.Warn("make room for a pod; will try again", "namespace", p.Namespace, "pod", p.Name, "node", room.Node, "error", err)
	}
	s.failed(p.UID, err == nil)
}

// evict ends those who have to go for p.
func (s *Scheduler) evict(ctx context.Context, p *Pod, room Preemption) error {
	var group errgroup.Group
	group.SetLimit(evictions)
	for _, other := range room.Displaced {
		group.Go(func() error { return s.displace(ctx, other) })
	}
	for _, victim := range room.Victims {
		if victim.DeletionTimestamp == nil {
			group.Go(func() error { return s.end(ctx, victim, p, room.Node) })
		}
	}
	return group.Wait()
}

// displace takes a nomination back.
func (s *Scheduler) displace(ctx context.Context, p *Pod) error {
	from := p.DeepCopy()
	from.Status.NominatedNodeName = p.Nominated
	changed := from.DeepCopy()
	changed.Status.NominatedNodeName = ""
	if err := s.cfg.Client.Status().Patch(ctx, changed, barqueclient.PatchSame(from)); barqueclient.IgnoreGone(err) != nil {
		return fmt.Errorf("take the nomination of node %s from pod %s/%s: %w", p.Nominated, p.Namespace, p.Name, err)
	}
	return nil
}

// end deletes a pod, which shows in its condition why.
func (s *Scheduler) end(ctx context.Context, victim, p *Pod, node string) error {
	changed := victim.DeepCopy()
	if setCondition(&changed.Status, corev1.PodCondition{
		Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue, Reason: corev1.PodReasonPreemptionByScheduler,
		Message: s.cfg.Name + ": preempting to accommodate a higher priority pod", LastTransitionTime: metav1.Now(),
	}) {
		if err := s.cfg.Client.Status().Patch(ctx, changed, barqueclient.PatchSame(victim.Pod)); barqueclient.IgnoreGone(err) != nil {
			return fmt.Errorf("mark pod %s/%s for preemption: %w", victim.Namespace, victim.Name, err)
		}
	}
	err := s.cfg.Client.Delete(ctx, victim.DeepCopy(), client.Preconditions{UID: &victim.UID})
	if barqueclient.IgnoreGone(err) != nil {
		return fmt.Errorf("preempt pod %s/%s: %w", victim.Namespace, victim.Name, err)
	}
	if err == nil {
		s.cfg.Recorder.Eventf(victim.Pod, corev1.EventTypeNormal, "Preempted", "Preempted by pod %s on node %s", p.UID, node)
	}
	return nil
}

// reportFailure says in the pod's condition and in an event why it has no node, and in its status
// which one was nominated for it.
func (s *Scheduler) reportFailure(ctx context.Context, p *Pod, message, nominated string) {
	s.cfg.Recorder.Event(p.Pod, corev1.EventTypeWarning, "FailedScheduling", message)
	from := p.DeepCopy()
	from.Status.NominatedNodeName = p.Nominated
	changed := from.DeepCopy()
	changed.Status.NominatedNodeName = nominated
	said := setCondition(&changed.Status, corev1.PodCondition{
		Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: corev1.PodReasonUnschedulable,
		Message: message, LastTransitionTime: metav1.Now(),
	})
	if !said && nominated == p.Nominated {
		return
	}
	err := s.cfg.Client.Status().Patch(ctx, changed, barqueclient.PatchSame(from))
	if barqueclient.IgnoreGone(err) != nil && ctx.Err() == nil && !errors.Is(err, store.ErrFenced) {
		s.cfg.Log.Warn("report that a pod fits nowhere", "namespace", p.Namespace, "pod", p.Name, "error", err)
	}
}

// setCondition sets a condition, whose transition time stays unless its status changes; it tells
// whether that changed anything.
func setCondition(status *corev1.PodStatus, cond corev1.PodCondition) bool {
	for i := range status.Conditions {
		c := &status.Conditions[i]
		if c.Type != cond.Type {
			continue
		}
		if c.Status == cond.Status && c.Reason == cond.Reason && c.Message == cond.Message {
			return false
		}
		if c.Status == cond.Status {
			cond.LastTransitionTime = c.LastTransitionTime
		}
		*c = cond
		return true
	}
	status.Conditions = append(status.Conditions, cond)
	return true
}
