package scheduler

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	corehelpers "k8s.io/component-helpers/scheduling/corev1"
)

// A filter says why a node cannot take a pod: no reason means that it can. The texts are
// stock's, since people and dashboards search for them.
type filter struct {
	name string
	// reasons appends to out, which it returns, to spare an allocation for each node that fits.
	reasons func(p *Pod, n *Node, out []string) []string
}

// filters are asked in this order; the first that has a reason ends it. A row that changes
// with the decision (topology, affinity) would be made by a function of pod and snapshot.
var filters = []filter{
	{"NodeUnschedulable", unschedulable},
	{"NodeName", nodeName},
	{"TaintToleration", untoleratedTaint},
	{"NodeAffinity", nodeAffinity},
	{"NodePorts", nodePorts},
	{"NodeResourcesFit", resourcesFit},
}

var unschedulableTaint = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

func unschedulable(p *Pod, n *Node, out []string) []string {
	if n.Spec.Unschedulable && !tolerated(p.Spec.Tolerations, &unschedulableTaint) {
		return append(out, "node(s) were unschedulable")
	}
	return out
}

func nodeName(p *Pod, n *Node, out []string) []string {
	if p.Spec.NodeName != "" && p.Spec.NodeName != n.Name {
		return append(out, "node(s) didn't match the requested node name")
	}
	return out
}

func untoleratedTaint(p *Pod, n *Node, out []string) []string {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if (t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute) && !tolerated(p.Spec.Tolerations, t) {
			return append(out, fmt.Sprintf("node(s) had untolerated taint {%s: %s}", t.Key, t.Value))
		}
	}
	return out
}

func tolerated(tolerations []corev1.Toleration, t *corev1.Taint) bool {
	return slices.ContainsFunc(tolerations, func(tol corev1.Toleration) bool {
		return corehelpers.TolerationsTolerateTaint(noLog, []corev1.Toleration{tol}, t, true)
	})
}

func nodeAffinity(p *Pod, n *Node, out []string) []string {
	if ok, err := p.required.Match(n.Node); err != nil || !ok {
		return append(out, "node(s) didn't match Pod's node affinity/selector")
	}
	return out
}

func nodePorts(p *Pod, n *Node, out []string) []string {
	for _, want := range p.ports {
		if slices.ContainsFunc(n.ports, want.collides) {
			return append(out, "node(s) didn't have free ports for the requested pod ports")
		}
	}
	return out
}

// resourcesFit names every resource that is short, as stock does.
func resourcesFit(p *Pod, n *Node, out []string) []string {
	if int64(len(n.Pods)) >= n.MaxPods {
		out = append(out, "Too many pods")
	}
	r := &p.Requests
	short := func(want, have, used int64) bool { return want > 0 && want > have-used }
	if short(r.MilliCPU, n.Allocatable.MilliCPU, n.Requested.MilliCPU) {
		out = append(out, "Insufficient cpu")
	}
	if short(r.Memory, n.Allocatable.Memory, n.Requested.Memory) {
		out = append(out, "Insufficient memory")
	}
	if short(r.Storage, n.Allocatable.Storage, n.Requested.Storage) {
		out = append(out, "Insufficient ephemeral-storage")
	}
	for name, want := range r.Extended {
		if short(want, n.Allocatable.Extended[name], n.Requested.Extended[name]) {
			out = append(out, "Insufficient "+string(name))
		}
	}
	return out
}
