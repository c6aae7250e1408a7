package plan

import (
	"barque.dev/internal/agent/cri"
)

// stopAll plans the end of the whole pod: main containers together, then the sidecars one by one,
// the last in the definition first, then the sandboxes.
func (p *planner) stopAll(stop Stop) {
	message := stop.Message
	if message == "" {
		message = "Stopping container %s"
	}
	grace := max(stop.Deadline.Sub(p.Now), MinimumGrace)
	if stop.Now {
		grace = 0
	}
	k := Kill{Grace: grace, Now: stop.Now, Message: message}

	sidecars := map[string]int{}
	for i := range p.Pod.Spec.InitContainers {
		if Sidecar(&p.Pod.Spec.InitContainers[i]) {
			sidecars[p.Pod.Spec.InitContainers[i].Name] = i
		}
	}
	running := 0
	var last []cri.Container // sidecars that still run
	for _, c := range p.Observed.Containers {
		if !live(c) {
			continue
		}
		running++
		if _, ok := sidecars[c.Name]; ok && !stop.Now {
			last = append(last, c)
			continue
		}
		p.kill(c, k)
	}
	if running > 0 && running == len(last) {
		p.kill(lastOf(last, sidecars), k)
	}
	if running > 0 || p.startUnderWay() {
		return
	}
	p.d.Ended = true
	if _, busy := p.Busy[TaskSandbox]; p.stopOldSandboxes("") && !busy {
		p.d.Stopped = true
	}
}

// lastOf returns the container whose name comes last in the definition.
func lastOf(containers []cri.Container, order map[string]int) cri.Container {
	best := containers[0]
	for _, c := range containers[1:] {
		if order[c.Name] > order[best.Name] {
			best = c
		}
	}
	return best
}

// startUnderWay tells whether a container may yet come to run by a start that was begun before.
func (p *planner) startUnderWay() bool {
	for task := range p.Busy {
		if len(task) > 6 && task[:6] == "start/" {
			return true
		}
	}
	return false
}
