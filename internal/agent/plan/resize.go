package plan

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/podspec"
)

// Resize gives what runs other resources. Only one of its parts is set: a pod's control group is
// widened before containers are changed or started in it, and narrowed when none of them needs the
// room any more.
type Resize struct {
	// Limits for the pod's control group.
	Limits *podspec.Limits
	// Containers that get the resources of their definition, by id, in this order.
	Containers []string
}

// resize plans the changes of resources of what runs in the sandbox (KEP-1287).
func (p *planner) resize(sandbox string) {
	changed := p.changed(sandbox)
	was := map[string]corev1.ResourceRequirements{}
	for _, c := range changed {
		was[c.Name] = p.Applied[c.ID]
	}
	limits := podspec.LimitsOf(p.Pod)
	if len(was) > 0 {
		limits = limits.Max(podspec.LimitsOf(podspec.Asked(p.Pod).With(was).Of(p.Pod)))
	}
	p.narrow = p.Limits != nil && p.Limits.Max(limits) != *p.Limits
	p.d.Resizing = len(changed) > 0 || p.Limits != nil && *p.Limits != limits
	if !p.d.Resizing || !p.may(TaskResize) {
		return
	}
	if p.narrow || len(changed) == 0 {
		p.d.Resize = &Resize{Limits: &limits}
		return
	}
	var update []string
	for _, c := range changed {
		if !restartsFor(podspec.Container(p.Pod, c.Name), p.Applied[c.ID]) {
			update = append(update, c.ID)
		}
	}
	if len(update) > 0 {
		p.d.Resize = &Resize{Containers: update}
	}
}

// changed returns the running containers that have other resources than they should, those first
// that get less memory.
func (p *planner) changed(sandbox string) []cri.Container {
	var out []cri.Container
	for _, list := range [][]corev1.Container{p.Pod.Spec.InitContainers, p.Pod.Spec.Containers} {
		for i := range list {
			c, ok := p.Observed.Active(list[i].Name, sandbox)
			applied, known := p.Applied[c.ID]
			if ok && known && c.State == cri.StateRunning && !same(applied, list[i].Resources, corev1.ResourceCPU, corev1.ResourceMemory) {
				out = append(out, c)
			}
		}
	}
	more := func(c cri.Container) int64 {
		return podspec.Container(p.Pod, c.Name).Resources.Limits.Memory().Value() - limitOf(p.Applied[c.ID])
	}
	slices.SortStableFunc(out, func(a, b cri.Container) int { return int(min(max(more(a)-more(b), -1), 1)) })
	return out
}

func limitOf(r corev1.ResourceRequirements) int64 { return r.Limits.Memory().Value() }

// same tells whether two containers' resources are the same as far as those names go.
func same(a, b corev1.ResourceRequirements, names ...corev1.ResourceName) bool {
	for _, name := range names {
		request, limit := a.Requests[name], a.Limits[name]
		if request.Cmp(b.Requests[name]) != 0 || limit.Cmp(b.Limits[name]) != 0 {
			return false
		}
	}
	return true
}

// restartsFor tells whether a container that has those resources has to be restarted to get its own.
func restartsFor(spec *corev1.Container, applied corev1.ResourceRequirements) bool {
	for _, policy := range spec.ResizePolicy {
		if policy.RestartPolicy == corev1.RestartContainer && !same(applied, spec.Resources, policy.ResourceName) {
			return true
		}
	}
	return false
}

// restartsToResize tells whether a running container is to be stopped now in order to be resized: its
// successor has to find the pod's control group wide enough.
func (p *planner) restartsToResize(spec *corev1.Container, c cri.Container) bool {
	applied, known := p.Applied[c.ID]
	return known && !p.narrow && restartsFor(spec, applied)
}
