package server

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/cri"
)

// The log of the run before is there from the end of that run on, also while the next one is made or waits.
func TestWhichRunIsLogged(t *testing.T) {
	const running, exited, created = cri.StateRunning, cri.StateExited, cri.StateCreated
	for name, tt := range map[string]struct {
		newestFirst []cri.State
		waiting     string
		now, before string // the ids, or what the refusal says
	}{
		"never":              {nil, "ContainerCreating", "waiting to start: ContainerCreating", "not found"},
		"no image":           {nil, "ErrImagePull", "failing to pull image", "not found"},
		"made":               {[]cri.State{created}, "ContainerCreating", "waiting to start", "not found"},
		"first":              {[]cri.State{running}, "", "0", "not found"},
		"ended":              {[]cri.State{exited}, "", "0", "not found"},
		"waits for the next": {[]cri.State{exited}, "CrashLoopBackOff", "0", "0"},
		"next is made":       {[]cri.State{created, exited}, "", "1", "1"},
		"next":               {[]cri.State{running, exited}, "", "0", "1"},
		"next, late status":  {[]cri.State{running, exited}, "CrashLoopBackOff", "0", "1"},
		"third waits":        {[]cri.State{exited, exited}, "CrashLoopBackOff", "0", "0"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: "c"}}}}
			if tt.waiting != "" {
				pod.Status.ContainerStatuses[0].State.Waiting = &corev1.ContainerStateWaiting{Reason: tt.waiting, Message: "m"}
			}
			observed := cri.Pod{Containers: []cri.Container{{Name: "other", ID: "other", State: running}}}
			for i, state := range tt.newestFirst {
				observed.Containers = append(observed.Containers, cri.Container{Name: "c", ID: string(rune('0' + i)), State: state})
			}
			for previous, want := range map[bool]string{false: tt.now, true: tt.before} {
				c, err := logged(pod, observed, "c", previous)
				got := c.ID
				if err != nil {
					got = err.Error()
				}
				if got != want && (err == nil || !strings.Contains(got, want)) {
					t.Errorf("previous %v: %q, want %q", previous, got, want)
				}
			}
		})
	}
}
