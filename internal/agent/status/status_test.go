package status_test

import (
	"fmt"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"pgregory.net/rapid"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/plan"
	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/agent/status"
)

var epoch = time.Unix(1_700_000_000, 0)

func pod(policy corev1.RestartPolicy) *corev1.Pod {
	always := corev1.ContainerRestartPolicyAlways
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Generation: 3}}
	p.Spec.RestartPolicy = policy
	p.Spec.InitContainers = []corev1.Container{{Name: "init"}, {Name: "side", RestartPolicy: &always}}
	p.Spec.Containers = []corev1.Container{{Name: "a"}, {Name: "b"}}
	return p
}

func container(name string, state cri.State, code int32) cri.Container {
	c := cri.Container{ID: name + "-id", Name: name, SandboxID: "s", State: state, CreatedAt: epoch, StartedAt: epoch, ExitCode: code, ImageRef: "ref"}
	if state == cri.StateExited {
		c.FinishedAt = epoch.Add(time.Minute)
	}
	return c
}

func input(p *corev1.Pod, containers ...cri.Container) status.Input {
	return status.Input{
		Pod: p, Runtime: "fake", HostIPs: []string{"192.0.2.1"}, Now: epoch,
		Observed: cri.Pod{Sandboxes: []cri.Sandbox{{ID: "s", Ready: true, IPs: []string{"10.0.0.1"}}}, Containers: containers},
	}
}

func TestPhase(t *testing.T) {
	initDone, side := container("init", cri.StateExited, 0), container("side", cri.StateRunning, 0)
	a, b := container("a", cri.StateRunning, 0), container("b", cri.StateRunning, 0)
	ended := func(name string, code int32) cri.Container { return container(name, cri.StateExited, code) }
	for _, tt := range []struct {
		name   string
		policy corev1.RestartPolicy
		have   []cri.Container
		ended  bool
		want   corev1.PodPhase
	}{
		{"nothing", "Always", nil, false, corev1.PodPending},
		{"init runs", "Always", []cri.Container{container("init", cri.StateRunning, 0)}, false, corev1.PodPending},
		{"init failed, again", "Always", []cri.Container{ended("init", 1)}, false, corev1.PodPending},
		{"init failed, never again", "Never", []cri.Container{ended("init", 1)}, true, corev1.PodFailed},
		{"one main is missing", "Always", []cri.Container{initDone, side, a}, false, corev1.PodPending},
		{"all run", "Always", []cri.Container{initDone, side, a, b}, false, corev1.PodRunning},
		{"one ended", "Never", []cri.Container{initDone, side, a, ended("b", 1)}, false, corev1.PodRunning},
		{"sidecar ended", "Always", []cri.Container{initDone, ended("side", 1), a, b}, false, corev1.PodRunning},
		{"all ended well", "OnFailure", []cri.Container{initDone, ended("side", 0), ended("a", 0), ended("b", 0)}, true, corev1.PodSucceeded},
		{"one ended badly", "Never", []cri.Container{initDone, ended("side", 0), ended("a", 0), ended("b", 1)}, true, corev1.PodFailed},
		{"will be restarted", "OnFailure", []cri.Container{initDone, side, ended("a", 0), ended("b", 1)}, false, corev1.PodRunning},
		{"Always, killed for good", "Always", []cri.Container{initDone, ended("side", 0), ended("a", 0), ended("b", 0)}, true, corev1.PodSucceeded},
		{"deleted before it ran", "Always", nil, true, corev1.PodPending},
	} {
		in := input(pod(tt.policy), tt.have...)
		in.Ended = tt.ended
		if got := status.Compute(in).Phase; got != tt.want {
			t.Errorf("%s: %s, want %s", tt.name, got, tt.want)
		}
	}
}

func TestReadiness(t *testing.T) {
	p := pod("Always")
	p.Spec.InitContainers = nil
	p.Spec.Containers[1].ReadinessProbe = &corev1.Probe{}
	p.Spec.ReadinessGates = []corev1.PodReadinessGate{{ConditionType: "example.com/ok"}}
	in := input(p, container("a", cri.StateRunning, 0), container("b", cri.StateRunning, 0))
	state := func(s corev1.PodStatus, kind corev1.PodConditionType) corev1.PodCondition {
		for _, c := range s.Conditions {
			if c.Type == kind {
				return c
			}
		}
		return corev1.PodCondition{}
	}
	s := status.Compute(in)
	if c := state(s, corev1.ContainersReady); c.Status != corev1.ConditionFalse || c.Message != "containers with unready status: [b]" || c.ObservedGeneration != 3 {
		t.Errorf("probe not answered: %+v", c)
	}
	in.Probes = map[string]plan.Probes{"b-id": {Readiness: plan.Success}}
	s = status.Compute(in)
	if state(s, corev1.ContainersReady).Status != corev1.ConditionTrue || state(s, corev1.PodReady).Reason != "ReadinessGatesNotReady" {
		t.Errorf("gate: %+v", s.Conditions)
	}
	in.Pod.Status.Conditions = []corev1.PodCondition{{Type: "example.com/ok", Status: corev1.ConditionTrue}}
	s = status.Compute(in)
	if state(s, corev1.PodReady).Status != corev1.ConditionTrue || state(s, "example.com/ok").Status != corev1.ConditionTrue {
		t.Errorf("ready: %+v", s.Conditions)
	}
	in.Starting = map[string]bool{"a": true}
	if s = status.Compute(in); state(s, corev1.PodReady).Status != corev1.ConditionFalse {
		t.Error("a container whose post-start hook runs is not ready")
	}
	if a := s.ContainerStatuses[0]; a.State.Waiting == nil || a.State.Waiting.Reason != "ContainerCreating" || *a.Started || s.Phase != corev1.PodPending {
		t.Errorf("a container whose post-start hook runs is still being made: %s, %+v", s.Phase, a)
	}
}

func TestLastState(t *testing.T) {
	p := pod("Always")
	p.Spec.InitContainers, p.Spec.Containers = nil, p.Spec.Containers[:1]
	before, now := container("a", cri.StateExited, 7), container("a", cri.StateRunning, 0)
	before.ID, before.Message, now.Attempt = "old", "bye", 1
	s := status.Compute(input(p, now, before)).ContainerStatuses[0]
	if last := s.LastTerminationState.Terminated; s.RestartCount != 1 || last == nil || last.ExitCode != 7 || last.Message != "bye" || last.ContainerID != "fake://old" || s.ImageID != "ref" {
		t.Errorf("%+v", s)
	}
	in := input(p, before)
	in.Waiting = map[string]status.Waiting{"a": {Reason: "CrashLoopBackOff", Message: "m"}}
	s = status.Compute(in).ContainerStatuses[0]
	if s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" || s.LastTerminationState.Terminated.ExitCode != 7 {
		t.Errorf("back-off: %+v", s)
	}
	// A container that ran when last seen and is gone from the runtime counts as lost, not as new.
	p.Status.ContainerStatuses = []corev1.ContainerStatus{{Name: "a", ContainerID: "fake://old", State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}, RestartCount: 2}}
	s = status.Compute(input(p)).ContainerStatuses[0]
	if s.RestartCount != 3 || s.LastTerminationState.Terminated == nil || s.LastTerminationState.Terminated.ExitCode != 137 {
		t.Errorf("lost: %+v", s)
	}
}

// As long as a pod initializes, whatever has not started waits for its turn; then, to be created.
func TestWaiting(t *testing.T) {
	p := pod("Never")
	s := status.Compute(input(p, container("init", cri.StateCreated, 0)))
	for _, c := range append(s.InitContainerStatuses, s.ContainerStatuses...) {
		if c.State.Waiting == nil || c.State.Waiting.Reason != "PodInitializing" {
			t.Errorf("while the pod initializes, %s: %+v", c.Name, c.State)
		}
	}
	initDone, side := container("init", cri.StateExited, 0), container("side", cri.StateRunning, 0)
	s = status.Compute(input(p, initDone, side, container("a", cri.StateCreated, 0)))
	for _, c := range s.ContainerStatuses {
		if c.State.Waiting == nil || c.State.Waiting.Reason != "ContainerCreating" {
			t.Errorf("after the pod initialized, %s: %+v", c.Name, c.State)
		}
	}
}

func TestVerdict(t *testing.T) {
	in := input(pod("Always"))
	in.Verdict = &status.Verdict{Reason: "OutOfcpu", Message: "m"}
	s := status.Compute(in)
	if s.Phase != corev1.PodFailed || s.Reason != "OutOfcpu" || s.Message != "m" {
		t.Errorf("%+v", s)
	}
	in.Ended = true
	if s := status.Compute(in); len(s.ContainerStatuses)+len(s.InitContainerStatuses) > 0 {
		t.Errorf("containers of a pod that was refused: %+v", s)
	}
	in.Observed.Containers = []cri.Container{container("init", cri.StateExited, 1)}
	if s := status.Compute(in); len(s.ContainerStatuses) == 0 || len(s.InitContainerStatuses) == 0 {
		t.Errorf("containers of a pod that had begun: %+v", s)
	}
}

// TestStable: a status computed from the status computed before is the same, so that nothing is
// sent when nothing happened; and a final phase is never left.
func TestStable(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := pod(rapid.SampledFrom([]corev1.RestartPolicy{"Always", "OnFailure", "Never"}).Draw(t, "policy"))
		var have []cri.Container
		for _, name := range []string{"init", "side", "a", "b"} {
			for i := range rapid.IntRange(0, 3).Draw(t, "count") {
				c := container(name, rapid.SampledFrom([]cri.State{cri.StateCreated, cri.StateRunning, cri.StateExited, cri.StateUnknown}).Draw(t, "state"), int32(rapid.IntRange(0, 1).Draw(t, "code")))
				c.ID, c.Attempt, c.CreatedAt = name+string(rune('0'+i)), i, epoch.Add(time.Duration(i)*time.Second)
				have = append([]cri.Container{c}, have...)
			}
		}
		in := input(p, have...)
		in.Ended = rapid.Bool().Draw(t, "ended")
		if rapid.Bool().Draw(t, "verdict") {
			in.Verdict = &status.Verdict{Reason: "DeadlineExceeded", Message: "m"}
		}
		first := status.Compute(in)
		in.Pod = p.DeepCopy()
		in.Pod.Status = first
		in.Now = epoch.Add(time.Hour)
		second := status.Compute(in)
		if !equality.Semantic.DeepEqual(first, second) {
			t.Fatalf("first  %+v\nsecond %+v", first, second)
		}
		if first.Phase == corev1.PodSucceeded || first.Phase == corev1.PodFailed {
			in.Observed.Containers, in.Ended = nil, false
			if third := status.Compute(in); third.Phase != first.Phase {
				t.Fatalf("%s became %s", first.Phase, third.Phase)
			}
		}
	})
}

// TestResize: what a pod was allocated and what its containers have are told apart, and the conditions
// are there only as long as there is something to tell.
func TestResize(t *testing.T) {
	memory := func(q string) corev1.ResourceRequirements {
		return corev1.ResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(q)}}
	}
	p := pod(corev1.RestartPolicyAlways)
	p.Spec.Containers[0].Resources = memory("2Mi")
	in := input(p, container("a", cri.StateRunning, 0), container("b", cri.StateExited, 1))
	in.Applied = map[string]corev1.ResourceRequirements{"a-id": memory("1Mi"), "b-id": memory("1Mi")}
	in.Resize = status.Resize{Pending: &podspec.Refusal{Reason: corev1.PodReasonDeferred, Message: "no room"}, InProgress: true, Error: "busy", Generation: 2}
	s := status.Compute(in)
	a, b := s.ContainerStatuses[0], s.ContainerStatuses[1]
	if a.Resources.Requests.Memory().String() != "1Mi" || a.AllocatedResources.Memory().String() != "2Mi" || len(b.Resources.Requests) != 0 {
		t.Errorf("a has %v of %v; b, which does not run, has %v", a.Resources, a.AllocatedResources, b.Resources)
	}
	find := func(s corev1.PodStatus, kind corev1.PodConditionType) string {
		for _, c := range s.Conditions {
			if c.Type == kind {
				return fmt.Sprint(c.Status, c.Reason, c.Message, c.ObservedGeneration)
			}
		}
		return ""
	}
	if got := find(s, corev1.PodResizePending); got != "TrueDeferredno room3" {
		t.Errorf("pending: %q", got)
	}
	if got := find(s, corev1.PodResizeInProgress); got != "TrueErrorbusy2" {
		t.Errorf("in progress: %q", got)
	}
	in.Pod.Status, in.Resize = s, status.Resize{}
	s = status.Compute(in)
	if find(s, corev1.PodResizePending)+find(s, corev1.PodResizeInProgress) != "" {
		t.Errorf("conditions of a resize that is over: %+v", s.Conditions)
	}
}
