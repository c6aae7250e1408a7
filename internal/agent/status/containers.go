package status

import (
	"sort"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
)

// containerStatuses returns one status for each container of specs that has anything to tell:
// all of them, except ephemeral ones and in the order of the definition for init containers, of
// their names for others.
func containerStatuses(in Input, specs []corev1.Container, old []corev1.ContainerStatus, init bool) []corev1.ContainerStatus {
	out := make([]corev1.ContainerStatus, 0, len(specs))
	for i := range specs {
		out = append(out, containerStatus(in, &specs[i], find(old, specs[i].Name), init))
	}
	if !init {
		sort.SliceStable(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	}
	if len(out) == 0 {
		return nil
	}
	return out
}

func find(list []corev1.ContainerStatus, name string) *corev1.ContainerStatus {
	for i := range list {
		if list[i].Name == name {
			return &list[i]
		}
	}
	return nil
}

func containerStatus(in Input, spec *corev1.Container, old *corev1.ContainerStatus, init bool) corev1.ContainerStatus {
	st := corev1.ContainerStatus{Name: spec.Name, Image: spec.Image}
	seen := 0
	for _, c := range in.Observed.Containers {
		if c.Name != spec.Name {
			continue
		}
		if seen == 0 {
			describe(&st, in, spec, c)
		} else {
			st.LastTerminationState = corev1.ContainerState{Terminated: stateOf(in, c).Terminated}
		}
		if seen++; seen == 2 {
			break
		}
	}
	if seen == 0 {
		missing(&st, in, spec, old, init)
	} else if old != nil && seen == 1 && st.ContainerID == old.ContainerID {
		// The runtime may have dropped the container before this one.
		st.LastTerminationState = old.LastTerminationState
	}
	wait, waits := in.Waiting[spec.Name]
	if waits && st.State.Running == nil && !in.Ended {
		if st.State.Terminated != nil {
			st.LastTerminationState = st.State
		}
		st.State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: wait.Reason, Message: wait.Message}}
	}
	return st
}

// describe fills in a status from a container the runtime knows.
func describe(st *corev1.ContainerStatus, in Input, spec *corev1.Container, c cri.Container) {
	st.ContainerID = in.Runtime + "://" + c.ID
	st.RestartCount = int32(c.Attempt)
	st.ImageID = c.ImageRef
	if c.Image != "" {
		st.Image = c.Image
	}
	if st.Image == "" {
		st.Image = spec.Image
	}
	st.State = stateOf(in, c)
	st.User = userOf(c.User)
	st.AllocatedResources = spec.Resources.Requests.DeepCopy()
	resources := spec.Resources.DeepCopy()
	if applied, known := in.Applied[c.ID]; known && c.State == cri.StateRunning {
		resources = applied.DeepCopy()
	}
	resources.Claims = nil
	st.Resources = resources
	for _, m := range spec.VolumeMounts {
		vm := corev1.VolumeMountStatus{Name: m.Name, MountPath: m.MountPath, ReadOnly: m.ReadOnly}
		if m.ReadOnly {
			mode := corev1.RecursiveReadOnlyDisabled
			if m.RecursiveReadOnly != nil {
				mode = *m.RecursiveReadOnly
			}
			vm.RecursiveReadOnly = &mode
		}
		st.VolumeMounts = append(st.VolumeMounts, vm)
	}
}

func userOf(u *runtimeapi.ContainerUser) *corev1.ContainerUser {
	l := u.GetLinux()
	if l == nil {
		return nil
	}
	return &corev1.ContainerUser{Linux: &corev1.LinuxContainerUser{UID: l.GetUid(), GID: l.GetGid(), SupplementalGroups: l.GetSupplementalGroups()}}
}

func stateOf(in Input, c cri.Container) corev1.ContainerState {
	switch c.State {
	case cri.StateRunning:
		if in.Starting[c.Name] {
			// Who sees it running must be able to take it for started, hook and all.
			return corev1.ContainerState{Waiting: creating(in)}
		}
		return corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: at(c.StartedAt.Unix())}}
	case cri.StateCreated:
		return corev1.ContainerState{Waiting: creating(in)}
	case cri.StateExited:
		t := &corev1.ContainerStateTerminated{
			ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
			FinishedAt: at(c.FinishedAt.Unix()), ContainerID: in.Runtime + "://" + c.ID,
		}
		if !c.StartedAt.IsZero() {
			t.StartedAt = at(c.StartedAt.Unix())
		}
		return corev1.ContainerState{Terminated: t}
	default:
		return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			ExitCode: 137, Reason: "ContainerStatusUnknown", ContainerID: in.Runtime + "://" + c.ID,
			Message: "The container could not be located when the pod was terminated",
		}}
	}
}

// at cuts a moment to the second that the API keeps, so that a status compares equal to itself
// after it went through the API server.
func at(seconds int64) metav1.Time { return metav1.Unix(seconds, 0) }

// missing fills in a status of a container that the runtime does not know.
func missing(st *corev1.ContainerStatus, in Input, spec *corev1.Container, old *corev1.ContainerStatus, init bool) {
	if old != nil && old.State.Terminated != nil {
		*st = *old.DeepCopy()
		return
	}
	if init && !plan.Sidecar(spec) && mainSeen(in) {
		// It was removed, and what came after it proves that it ended well.
		st.State.Terminated = &corev1.ContainerStateTerminated{Reason: "Completed"}
		if old != nil {
			st.RestartCount, st.LastTerminationState = old.RestartCount, old.LastTerminationState
		}
		return
	}
	st.State.Waiting = creating(in)
	if old == nil {
		return
	}
	st.RestartCount, st.LastTerminationState = old.RestartCount, old.LastTerminationState
	if old.State.Running != nil {
		lost := corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
			Reason: "ContainerStatusUnknown", ExitCode: 137,
			Message:     "The container could not be located: it was running when the node last reported it",
			ContainerID: old.ContainerID, StartedAt: old.State.Running.StartedAt,
		}}
		if in.Ended {
			st.State = lost
		} else {
			st.LastTerminationState = lost
			st.RestartCount++
		}
	}
}

// creating is why a container that has not started yet waits: for its turn, as long as the pod
// initializes.
func creating(in Input) *corev1.ContainerStateWaiting {
	if len(in.Pod.Spec.InitContainers) > 0 && !mainSeen(in) {
		return &corev1.ContainerStateWaiting{Reason: "PodInitializing"}
	}
	return &corev1.ContainerStateWaiting{Reason: "ContainerCreating"}
}

func mainSeen(in Input) bool {
	for i := range in.Pod.Spec.Containers {
		if _, ok := in.Observed.Newest(in.Pod.Spec.Containers[i].Name); ok {
			return true
		}
	}
	return false
}
