package status

import (
	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
)

// tally counts the containers that the phase depends on.
type tally struct {
	initPending, initFailed, sidecarsPending    int
	running, waiting, stopped, succeeded, final int
}

// phaseOf sums the containers up as the pod's phase.
func phaseOf(in Input, s corev1.PodStatus) corev1.PodPhase {
	var t tally
	for i := range in.Pod.Spec.InitContainers {
		spec := &in.Pod.Spec.InitContainers[i]
		st := find(s.InitContainerStatuses, spec.Name)
		if plan.Sidecar(spec) {
			t.sidecar(in, spec, st)
		} else {
			t.init(in, spec, st)
		}
	}
	for i := range in.Pod.Spec.Containers {
		t.main(in, &in.Pod.Spec.Containers[i], find(s.ContainerStatuses, in.Pod.Spec.Containers[i].Name))
	}
	switch {
	case t.initFailed > 0:
		return corev1.PodFailed
	case in.Ended:
		// Whatever policy says, nothing will run again.
		if t.stopped > 0 && t.stopped == t.succeeded && t.waiting == 0 && t.initPending == 0 {
			return corev1.PodSucceeded
		}
		if t.stopped == 0 && len(in.Observed.Containers) == 0 {
			return corev1.PodPending // nothing ever ran
		}
		return corev1.PodFailed
	case t.initPending > 0, t.sidecarsPending > 0 && !mainStarted(in), t.waiting > 0:
		return corev1.PodPending
	case t.running > 0 || t.stopped > t.final:
		return corev1.PodRunning
	case t.stopped == t.succeeded:
		return corev1.PodSucceeded
	default:
		return corev1.PodFailed
	}
}

func (t *tally) init(in Input, spec *corev1.Container, st *corev1.ContainerStatus) {
	ended := st.State.Terminated
	if ended == nil && st.State.Waiting != nil {
		ended = st.LastTerminationState.Terminated
	}
	switch {
	case ended == nil:
		t.initPending++
	case ended.ExitCode != 0 && !plan.Restarts(in.Pod, spec, ended.ExitCode):
		t.initFailed++
	case ended.ExitCode != 0:
		t.initPending++
	}
}

func (t *tally) sidecar(in Input, spec *corev1.Container, st *corev1.ContainerStatus) {
	switch {
	case st.State.Running != nil:
		c, _ := in.Observed.Newest(spec.Name)
		if spec.StartupProbe != nil && in.Probes[c.ID].Startup != plan.Success {
			t.sidecarsPending++
		}
		t.running++
	case st.State.Waiting != nil && st.LastTerminationState.Terminated == nil:
		t.sidecarsPending++
		t.waiting++
	}
}

func (t *tally) main(in Input, spec *corev1.Container, st *corev1.ContainerStatus) {
	ended := st.State.Terminated
	if st.State.Waiting != nil {
		ended = st.LastTerminationState.Terminated
	}
	switch {
	case st.State.Running != nil:
		t.running++
	case ended != nil:
		t.stopped++
		if ended.ExitCode == 0 {
			t.succeeded++
		}
		if !plan.Restarts(in.Pod, spec, ended.ExitCode) {
			t.final++
		}
	default:
		t.waiting++
	}
}

// mainStarted tells whether a main container has been started in the present sandbox.
func mainStarted(in Input) bool {
	sandbox, ok := in.Observed.Sandbox()
	if !ok {
		return false
	}
	for i := range in.Pod.Spec.Containers {
		if c, ok := in.Observed.Active(in.Pod.Spec.Containers[i].Name, sandbox.ID); ok && c.State != cri.StateCreated {
			return true
		}
	}
	return false
}
