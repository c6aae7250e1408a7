// Package status derives a pod's API status from what its runtime runs. It is pure: the same
// pod, observation and probe results give the same status, so that a status is sent to the API
// server exactly when something changed.
package status

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
)

// Waiting says why a container does not run, in the words of its API status.
type Waiting struct {
	Reason, Message string
}

// Input is everything a status depends on. Compute does not change it.
type Input struct {
	// Pod with the resources that the node has allocated to it, and with the status known last,
	// from which what others wrote is taken over.
	Pod      *corev1.Pod
	Observed cri.Pod
	Probes   map[string]plan.Probes
	// Waiting by container name, for containers that failed to start or wait to be restarted.
	Waiting map[string]Waiting
	// Starting holds the names of containers whose start (post-start hook) is not yet over: they wait.
	Starting map[string]bool
	// Applied holds the resources that containers have, by id, where they are known.
	Applied map[string]corev1.ResourceRequirements
	Resize  Resize
	// Ended: nothing runs and nothing will run again.
	Ended bool
	// Verdict, if set, is the pod's end as decided by the agent rather than by its containers.
	Verdict *Verdict
	// Runtime is the prefix of container ids, such as "containerd".
	Runtime string
	HostIPs []string
	Now     time.Time
}

// Resize is how far a change of a running pod's resources has come (KEP-1287).
type Resize struct {
	// Pending is why the node has not agreed to the resources of the pod's definition; nil if it
	// has. Its reason is Deferred or Infeasible.
	Pending *podspec.Refusal
	// InProgress: what runs does not have the resources that the node agreed to. Error is why the
	// last attempt failed, Generation that of the definition agreed to.
	InProgress bool
	Error      string
	Generation int64
}

// Verdict is a pod's end by the agent's decision: not admitted, evicted, past its deadline.
type Verdict struct {
	Reason, Message string
}

// Compute returns the pod's status.
func Compute(in Input) corev1.PodStatus {
	old := in.Pod.Status
	s := corev1.PodStatus{
		StartTime:                   old.StartTime,
		QOSClass:                    old.QOSClass,
		NominatedNodeName:           old.NominatedNodeName,
		Resize:                      old.Resize,
		ResourceClaimStatuses:       old.ResourceClaimStatuses,
		ExtendedResourceClaimStatus: old.ExtendedResourceClaimStatus,
		ObservedGeneration:          in.Pod.Generation,
		Message:                     old.Message,
		Reason:                      old.Reason,
	}
	if s.StartTime == nil {
		now := metav1.NewTime(in.Now.Truncate(time.Second))
		s.StartTime = &now
	}
	addresses(&s, in)
	s.InitContainerStatuses = containerStatuses(in, in.Pod.Spec.InitContainers, old.InitContainerStatuses, true)
	s.ContainerStatuses = containerStatuses(in, in.Pod.Spec.Containers, old.ContainerStatuses, false)
	s.EphemeralContainerStatuses = containerStatuses(in, ephemeral(in.Pod), old.EphemeralContainerStatuses, false)
	s.Phase = phaseOf(in, s)
	if final(old.Phase) {
		s.Phase = old.Phase // a pod never leaves a final phase
	}
	if in.Verdict != nil {
		s.Phase, s.Reason, s.Message = corev1.PodFailed, in.Verdict.Reason, in.Verdict.Message
	}
	readiness(&s, in)
	s.Conditions = conditions(in, s)
	if in.Verdict != nil && in.Ended && neverStarted(s) {
		// What never was does not wait to be made either: clients shall show the verdict.
		s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses = nil, nil, nil
	}
	return s
}

// neverStarted tells whether the pod's containers have all been waiting from the beginning.
func neverStarted(s corev1.PodStatus) bool {
	for _, list := range [][]corev1.ContainerStatus{s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].State.Waiting == nil || list[i].LastTerminationState.Terminated != nil {
				return false
			}
		}
	}
	return true
}

func final(phase corev1.PodPhase) bool {
	return phase == corev1.PodSucceeded || phase == corev1.PodFailed
}

func ephemeral(pod *corev1.Pod) []corev1.Container {
	var out []corev1.Container
	for i := range pod.Spec.EphemeralContainers {
		out = append(out, corev1.Container(pod.Spec.EphemeralContainers[i].EphemeralContainerCommon))
	}
	return out
}

func addresses(s *corev1.PodStatus, in Input) {
	for _, ip := range in.HostIPs {
		s.HostIPs = append(s.HostIPs, corev1.HostIP{IP: ip})
	}
	var ips []string
	if sandbox, ok := in.Observed.Sandbox(); ok {
		switch {
		case in.Pod.Spec.HostNetwork:
			ips = in.HostIPs
		case len(sandbox.IPs) > 0:
			ips = sandbox.IPs
		case final(in.Pod.Status.Phase) || in.Ended:
			// A pod that ended keeps showing the addresses it had.
			for _, ip := range in.Pod.Status.PodIPs {
				ips = append(ips, ip.IP)
			}
		}
	} else if in.Pod.Spec.HostNetwork && in.Pod.Status.PodIP != "" {
		ips = in.HostIPs
	} else {
		for _, ip := range in.Pod.Status.PodIPs {
			if in.Ended {
				ips = append(ips, ip.IP)
			}
		}
	}
	for _, ip := range ips {
		s.PodIPs = append(s.PodIPs, corev1.PodIP{IP: ip})
	}
	if len(s.HostIPs) > 0 {
		s.HostIP = s.HostIPs[0].IP
	}
	if len(s.PodIPs) > 0 {
		s.PodIP = s.PodIPs[0].IP
	}
}

// readiness fills in what probes say about each container.
func readiness(s *corev1.PodStatus, in Input) {
	byName := func(list []corev1.Container, name string) *corev1.Container {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
		return nil
	}
	for i := range s.ContainerStatuses {
		if spec := byName(in.Pod.Spec.Containers, s.ContainerStatuses[i].Name); spec != nil {
			ready(&s.ContainerStatuses[i], spec, in)
			if in.Verdict != nil {
				s.ContainerStatuses[i].Ready = false
			}
		}
	}
	for i := range s.InitContainerStatuses {
		st := &s.InitContainerStatuses[i]
		spec := byName(in.Pod.Spec.InitContainers, st.Name)
		if spec == nil {
			continue
		}
		if plan.Sidecar(spec) {
			ready(st, spec, in)
			continue
		}
		started := st.State.Running != nil
		st.Started = &started
		st.Ready = st.State.Terminated != nil && st.State.Terminated.ExitCode == 0
	}
	for i := range s.EphemeralContainerStatuses {
		started := s.EphemeralContainerStatuses[i].State.Running != nil
		s.EphemeralContainerStatuses[i].Started = &started
	}
}

func ready(st *corev1.ContainerStatus, spec *corev1.Container, in Input) {
	started := false
	if c, ok := in.Observed.Newest(st.Name); ok && st.State.Running != nil {
		probes := in.Probes[c.ID]
		started = spec.StartupProbe == nil || probes.Startup == plan.Success
		st.Ready = started && (spec.ReadinessProbe == nil || probes.Readiness == plan.Success)
	}
	st.Started = &started
}
