package daemonset

import (
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	schedulingv1 "k8s.io/component-helpers/scheduling/corev1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
	"k8s.io/klog/v2"
)

// A placement says on which nodes a DaemonSet's pods belong.
type placement struct {
	nodeName    string
	tolerations []corev1.Toleration
	affinity    nodeaffinity.RequiredNodeAffinity
}

func newPlacement(ds *appsv1.DaemonSet) placement {
	spec := &ds.Spec.Template.Spec
	return placement{
		nodeName:    spec.NodeName,
		tolerations: withDaemonTolerations(spec.Tolerations, spec.HostNetwork),
		affinity:    nodeaffinity.NewRequiredNodeAffinity(spec.NodeSelector, spec.Affinity),
	}
}

// fits tells whether a pod should be started on node, and whether one that runs there may stay:
// a taint NoSchedule keeps pods away without driving them out.
func (p placement) fits(node *corev1.Node) (start, stay bool) {
	if p.nodeName != "" && p.nodeName != node.Name {
		return false, false
	}
	// A term that does not parse matches no node.
	if ok, _ := p.affinity.Match(node); !ok {
		return false, false
	}
	if p.tolerates(node, corev1.TaintEffectNoExecute, corev1.TaintEffectNoSchedule) {
		return true, true
	}
	return false, p.tolerates(node, corev1.TaintEffectNoExecute)
}

func (p placement) tolerates(node *corev1.Node, effects ...corev1.TaintEffect) bool {
	_, untolerated := schedulingv1.FindMatchingUntoleratedTaint(klog.Logger{}, node.Spec.Taints, p.tolerations, func(t *corev1.Taint) bool {
		for _, e := range effects {
			if t.Effect == e {
				return true
			}
		}
		return false
	}, false)
	return !untolerated
}

// withDaemonTolerations adds what every daemon pod tolerates: a node that is not ready, not
// reachable, under pressure or cordoned, and for pods in the node's network one whose network
// is not up.
func withDaemonTolerations(own []corev1.Toleration, hostNetwork bool) []corev1.Toleration {
	taints := []corev1.Taint{
		{Key: corev1.TaintNodeNotReady, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeUnreachable, Effect: corev1.TaintEffectNoExecute},
		{Key: corev1.TaintNodeDiskPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeMemoryPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodePIDPressure, Effect: corev1.TaintEffectNoSchedule},
		{Key: corev1.TaintNodeUnschedulable, Effect: corev1.TaintEffectNoSchedule},
	}
	if hostNetwork {
		taints = append(taints, corev1.Taint{Key: corev1.TaintNodeNetworkUnavailable, Effect: corev1.TaintEffectNoSchedule})
	}
	all := append([]corev1.Toleration(nil), own...)
	for _, t := range taints {
		all = setToleration(all, corev1.Toleration{Key: t.Key, Operator: corev1.TolerationOpExists, Effect: t.Effect})
	}
	return all
}

// setToleration replaces the toleration that differs from t by its seconds only, or adds t.
func setToleration(all []corev1.Toleration, t corev1.Toleration) []corev1.Toleration {
	for i, have := range all {
		have.TolerationSeconds = nil
		if equality.Semantic.DeepEqual(have, t) {
			all[i] = t
			return all
		}
	}
	return append(all, t)
}

// pinTo returns an affinity that lets the scheduler bind the pod to the named node only.
func pinTo(affinity *corev1.Affinity, node string) *corev1.Affinity {
	pinned := affinity.DeepCopy()
	if pinned == nil {
		pinned = &corev1.Affinity{}
	}
	if pinned.NodeAffinity == nil {
		pinned.NodeAffinity = &corev1.NodeAffinity{}
	}
	pinned.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution = &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchFields: []corev1.NodeSelectorRequirement{{
				Key: metav1.ObjectNameField, Operator: corev1.NodeSelectorOpIn, Values: []string{node},
			}},
		}},
	}
	return pinned
}

// target is the node that a pod runs on or is pinned to; "" if neither.
func target(pod *corev1.Pod) string {
	if pod.Spec.NodeName != "" {
		return pod.Spec.NodeName
	}
	a := pod.Spec.Affinity
	if a == nil || a.NodeAffinity == nil || a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution == nil {
		return ""
	}
	for _, term := range a.NodeAffinity.RequiredDuringSchedulingIgnoredDuringExecution.NodeSelectorTerms {
		for _, f := range term.MatchFields {
			if f.Key == metav1.ObjectNameField && f.Operator == corev1.NodeSelectorOpIn {
				if len(f.Values) != 1 {
					return ""
				}
				return f.Values[0]
			}
		}
	}
	return ""
}
