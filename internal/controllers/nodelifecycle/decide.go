package nodelifecycle

import (
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/internal/cluster/liveness"
)

// Bounds of a node's silence.
const (
	// suspectAfter is how long a connected node may be silent before it is looked at closely.
	suspectAfter = liveness.Silent
	// margin is added to the time in which a cut-off agent stops what must not run twice.
	margin = 500 * time.Millisecond
	// recheck is how soon a suspect is looked at again.
	recheck = 250 * time.Millisecond
)

// Bounds are the cluster's own of a node's silence.
type Bounds struct {
	// Fence is when a cut-off agent stops what must not run twice.
	Fence time.Duration
	// Grace is how long a node may be silent before its conditions are Unknown (stock: 40 s).
	Grace time.Duration
}

// askAfter is how long a node may be silent before the servers are asked: what they find out by
// then is just old enough to condemn it.
func askAfter(fenceAfter time.Duration) time.Duration {
	return max(suspectAfter, fenceAfter+margin-liveness.ReachTimeout)
}

// LostAnnotation marks a node that the cluster itself declared lost, so that it takes back the
// out-of-service taint when the node returns, and never one that an administrator set.
const LostAnnotation = "barque.dev/lost-since"

// A verdict is what the cluster thinks of a node.
type verdict int8

const (
	// alive: heard within its bounds.
	alive verdict = iota
	// suspect: its agent is gone or silent for a moment. It gets no new pods; those that it
	// has may well go on.
	suspect
	// unknown: silent for longer than the grace period.
	unknown
	// lost: silent on every server, its machine unreachable, and silent for longer than its
	// agent needs to stop what must not run twice.
	lost
)

// evidence is what a verdict rests on. Durations are since the last sign of life, by this
// server's own clock.
type evidence struct {
	// connected tells whether the node's agent holds a connection to this server,
	// connectedOnce whether it ever held one to any that was asked, and refused whether it
	// holds none now and its port refuses another.
	connected, connectedOnce, refused bool
	// leaseSilence is how long the node's lease or status has not changed.
	leaseSilence time.Duration
	// opinion is the servers', when they were asked.
	opinion *liveness.Opinion
	bounds  Bounds
	// silentNodes of nodes are silent at the same time, this one included.
	silentNodes, nodes int
}

// judge reaches a verdict. It is a pure function.
func judge(e evidence) verdict {
	switch {
	case e.opinion != nil && isLost(e):
		return lost
	case e.leaseSilence >= e.bounds.Grace:
		return unknown
	case e.refused, e.connectedOnce && e.leaseSilence >= suspectAfter:
		return suspect
	}
	return alive
}

func isLost(e evidence) bool {
	o := e.opinion
	return o.Silence >= e.bounds.Fence+margin && // some server held its connection, long enough ago
		e.leaseSilence >= e.bounds.Fence+margin &&
		o.Answering == 0 && o.Asked*2 > o.Servers && // most servers looked, none reached it
		// When most nodes fall silent at once, it is this side that was cut off. With one or
		// two nodes that can't be told apart, and the servers' majority decides.
		(e.nodes <= 2 || e.silentNodes*2 <= e.nodes)
}

// desiredTaints returns the node's taints as its conditions and the verdict want them, others
// left alone and in place.
func desiredTaints(n *corev1.Node, v verdict, now metav1.Time) []corev1.Taint {
	want := map[string]map[corev1.TaintEffect]bool{}
	add := func(key string, effects ...corev1.TaintEffect) {
		want[key] = map[corev1.TaintEffect]bool{}
		for _, e := range effects {
			want[key][e] = true
		}
	}
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionFalse:
			add(corev1.TaintNodeNotReady, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
		case c.Type == corev1.NodeReady && c.Status == corev1.ConditionUnknown:
			add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute)
		case c.Status == corev1.ConditionTrue && pressureTaints[c.Type] != "":
			add(pressureTaints[c.Type], corev1.TaintEffectNoSchedule)
		}
	}
	if v == suspect && want[corev1.TaintNodeUnreachable] == nil {
		add(corev1.TaintNodeUnreachable, corev1.TaintEffectNoSchedule)
	}
	if n.Spec.Unschedulable {
		add(corev1.TaintNodeUnschedulable, corev1.TaintEffectNoSchedule)
	}
	managed := slices.Clone(managedTaints)
	if v == lost || n.Annotations[LostAnnotation] != "" {
		managed = append(managed, corev1.TaintNodeOutOfService)
	}
	if v == lost || n.Annotations[LostAnnotation] != "" && !isReady(n) {
		add(corev1.TaintNodeOutOfService, corev1.TaintEffectNoExecute)
	}

	var taints []corev1.Taint
	for _, t := range n.Spec.Taints {
		if !slices.Contains(managed, t.Key) || want[t.Key][t.Effect] {
			taints = append(taints, t)
			delete(want[t.Key], t.Effect)
		}
	}
	for _, key := range append(managed, corev1.TaintNodeOutOfService) {
		for _, effect := range []corev1.TaintEffect{corev1.TaintEffectNoSchedule, corev1.TaintEffectNoExecute} {
			if !want[key][effect] {
				continue
			}
			delete(want[key], effect)
			t := corev1.Taint{Key: key, Effect: effect, TimeAdded: &now}
			if key == corev1.TaintNodeOutOfService {
				t.Value = "nodeshutdown"
			}
			taints = append(taints, t)
		}
	}
	return taints
}

var pressureTaints = map[corev1.NodeConditionType]string{
	corev1.NodeMemoryPressure:     corev1.TaintNodeMemoryPressure,
	corev1.NodeDiskPressure:       corev1.TaintNodeDiskPressure,
	corev1.NodePIDPressure:        corev1.TaintNodePIDPressure,
	corev1.NodeNetworkUnavailable: corev1.TaintNodeNetworkUnavailable,
}

// managedTaints are those that follow from conditions.
var managedTaints = []string{
	corev1.TaintNodeNotReady, corev1.TaintNodeUnreachable, corev1.TaintNodeUnschedulable,
	corev1.TaintNodeMemoryPressure, corev1.TaintNodeDiskPressure, corev1.TaintNodePIDPressure,
	corev1.TaintNodeNetworkUnavailable,
}

func isReady(n *corev1.Node) bool { return readiness(n) == corev1.ConditionTrue }

func readiness(n *corev1.Node) corev1.ConditionStatus {
	for _, c := range n.Status.Conditions {
		if c.Type == corev1.NodeReady {
			return c.Status
		}
	}
	return ""
}

// unknownConditions says of every condition that the node itself reports that nobody knows
// any more; it tells whether that changed anything.
func unknownConditions(status *corev1.NodeStatus, now metav1.Time) bool {
	changed := false
	kinds := []corev1.NodeConditionType{corev1.NodeReady, corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure}
	for _, kind := range kinds {
		i := slices.IndexFunc(status.Conditions, func(c corev1.NodeCondition) bool { return c.Type == kind })
		if i < 0 {
			status.Conditions = append(status.Conditions, corev1.NodeCondition{
				Type: kind, Status: corev1.ConditionUnknown, Reason: "NodeStatusNeverUpdated",
				Message: "Kubelet never posted node status.", LastTransitionTime: now,
			})
			changed = true
			continue
		}
		if c := &status.Conditions[i]; c.Status != corev1.ConditionUnknown {
			c.Status, c.Reason, c.Message = corev1.ConditionUnknown, "NodeStatusUnknown", "Kubelet stopped posting node status."
			c.LastTransitionTime = now
			changed = true
		}
	}
	return changed
}
