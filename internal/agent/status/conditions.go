package status

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/agent/plan"
)

// owned are the condition types that the agent writes; all others belong to others.
func owned(t corev1.PodConditionType) bool {
	switch t {
	case corev1.PodScheduled, corev1.PodReady, corev1.PodInitialized, corev1.ContainersReady, corev1.PodReadyToStartContainers,
		corev1.PodResizePending, corev1.PodResizeInProgress:
		return true
	}
	return false
}

// conditions returns the pod's conditions: others' as they were, and the agent's own, with the
// moment of their last change kept where they did not change.
func conditions(in Input, s corev1.PodStatus) []corev1.PodCondition {
	var out []corev1.PodCondition
	for _, c := range in.Pod.Status.Conditions {
		if !owned(c.Type) {
			out = append(out, c)
		}
	}
	containers := containersReady(in, s)
	own := []corev1.PodCondition{
		readyToStart(in),
		initialized(in, s),
		podReady(in, out, containers),
		containers,
		{Type: corev1.PodScheduled, Status: corev1.ConditionTrue},
	}
	own = append(own, resizing(in.Resize)...)
	for i := range own {
		if own[i].ObservedGeneration == 0 {
			own[i].ObservedGeneration = in.Pod.Generation
		}
		own[i].LastTransitionTime = metav1.NewTime(in.Now.Truncate(time.Second))
		for _, before := range in.Pod.Status.Conditions {
			if before.Type == own[i].Type && before.Status == own[i].Status {
				own[i].LastTransitionTime = before.LastTransitionTime
				own[i].LastProbeTime = before.LastProbeTime
			}
		}
	}
	return append(out, own...)
}

func readyToStart(in Input) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodReadyToStartContainers, Status: corev1.ConditionFalse}
	sandbox, ok := in.Observed.Sandbox()
	if ok && sandbox.Ready && (in.Pod.Spec.HostNetwork || len(sandbox.IPs) > 0) {
		c.Status = corev1.ConditionTrue
	}
	return c
}

// resizing returns the conditions that a pod has only while it is being resized.
func resizing(r Resize) []corev1.PodCondition {
	var out []corev1.PodCondition
	if r.Pending != nil {
		out = append(out, corev1.PodCondition{Type: corev1.PodResizePending, Status: corev1.ConditionTrue, Reason: r.Pending.Reason, Message: r.Pending.Message})
	}
	if r.InProgress {
		c := corev1.PodCondition{Type: corev1.PodResizeInProgress, Status: corev1.ConditionTrue, ObservedGeneration: r.Generation}
		if r.Error != "" {
			c.Reason, c.Message = corev1.PodReasonError, r.Error
		}
		out = append(out, c)
	}
	return out
}

func initialized(in Input, s corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.PodInitialized, Status: corev1.ConditionTrue}
	if s.Phase == corev1.PodSucceeded {
		c.Reason = "PodCompleted"
		return c
	}
	if mainStarted(in) {
		return c
	}
	var incomplete []string
	for i := range in.Pod.Spec.InitContainers {
		spec := &in.Pod.Spec.InitContainers[i]
		st := find(s.InitContainerStatuses, spec.Name)
		done := st.Ready
		if plan.Sidecar(spec) {
			done = st.Started != nil && *st.Started
		}
		if !done {
			incomplete = append(incomplete, spec.Name)
		}
	}
	if len(incomplete) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotInitialized"
		c.Message = fmt.Sprintf("containers with incomplete status: %s", incomplete)
	}
	return c
}

func containersReady(in Input, s corev1.PodStatus) corev1.PodCondition {
	c := corev1.PodCondition{Type: corev1.ContainersReady, Status: corev1.ConditionTrue}
	switch s.Phase {
	case corev1.PodSucceeded:
		c.Status, c.Reason = corev1.ConditionFalse, "PodCompleted"
		return c
	case corev1.PodFailed:
		c.Status, c.Reason = corev1.ConditionFalse, "PodFailed"
		return c
	}
	var unready []string
	for i := range in.Pod.Spec.InitContainers {
		spec := &in.Pod.Spec.InitContainers[i]
		if st := find(s.InitContainerStatuses, spec.Name); plan.Sidecar(spec) && !st.Ready {
			unready = append(unready, spec.Name)
		}
	}
	for i := range in.Pod.Spec.Containers {
		name := in.Pod.Spec.Containers[i].Name
		if st := find(s.ContainerStatuses, name); !st.Ready {
			unready = append(unready, name)
		}
	}
	if len(unready) > 0 {
		c.Status, c.Reason = corev1.ConditionFalse, "ContainersNotReady"
		c.Message = fmt.Sprintf("containers with unready status: %s", unready)
	}
	return c
}

func podReady(in Input, others []corev1.PodCondition, containers corev1.PodCondition) corev1.PodCondition {
	c := containers
	c.Type = corev1.PodReady
	if c.Status != corev1.ConditionTrue {
		return c
	}
	var missing []string
	for _, gate := range in.Pod.Spec.ReadinessGates {
		state := corev1.ConditionStatus("")
		for _, o := range others {
			if o.Type == gate.ConditionType {
				state = o.Status
			}
		}
		switch state {
		case corev1.ConditionTrue:
		case "":
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		default:
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %s", gate.ConditionType, state))
		}
	}
	if len(missing) > 0 {
		c.Status, c.Reason, c.Message = corev1.ConditionFalse, "ReadinessGatesNotReady", strings.Join(missing, ", ")
	}
	return c
}
