package plan

import (
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/cri"
)

// Sidecar tells whether an init container is to be kept running beside the others (KEP-753).
func Sidecar(c *corev1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// initContainers plans the init containers, and tells whether the main ones may run, or whether
// the pod has failed in its initialization.
func (p *planner) initContainers(sandbox string) (initialized, failed bool) {
	inits := p.Pod.Spec.InitContainers
	next := len(inits)
	if !p.mainStarted(sandbox) {
		next, failed = p.nextInit(sandbox)
		if failed {
			return false, true
		}
	}
	// Sidecars that had their turn are kept running, whatever comes after them does.
	for i := range inits {
		if i < next && Sidecar(&inits[i]) {
			p.keep(&inits[i], sandbox)
		}
	}
	if next == len(inits) {
		return true, false
	}
	p.keep(&inits[next], sandbox)
	return false, false
}

// mainStarted tells whether any main container was started in the sandbox, which proves that
// initialization was finished, even if its containers were since removed.
func (p *planner) mainStarted(sandbox string) bool {
	for i := range p.Pod.Spec.Containers {
		if c, ok := p.Observed.Active(p.Pod.Spec.Containers[i].Name, sandbox); ok && c.State != cri.StateCreated {
			return true
		}
	}
	return false
}

// nextInit returns the index of the init container whose turn it is; len for none.
func (p *planner) nextInit(sandbox string) (next int, failed bool) {
	inits := p.Pod.Spec.InitContainers
	for i := len(inits) - 1; i >= 0; i-- {
		c, ok := p.Observed.Active(inits[i].Name, sandbox)
		if !ok {
			continue
		}
		switch {
		case Sidecar(&inits[i]):
			if c.State == cri.StateRunning && p.started(&inits[i], c) {
				return i + 1, false
			}
		case c.State == cri.StateExited && c.ExitCode == 0:
			return i + 1, false
		case c.State == cri.StateExited && !p.restarts(&inits[i], c):
			return i, true
		}
		return i, false
	}
	return 0, false
}

// started tells whether a running container has got through its start: its startup probe has
// succeeded, if it has one.
func (p *planner) started(spec *corev1.Container, c cri.Container) bool {
	if _, busy := p.Busy[TaskStart(spec.Name)]; busy {
		return false // its post-start hook still runs
	}
	return spec.StartupProbe == nil || p.Probes[c.ID].Startup == Success
}

// mainContainers plans the pod's own containers, and tells whether any runs or will run again.
func (p *planner) mainContainers(sandbox string) bool {
	alive := false
	for i := range p.Pod.Spec.Containers {
		if p.keep(&p.Pod.Spec.Containers[i], sandbox) {
			alive = true
		}
	}
	return alive
}

// ephemeral starts the ephemeral containers that never ran (KEP-277). They are never restarted.
func (p *planner) ephemeral(sandbox string) {
	for i := range p.Pod.Spec.EphemeralContainers {
		name := p.Pod.Spec.EphemeralContainers[i].Name
		if _, ran := p.Observed.Newest(name); !ran && p.may(TaskStart(name)) {
			p.d.Start = append(p.d.Start, Start{Name: name, Sandbox: sandbox})
		}
	}
}

// keep plans one container that should run, and tells whether it runs or will.
func (p *planner) keep(spec *corev1.Container, sandbox string) bool {
	c, ok := p.Observed.Active(spec.Name, sandbox)
	if !ok {
		last, _ := p.Observed.Newest(spec.Name)
		p.start(spec, last, sandbox)
		return true
	}
	switch c.State {
	case cri.StateRunning:
		return p.check(spec, c)
	case cri.StateUnknown:
		p.kill(c, Kill{Grace: p.grace(nil), Message: "Container %s is in unknown state, try killing it before restart"})
		return true
	case cri.StateCreated:
		if _, busy := p.Busy[TaskStart(spec.Name)]; !busy {
			// It was created, but nobody is about to start it: a start failed, or the agent
			// ended in between.
			p.start(spec, c, sandbox)
		}
		return true
	default:
		if !p.Resized[c.ID] && !p.restarts(spec, c) {
			return false
		}
		p.start(spec, c, sandbox)
		return true
	}
}

// check looks for a reason to stop a running container.
func (p *planner) check(spec *corev1.Container, c cri.Container) bool {
	probes := p.Probes[c.ID]
	var message string
	var probe *corev1.Probe
	changed := c.Hash != "" && c.Hash != cri.Hash(spec)
	switch {
	case changed:
		message = "Container %s definition changed"
	case p.restartsToResize(spec, c):
		p.kill(c, Kill{Grace: p.grace(nil), Message: "Container %s resize requires restart", Resize: true})
		return true
	case probes.Liveness == Failure && spec.LivenessProbe != nil:
		message, probe = "Container %s failed liveness probe", spec.LivenessProbe
	case probes.Startup == Failure && spec.StartupProbe != nil:
		message, probe = "Container %s failed startup probe", spec.StartupProbe
	default:
		return true
	}
	again := changed || policyOf(p.Pod, spec) != corev1.RestartPolicyNever
	if again {
		message += ", will be restarted"
	}
	p.kill(c, Kill{Grace: p.grace(probe), Message: message})
	return true
}

// grace is how long a container gets to end, which a probe can set apart from the pod's.
func (p *planner) grace(probe *corev1.Probe) time.Duration {
	seconds := int64(corev1.DefaultTerminationGracePeriodSeconds)
	if s := p.Pod.Spec.TerminationGracePeriodSeconds; s != nil {
		seconds = *s
	}
	if probe != nil && probe.TerminationGracePeriodSeconds != nil {
		seconds = *probe.TerminationGracePeriodSeconds
	}
	return max(time.Duration(seconds)*time.Second, MinimumGrace)
}

// start plans the start of a container; last is the one of its name before, if any.
func (p *planner) start(spec *corev1.Container, last cri.Container, sandbox string) {
	s := Start{Name: spec.Name, Sandbox: sandbox}
	if last.ID != "" {
		s.Attempt = last.Attempt + 1
	}
	if last.State == cri.StateExited {
		wait := last.Backoff
		if last.FinishedAt.Sub(last.CreatedAt) > BackoffReset {
			wait = 0
		}
		if until := last.FinishedAt.Add(wait); wait > 0 && p.Now.Before(until) {
			p.d.Backoff[spec.Name] = Backoff{Delay: wait, Until: until}
			p.wake(until)
			return
		}
		s.Backoff = min(max(2*wait, BackoffInitial), BackoffMax)
	} else if last.ID != "" {
		s.Backoff = last.Backoff
	}
	// Containers start one after the other, in the order of the definition: a post-start hook
	// holds back those behind it.
	if p.narrow || len(p.d.Start) > 0 || p.starting() || !p.may(TaskStart(spec.Name)) {
		return
	}
	p.d.Start = append(p.d.Start, s)
}

// starting tells whether the start of an init or main container is under way.
func (p *planner) starting() bool {
	for task := range p.Busy {
		if name, ok := strings.CutPrefix(string(task), "start/"); ok && !p.isEphemeral(name) {
			return true
		}
	}
	return false
}

func (p *planner) isEphemeral(name string) bool {
	for i := range p.Pod.Spec.EphemeralContainers {
		if p.Pod.Spec.EphemeralContainers[i].Name == name {
			return true
		}
	}
	return false
}

// restarts tells whether a container that ended in the pod's present sandbox is started again.
func (p *planner) restarts(spec *corev1.Container, c cri.Container) bool {
	return p.restartsAfter(spec, c, false)
}

// restartsAfter is restarts; lost says that the sandbox is gone, and with it the chance to know
// how a container that still ran would have ended.
func (p *planner) restartsAfter(spec *corev1.Container, c cri.Container, lost bool) bool {
	if c.State != cri.StateExited {
		return !lost || policyOf(p.Pod, spec) != corev1.RestartPolicyNever
	}
	return Restarts(p.Pod, spec, c.ExitCode)
}

// policyOf returns the restart policy that holds for a container: its own, or the pod's.
func policyOf(pod *corev1.Pod, spec *corev1.Container) corev1.RestartPolicy {
	if spec.RestartPolicy != nil {
		return corev1.RestartPolicy(*spec.RestartPolicy)
	}
	return pod.Spec.RestartPolicy
}

// Restarts tells whether a container that ended with that exit code is started again: by its own
// rules if one matches (KEP-5307), else by its policy. An init container that ended well is done,
// unless it is a sidecar.
func Restarts(pod *corev1.Pod, spec *corev1.Container, exitCode int32) bool {
	for _, rule := range spec.RestartPolicyRules {
		if rule.ExitCodes == nil || rule.Action != corev1.ContainerRestartRuleActionRestart {
			continue
		}
		in := false
		for _, v := range rule.ExitCodes.Values {
			in = in || v == exitCode
		}
		if in == (rule.ExitCodes.Operator == corev1.ContainerRestartRuleOnExitCodesOpIn) {
			return true
		}
	}
	if exitCode == 0 && isInit(pod, spec.Name) && !Sidecar(spec) {
		return false
	}
	switch policyOf(pod, spec) {
	case corev1.RestartPolicyNever:
		return false
	case corev1.RestartPolicyOnFailure:
		return exitCode != 0
	default:
		return true
	}
}

func isInit(pod *corev1.Pod, name string) bool {
	for i := range pod.Spec.InitContainers {
		if pod.Spec.InitContainers[i].Name == name {
			return true
		}
	}
	return false
}

// kill plans the end of a container, unless it is already under way and will be over in time.
func (p *planner) kill(c cri.Container, k Kill) {
	k.ID, k.Name = c.ID, c.Name
	k.Message = fmt.Sprintf(k.Message, c.Name)
	deadline := p.Now.Add(k.Grace)
	if by, busy := p.Busy[TaskKill(c.ID)]; busy {
		slack := killSlack
		if k.Now {
			slack = 0
		}
		if !deadline.Before(by.Add(-slack)) {
			return
		}
	} else if !p.may(TaskKill(c.ID)) {
		return
	}
	for i := range p.d.Kill {
		if p.d.Kill[i].ID == k.ID {
			p.d.Kill[i].Grace = min(p.d.Kill[i].Grace, k.Grace)
			p.d.Kill[i].Now = p.d.Kill[i].Now || k.Now
			return
		}
	}
	p.d.Kill = append(p.d.Kill, k)
}

// killSlack keeps a kill under way from being replaced by one that ends only a little earlier.
const killSlack = time.Second
