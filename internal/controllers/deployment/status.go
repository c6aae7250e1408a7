package deployment

import (
	"fmt"
	"math"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Reasons of the conditions Progressing and Available.
const (
	reasonSetUpdated     = "ReplicaSetUpdated"
	reasonCreateError    = "ReplicaSetCreateError"
	reasonSetCreated     = "NewReplicaSetCreated"
	reasonSetFound       = "FoundNewReplicaSet"
	reasonSetAvailable   = "NewReplicaSetAvailable"
	reasonTimedOut       = "ProgressDeadlineExceeded"
	reasonPaused         = "DeploymentPaused"
	reasonResumed        = "DeploymentResumed"
	reasonMinAvailable   = "MinimumReplicasAvailable"
	reasonMinUnavailable = "MinimumReplicasUnavailable"
)

func hasDeadline(d *appsv1.Deployment) bool {
	return d.Spec.ProgressDeadlineSeconds != nil && *d.Spec.ProgressDeadlineSeconds != math.MaxInt32
}

func condition(s *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType) *appsv1.DeploymentCondition {
	for i := range s.Conditions {
		if s.Conditions[i].Type == kind {
			return &s.Conditions[i]
		}
	}
	return nil
}

// setCondition replaces the condition of c's type, unless status and reason are the same. The
// time of transition stays while the status does.
func setCondition(s *appsv1.DeploymentStatus, c appsv1.DeploymentCondition) {
	if current := condition(s, c.Type); current != nil {
		if current.Status == c.Status && current.Reason == c.Reason {
			return
		}
		if current.Status == c.Status {
			c.LastTransitionTime = current.LastTransitionTime
		}
	}
	removeCondition(s, c.Type)
	s.Conditions = append(s.Conditions, c)
}

func removeCondition(s *appsv1.DeploymentStatus, kind appsv1.DeploymentConditionType) {
	var kept []appsv1.DeploymentCondition
	for _, c := range s.Conditions {
		if c.Type != kind {
			kept = append(kept, c)
		}
	}
	s.Conditions = kept
}

func newCondition(kind appsv1.DeploymentConditionType, status corev1.ConditionStatus, reason, message string, now time.Time) appsv1.DeploymentCondition {
	t := metav1.Time{Time: now}
	return appsv1.DeploymentCondition{
		Type: kind, Status: status, Reason: reason, Message: message, LastUpdateTime: t, LastTransitionTime: t,
	}
}

// notePause marks a pause and its end in the Progressing condition, so that the time of the
// pause does not count towards the deadline.
func notePause(d *appsv1.Deployment, now time.Time) {
	c := condition(&d.Status, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c != nil && c.Reason == reasonTimedOut {
		return
	}
	noted := c != nil && c.Reason == reasonPaused
	switch {
	case d.Spec.Paused && !noted:
		setCondition(&d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonPaused, "Deployment is paused", now))
	case !d.Spec.Paused && noted:
		setCondition(&d.Status, newCondition(appsv1.DeploymentProgressing, corev1.ConditionUnknown, reasonResumed, "Deployment is resumed", now))
	}
}

// counts is the status but for its progress; d's conditions are kept.
func (v view) counts(now time.Time) appsv1.DeploymentStatus {
	all := v.all()
	s := appsv1.DeploymentStatus{
		ObservedGeneration:  v.d.Generation,
		Replicas:            sum(all, func(s *appsv1.ReplicaSet) int32 { return s.Status.Replicas }),
		ReadyReplicas:       sum(all, func(s *appsv1.ReplicaSet) int32 { return s.Status.ReadyReplicas }),
		AvailableReplicas:   sum(all, func(s *appsv1.ReplicaSet) int32 { return s.Status.AvailableReplicas }),
		TerminatingReplicas: terminating(all),
		CollisionCount:      v.d.Status.CollisionCount,
	}
	if v.newest != nil {
		s.UpdatedReplicas = v.newest.Status.Replicas
	}
	s.UnavailableReplicas = max(0, sum(all, wanted)-s.AvailableReplicas)
	for _, c := range v.d.Status.Conditions {
		s.Conditions = append(s.Conditions, *c.DeepCopy())
	}
	_, unavailable := bounds(v.d)
	if s.AvailableReplicas >= *v.d.Spec.Replicas-unavailable {
		setCondition(&s, newCondition(appsv1.DeploymentAvailable, corev1.ConditionTrue, reasonMinAvailable, "Deployment has minimum availability.", now))
	} else {
		setCondition(&s, newCondition(appsv1.DeploymentAvailable, corev1.ConditionFalse, reasonMinUnavailable, "Deployment does not have minimum availability.", now))
	}
	return s
}

// terminating sums up the sets' terminating pods; nil if a set that was seen to does not tell.
func terminating(sets []*appsv1.ReplicaSet) *int32 {
	var n int32
	for _, s := range sets {
		if s.Status.TerminatingReplicas != nil {
			n += *s.Status.TerminatingReplicas
		} else if s.Status.ObservedGeneration != 0 {
			return nil
		}
	}
	return &n
}

// complete tells whether all replicas are updated and available, and no others are left.
func complete(d *appsv1.Deployment, s *appsv1.DeploymentStatus) bool {
	size := *d.Spec.Replicas
	return s.UpdatedReplicas == size && s.Replicas == size && s.AvailableReplicas == size && s.ObservedGeneration >= d.Generation
}

// progressed tells whether the rollout got further from before to after.
func progressed(before, after *appsv1.DeploymentStatus) bool {
	return after.UpdatedReplicas > before.UpdatedReplicas ||
		after.Replicas-after.UpdatedReplicas < before.Replicas-before.UpdatedReplicas ||
		after.ReadyReplicas > before.ReadyReplicas ||
		after.AvailableReplicas > before.AvailableReplicas
}

// timedOut tells whether the last progress lies longer back than the deadline.
func timedOut(d *appsv1.Deployment, s *appsv1.DeploymentStatus, now time.Time) bool {
	c := condition(s, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c == nil || c.Reason == reasonSetAvailable {
		return false
	}
	return c.Reason == reasonTimedOut || c.LastUpdateTime.Add(deadline(d)).Before(now)
}

func deadline(d *appsv1.Deployment) time.Duration {
	return time.Duration(*d.Spec.ProgressDeadlineSeconds) * time.Second
}

// rollout is the status during a rollout: counts, progress and failures.
func (v view) rollout(now time.Time) appsv1.DeploymentStatus {
	s := v.counts(now)
	current := condition(&v.d.Status, appsv1.DeploymentProgressing)
	settled := s.Replicas == s.UpdatedReplicas && current != nil && current.Reason == reasonSetAvailable
	switch {
	case !hasDeadline(v.d):
		removeCondition(&s, appsv1.DeploymentProgressing)
	case settled:
		// A scaling of a rollout that is complete is no progress to judge.
	case complete(v.d, &s):
		setCondition(&s, newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetAvailable, v.say("has successfully progressed."), now))
	case progressed(&v.d.Status, &s):
		c := newCondition(appsv1.DeploymentProgressing, corev1.ConditionTrue, reasonSetUpdated, v.say("is progressing."), now)
		if current != nil && current.Status == corev1.ConditionTrue {
			c.LastTransitionTime = current.LastTransitionTime
		}
		// Every progress moves the time of the update, also with the same reason.
		removeCondition(&s, appsv1.DeploymentProgressing)
		s.Conditions = append(s.Conditions, c)
	case timedOut(v.d, &s, now):
		setCondition(&s, newCondition(appsv1.DeploymentProgressing, corev1.ConditionFalse, reasonTimedOut, v.say("has timed out progressing."), now))
	}
	if c := v.failure(); c != nil {
		setCondition(&s, *c)
	} else {
		removeCondition(&s, appsv1.DeploymentReplicaFailure)
	}
	return s
}

func (v view) say(what string) string {
	if v.newest != nil {
		return fmt.Sprintf("ReplicaSet %q %s", v.newest.Name, what)
	}
	return fmt.Sprintf("Deployment %q %s", v.d.Name, what)
}

// failure passes on the ReplicaFailure of a set, of the newest if it has one.
func (v view) failure() *appsv1.DeploymentCondition {
	sets := v.old
	if v.newest != nil {
		sets = append([]*appsv1.ReplicaSet{v.newest}, sets...)
	}
	for _, s := range sets {
		for _, c := range s.Status.Conditions {
			if c.Type == appsv1.ReplicaSetReplicaFailure {
				return &appsv1.DeploymentCondition{
					Type: appsv1.DeploymentReplicaFailure, Status: c.Status, Reason: c.Reason, Message: c.Message,
					LastTransitionTime: c.LastTransitionTime, LastUpdateTime: c.LastTransitionTime,
				}
			}
		}
	}
	return nil
}

// nextCheck is how long after now a rollout that shows no progress is to be looked at again; 0
// if there is none.
func nextCheck(d *appsv1.Deployment, s *appsv1.DeploymentStatus, now time.Time) time.Duration {
	c := condition(s, appsv1.DeploymentProgressing)
	if !hasDeadline(d) || c == nil || complete(d, s) || c.Reason == reasonTimedOut || c.Reason == reasonSetAvailable || d.Spec.Paused {
		return 0
	}
	// Times in objects are whole seconds.
	return max(0, c.LastUpdateTime.Add(deadline(d)).Sub(now)) + time.Second
}
