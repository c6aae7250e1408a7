// Package plan decides what has to happen to a pod next. It is pure: [Next] looks at the pod's
// definition, at what the runtime runs for it, at the probes' last results and at the clock, and
// says which sandbox to make, which containers to start or stop, and when to look again. It holds
// no state, so that an agent that was restarted comes to the same answer.
//
// The rules are Kubernetes': init containers run one after the other, init containers with restart
// policy Always (sidecars, KEP-753) are started in their turn and kept running beside the rest,
// containers are restarted by policy with a delay that doubles, and a pod that ends loses its
// sidecars last.
package plan

import (
	"time"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/podspec"
)

// The shape of the restart delay: the first restart is at once, the next after BackoffInitial,
// then the delay doubles up to BackoffMax, and a container that ran for BackoffReset starts over.
const (
	BackoffInitial = 10 * time.Second
	BackoffMax     = 5 * time.Minute
	BackoffReset   = 2 * BackoffMax
)

// MinimumGrace is what a container gets to end by itself even when the pod's grace period is used
// up, except when the pod is to be killed at once.
const MinimumGrace = 2 * time.Second

// Result is what a probe said last.
type Result string

// A probe that has not run yet has the zero Result.
const (
	Success Result = "success"
	Failure Result = "failure"
)

// Probes are the last results of one container's probes.
type Probes struct {
	Startup, Liveness, Readiness Result
}

// Stop says that the pod has to end, and how.
type Stop struct {
	// Deadline is when containers that have not ended by themselves are killed.
	Deadline time.Time
	// Now: kill without SIGTERM or hooks.
	Now bool
	// Reason and Message go into events about the containers' end.
	Message string
}

// Task names an effect that can be under way or have failed.
type Task string

// The tasks of a pod. A container is started by name, and stopped by id.
const TaskSandbox Task = "sandbox"

// TaskResize changes resources of what runs.
const TaskResize Task = "resize"

// TaskStart is the start of the container of that name, with pulling its image.
func TaskStart(name string) Task { return Task("start/" + name) }

// TaskKill is the end of the container with that id.
func TaskKill(id string) Task { return Task("kill/" + id) }

// TaskStopSandbox is the end of the sandbox with that id.
func TaskStopSandbox(id string) Task { return Task("stop-sandbox/" + id) }

// Input is everything a decision depends on. Next does not change it.
type Input struct {
	Pod      *corev1.Pod
	Observed cri.Pod
	// Probes by container id.
	Probes map[string]Probes
	// Busy holds the tasks that are under way; for kills, the moment by which the container
	// will have been killed.
	Busy map[Task]time.Time
	// NotBefore holds tasks that failed, and when they may be tried again.
	NotBefore map[Task]time.Time
	// Applied holds the resources that running containers have, by id. The definition has those
	// they should have. A container that is missing has what it should.
	Applied map[string]corev1.ResourceRequirements
	// Limits of the pod's control group; nil if they are as they should be.
	Limits *podspec.Limits
	// Resized holds the ids of containers that were stopped in order to be resized.
	Resized map[string]bool
	// Stop is nil while the pod should run.
	Stop *Stop
	Now  time.Time
}

// Decision is what to do. Its parts may be done at the same time.
type Decision struct {
	// CreateSandbox, with this attempt number.
	CreateSandbox *uint32
	StopSandboxes []string
	Start         []Start
	Kill          []Kill
	// Resize, if anything of what runs is to get other resources.
	Resize *Resize
	// Resizing: something that runs does not have the resources it should.
	Resizing bool
	// Backoff holds the containers that wait for their restart delay, and until when.
	Backoff map[string]Backoff
	// Wake is when to decide again even if nothing happens; zero for never.
	Wake time.Time
	// Ended: no container runs or will run again. The pod's phase is final.
	Ended bool
	// Stopped: Ended, and no sandbox is left running. What the pod used may go.
	Stopped bool
}

// Start is the start of a container.
type Start struct {
	Name string
	// Attempt numbers the containers of this name in the pod from 0.
	Attempt int
	// Backoff is what the container after this one will have to wait.
	Backoff time.Duration
	Sandbox string
}

// Kill is the end of a running container.
type Kill struct {
	ID, Name string
	// Grace is how long the container gets from now, its pre-stop hook included; 0 is SIGKILL
	// at once.
	Grace time.Duration
	// Now: without pre-stop hook.
	Now     bool
	Message string
	// Resize: the container is started again with other resources, however it ends.
	Resize bool
}

// Backoff is the restart delay of a container.
type Backoff struct {
	Delay time.Duration
	Until time.Time
}

// Next decides.
func Next(in Input) Decision {
	p := planner{Input: in, d: Decision{Backoff: map[string]Backoff{}}}
	if in.Stop != nil {
		p.stopAll(*in.Stop)
	} else {
		p.run()
	}
	return p.d
}

type planner struct {
	Input
	d Decision
	// narrow: the pod's control group has to be widened before anything changes in it.
	narrow bool
}

// wake asks for another decision at t.
func (p *planner) wake(t time.Time) {
	if p.d.Wake.IsZero() || t.Before(p.d.Wake) {
		p.d.Wake = t
	}
}

// may tells whether the task can be begun now; if it is held back, it wakes in time.
func (p *planner) may(t Task) bool {
	if _, busy := p.Busy[t]; busy {
		return false
	}
	if until, held := p.NotBefore[t]; held && p.Now.Before(until) {
		p.wake(until)
		return false
	}
	return true
}

// run plans a pod that should run.
func (p *planner) run() {
	sandbox, have := p.Observed.Sandbox()
	if !have || !sandbox.Ready {
		p.renewSandbox(sandbox, have)
		return
	}
	if !p.stopOldSandboxes(sandbox.ID) {
		return
	}
	p.resize(sandbox.ID)
	initialized, failed := p.initContainers(sandbox.ID)
	if failed {
		p.end()
		return
	}
	p.ephemeral(sandbox.ID)
	if !initialized {
		return
	}
	if !p.mainContainers(sandbox.ID) {
		p.end()
	}
}

// end plans a pod that came to its end by itself: what still runs are sidecars.
func (p *planner) end() {
	p.d.Start = nil
	grace := time.Duration(0)
	if s := p.Pod.Spec.TerminationGracePeriodSeconds; s != nil {
		grace = time.Duration(*s) * time.Second
	}
	p.stopAll(Stop{Deadline: p.Now.Add(grace), Message: "Stopping container %s"})
}

// renewSandbox plans a pod that has no working sandbox.
func (p *planner) renewSandbox(old cri.Sandbox, have bool) {
	if _, busy := p.Busy[TaskSandbox]; busy {
		return
	}
	if have && !p.worthRenewing() {
		p.end()
		return
	}
	// What is left of earlier sandboxes must be gone before the pod gets a new one, lest two
	// of a kind run at once.
	clear := true
	for _, c := range p.Observed.Containers {
		if live(c) {
			clear = false
			p.kill(c, Kill{Grace: MinimumGrace, Message: "Stopping container %s"})
		}
	}
	if !clear || !p.stopOldSandboxes("") {
		return
	}
	if p.may(TaskSandbox) {
		attempt := uint32(0)
		if have {
			attempt = old.Attempt + 1
		}
		p.d.CreateSandbox = &attempt
	}
}

// worthRenewing tells whether a pod that lost its sandbox has anything left to do.
func (p *planner) worthRenewing() bool {
	if len(p.Observed.Containers) == 0 {
		return true
	}
	initialized := false
	for i := range p.Pod.Spec.Containers {
		c := &p.Pod.Spec.Containers[i]
		last, ran := p.Observed.Newest(c.Name)
		initialized = initialized || ran
		if ran && p.restartsAfter(c, last, true) {
			return true
		}
	}
	if initialized {
		// A main container that never came to run is worth a new sandbox if policy lets
		// the pod begin again at all.
		for i := range p.Pod.Spec.Containers {
			if _, ran := p.Observed.Newest(p.Pod.Spec.Containers[i].Name); !ran {
				return p.Pod.Spec.RestartPolicy != corev1.RestartPolicyNever
			}
		}
		return false
	}
	return p.Pod.Spec.RestartPolicy != corev1.RestartPolicyNever
}

// stopOldSandboxes stops every running sandbox but the one to keep, and tells whether none is left.
func (p *planner) stopOldSandboxes(keep string) bool {
	clear := true
	for _, s := range p.Observed.Sandboxes {
		if s.ID == keep || !s.Ready {
			continue
		}
		clear = false
		if p.may(TaskStopSandbox(s.ID)) {
			p.d.StopSandboxes = append(p.d.StopSandboxes, s.ID)
		}
	}
	return clear
}

func live(c cri.Container) bool { return c.State == cri.StateRunning || c.State == cri.StateUnknown }
