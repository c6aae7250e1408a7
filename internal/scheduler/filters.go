package scheduler

import (
	"slices"

	corev1 "k8s.io/api/core/v1"
	corehelpers "k8s.io/component-helpers/scheduling/corev1"
)

// A filter says why a node cannot take a pod: no reason means that it can. The texts are
// stock's, since people and dashboards search for them.
type filter struct {
	name   string
	refuse func(q *query, n *Node, r *Refusal)
}

// filters are asked in this order; the first that has a reason ends it.
var filters = []filter{
	{"NodeUnschedulable", unschedulable},
	{"NodeName", nodeName},
	{"TaintToleration", untoleratedTaint},
	{"NodeAffinity", nodeAffinity},
	{"NodePorts", nodePorts},
	{"NodeResourcesFit", resourcesFit},
	{"PodTopologySpread", topologySpread},
	{"InterPodAffinity", interPodAffinity},
}

var unschedulableTaint = corev1.Taint{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule}

func unschedulable(q *query, n *Node, r *Refusal) {
	if n.Spec.Unschedulable && !tolerated(q.pod.Spec.Tolerations, &unschedulableTaint) {
		r.sayFinal("node(s) were unschedulable")
	}
}

func nodeName(q *query, n *Node, r *Refusal) {
	if name := q.pod.Spec.NodeName; name != "" && name != n.Name {
		r.sayFinal("node(s) didn't match the requested node name")
	}
}

func untoleratedTaint(q *query, n *Node, r *Refusal) {
	if q.pod.untolerated(n) != nil {
		r.sayFinal("node(s) had untolerated taint(s)")
	}
}

// untolerated is the first of the node's taints that keeps the pod away, nil if none does.
func (p *Pod) untolerated(n *Node) *corev1.Taint {
	for i := range n.Spec.Taints {
		t := &n.Spec.Taints[i]
		if (t.Effect == corev1.TaintEffectNoSchedule || t.Effect == corev1.TaintEffectNoExecute) && !tolerated(p.Spec.Tolerations, t) {
			return t
		}
	}
	return nil
}

func tolerated(tolerations []corev1.Toleration, t *corev1.Taint) bool {
	return slices.ContainsFunc(tolerations, func(tol corev1.Toleration) bool {
		return corehelpers.TolerationsTolerateTaint(noLog, []corev1.Toleration{tol}, t, true)
	})
}

func nodeAffinity(q *query, n *Node, r *Refusal) {
	if !q.pod.selects(n) {
		r.sayFinal("node(s) didn't match Pod's node affinity/selector")
	}
}

// selects tells whether the pod's node selector and required node affinity allow the node.
func (p *Pod) selects(n *Node) bool {
	ok, err := p.required.Match(n.Node)
	return ok && err == nil
}

func nodePorts(q *query, n *Node, r *Refusal) {
	for _, want := range q.pod.ports {
		if slices.ContainsFunc(n.ports, want.collides) {
			r.say("node(s) didn't have free ports for the requested pod ports")
			return
		}
	}
}

// resourcesFit names every resource that is short, as stock does. What the node does not have
// at all, no other pod's end can give.
func resourcesFit(q *query, n *Node, r *Refusal) {
	if int64(len(n.Pods)) >= n.MaxPods {
		r.say("Too many pods")
	}
	short := func(name string, want, have, used int64) {
		if want > 0 && want > have-used {
			r.say("Insufficient " + name)
			r.Final = r.Final || want > have
		}
	}
	want := &q.pod.Requests
	short("cpu", want.MilliCPU, n.Allocatable.MilliCPU, n.Requested.MilliCPU)
	short("memory", want.Memory, n.Allocatable.Memory, n.Requested.Memory)
	short("ephemeral-storage", want.Storage, n.Allocatable.Storage, n.Requested.Storage)
	for name, amount := range want.Extended {
		short(string(name), amount, n.Allocatable.Extended[name], n.Requested.Extended[name])
	}
}
