package podspec

import (
	"fmt"
	"sort"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// Refusal is why a node does not take a pod; its words become the pod's status.
type Refusal struct {
	Reason, Message string
}

// Admit decides whether the node can take the pod beside those it has already taken. It returns
// nil if it can. Whoever placed the pod should have known better: the answer is final.
func Admit(pod *corev1.Pod, node *corev1.Node, others []*corev1.Pod) *Refusal {
	if required := nodeaffinity.GetRequiredNodeAffinity(pod); node != nil {
		if ok, err := required.Match(node); err != nil || !ok {
			return &Refusal{"NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"}
		}
	}
	if os := pod.Spec.OS; os != nil && os.Name != corev1.Linux {
		return &Refusal{"PodOSNotSupported", fmt.Sprintf("Failed to admit pod as the OS field doesn't match node OS: %s", os.Name)}
	}
	if r := admitSysctls(pod); r != nil {
		return r
	}
	if r := admitPorts(pod, others); r != nil {
		return r
	}
	if node == nil {
		return nil
	}
	if r := admitTaints(pod, node); r != nil {
		return r
	}
	return admitResources(pod, node.Status.Allocatable, others)
}

func admitTaints(pod *corev1.Pod, node *corev1.Node) *Refusal {
	for i := range node.Spec.Taints {
		t := &node.Spec.Taints[i]
		if t.Effect != corev1.TaintEffectNoExecute {
			continue
		}
		tolerated := false
		for j := range pod.Spec.Tolerations {
			o := &pod.Spec.Tolerations[j]
			effect := o.Effect == "" || o.Effect == t.Effect
			key := o.Key == t.Key || o.Key == "" && o.Operator == corev1.TolerationOpExists
			value := o.Operator == corev1.TolerationOpExists || o.Value == t.Value
			tolerated = tolerated || effect && key && value
		}
		if !tolerated {
			return &Refusal{"TaintToleration", fmt.Sprintf("Predicate TaintToleration failed: node(s) had untolerated taint {%s: %s}", t.Key, t.Value)}
		}
	}
	return nil
}

type hostPort struct {
	ip, protocol string
	port         int32
}

func hostPorts(pod *corev1.Pod) []hostPort {
	var out []hostPort
	add := func(c *corev1.Container) {
		for _, p := range c.Ports {
			port := p.HostPort
			if pod.Spec.HostNetwork && port == 0 {
				port = p.ContainerPort
			}
			if port == 0 {
				continue
			}
			h := hostPort{ip: p.HostIP, protocol: string(p.Protocol), port: port}
			if h.ip == "" {
				h.ip = "0.0.0.0"
			}
			if h.protocol == "" {
				h.protocol = "TCP"
			}
			out = append(out, h)
		}
	}
	for i := range pod.Spec.InitContainers {
		if c := &pod.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range pod.Spec.Containers {
		add(&pod.Spec.Containers[i])
	}
	return out
}

func admitPorts(pod *corev1.Pod, others []*corev1.Pod) *Refusal {
	wanted := hostPorts(pod)
	if len(wanted) == 0 {
		return nil
	}
	for _, o := range others {
		for _, taken := range hostPorts(o) {
			for _, w := range wanted {
				sameIP := w.ip == taken.ip || w.ip == "0.0.0.0" || taken.ip == "0.0.0.0"
				if sameIP && w.port == taken.port && w.protocol == taken.protocol {
					return &Refusal{"NodePorts", "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports"}
				}
			}
		}
	}
	return nil
}

func admitResources(pod *corev1.Pod, allocatable corev1.ResourceList, others []*corev1.Pod) *Refusal {
	if limit := allocatable.Pods().Value(); limit > 0 && int64(len(others))+1 > limit {
		return &Refusal{"OutOfpods", fmt.Sprintf("Node didn't have enough resource: pods, requested: 1, used: %d, capacity: %d", len(others), limit)}
	}
	wanted := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{})
	names := make([]string, 0, len(wanted))
	for name := range wanted {
		names = append(names, string(name))
	}
	sort.Strings(names)
	used := corev1.ResourceList{}
	for _, o := range others {
		for name, amount := range resourcehelper.PodRequests(o, resourcehelper.PodResourcesOptions{}) {
			sum := used[name]
			sum.Add(amount)
			used[name] = sum
		}
	}
	for _, s := range names {
		name := corev1.ResourceName(s)
		want, have, taken := wanted[name], allocatable[name], used[name]
		if want.IsZero() {
			continue
		}
		total := taken.DeepCopy()
		total.Add(want)
		if total.Cmp(have) > 0 {
			return &Refusal{"OutOf" + s, fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d",
				s, unit(name, want), unit(name, taken), unit(name, have))}
		}
	}
	return nil
}

// unit is an amount as such messages give it: thousandths of CPUs, and else the plain number.
func unit(name corev1.ResourceName, q resource.Quantity) int64 {
	if name == corev1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}
