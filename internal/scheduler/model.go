package scheduler

import (
	"maps"
	"math"
	"slices"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"
)

// What a container that asks for nothing is assumed to use when nodes are ranked, so that such
// pods spread too (stock values).
const (
	assumedMilliCPU = 100
	assumedMemory   = 200 << 20
)

// Resources is an amount of each resource: CPU in thousandths, memory and ephemeral storage
// in bytes, others in their own unit.
type Resources struct {
	MilliCPU, Memory, Storage int64
	Extended                  map[corev1.ResourceName]int64
}

func resourcesOf(list corev1.ResourceList) Resources {
	var r Resources
	for name, q := range list {
		switch name {
		case corev1.ResourceCPU:
			r.MilliCPU = q.MilliValue()
		case corev1.ResourceMemory:
			r.Memory = q.Value()
		case corev1.ResourceEphemeralStorage:
			r.Storage = q.Value()
		case corev1.ResourcePods:
		default:
			if r.Extended == nil {
				r.Extended = map[corev1.ResourceName]int64{}
			}
			r.Extended[name] = q.Value()
		}
	}
	return r
}

// add returns r + sign*o, leaving both alone.
func (r Resources) add(o Resources, sign int64) Resources {
	r.MilliCPU += sign * o.MilliCPU
	r.Memory += sign * o.Memory
	r.Storage += sign * o.Storage
	if len(o.Extended) > 0 {
		sum := maps.Clone(r.Extended)
		if sum == nil {
			sum = map[corev1.ResourceName]int64{}
		}
		for name, n := range o.Extended {
			sum[name] += sign * n
		}
		r.Extended = sum
	}
	return r
}

// A hostPort is one that a pod takes on its node. An empty or unspecified IP takes the port on
// every address.
type hostPort struct {
	ip       string
	protocol corev1.Protocol
	port     int32
}

func (p hostPort) collides(o hostPort) bool {
	return p.port == o.port && p.protocol == o.protocol && (p.ip == o.ip || p.ip == "0.0.0.0" || o.ip == "0.0.0.0")
}

// Pod is what the scheduler knows about a pod, computed once. It is immutable.
type Pod struct {
	*corev1.Pod
	// Requests is what a node must have free.
	Requests Resources
	// Assumed is Requests with an assumption for containers that ask for nothing, in CPU and
	// memory, for ranking only.
	Assumed Resources

	// Priority is what the pod's class gives it; a pod may take the room of those below it.
	Priority int32
	// Nominated is the node that others were asked to leave for this pod's sake; empty when none.
	Nominated string

	ports     []hostPort
	required  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms
	// siblings names the set that the pod should be spread among if it has no constraints: those of
	// its controller. Empty when it has none, or when the pod is ending.
	siblings types.UID
	// hard and soft are its topology constraints.
	hard, soft []constraint
	// terms are about other pods; nil when it has none.
	terms *terms
}

// NewPod computes what a decision needs of pod.
func NewPod(pod *corev1.Pod) *Pod {
	p := &Pod{Pod: pod, Nominated: pod.Status.NominatedNodeName, required: nodeaffinity.GetRequiredNodeAffinity(pod)}
	if pod.Spec.Priority != nil {
		p.Priority = *pod.Spec.Priority
	}
	opts := resourcehelper.PodResourcesOptions{UseStatusResources: true}
	p.Requests = resourcesOf(resourcehelper.PodRequests(pod, opts))
	opts.NonMissingContainerRequests = corev1.ResourceList{
		corev1.ResourceCPU:    *milli(assumedMilliCPU),
		corev1.ResourceMemory: *bytes(assumedMemory),
	}
	p.Assumed = resourcesOf(resourcehelper.PodRequests(pod, opts))
	if a := pod.Spec.Affinity; a != nil && a.NodeAffinity != nil {
		// Validation has refused terms that do not parse; one that slipped through ranks nothing.
		p.preferred, _ = nodeaffinity.NewPreferredSchedulingTerms(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution)
	}
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil && pod.DeletionTimestamp == nil {
		p.siblings = owner.UID
	}
	p.addSpread()
	p.terms = newTerms(pod)
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			p.addPorts(&containers[i])
		}
	}
	return p
}

// nominatedTo returns the pod with another nomination.
func (p *Pod) nominatedTo(node string) *Pod {
	c := *p
	c.Nominated = node
	return &c
}

func (p *Pod) addPorts(c *corev1.Container) {
	for _, port := range c.Ports {
		if port.HostPort <= 0 {
			continue
		}
		hp := hostPort{ip: port.HostIP, protocol: port.Protocol, port: port.HostPort}
		if hp.ip == "" {
			hp.ip = "0.0.0.0"
		}
		if hp.protocol == "" {
			hp.protocol = corev1.ProtocolTCP
		}
		p.ports = append(p.ports, hp)
	}
}

// Node is a node and the pods on it. It is immutable: with and without return new ones.
type Node struct {
	*corev1.Node
	Allocatable Resources
	// MaxPods is how many pods the node takes.
	MaxPods int64
	// Requested and Assumed are the sums over Pods.
	Requested, Assumed Resources
	// Pods are those bound to the node, or about to be, that have not ended; by UID.
	Pods []*Pod

	ports    []hostPort
	siblings map[types.UID]int
	images   map[string]int64 // size in bytes, by every name of the image
	// lowest is the lowest priority among Pods; math.MaxInt32 without any.
	lowest int32
	// nominated are pods without a node that others left, or are leaving, this node for.
	nominated []*Pod
	// choosy are those of Pods that have terms about other pods.
	choosy []*Pod
}

func newNode(n *corev1.Node) *Node {
	node := &Node{Node: n, Allocatable: resourcesOf(n.Status.Allocatable), images: map[string]int64{}, lowest: math.MaxInt32}
	if q, ok := n.Status.Allocatable[corev1.ResourcePods]; ok {
		node.MaxPods = q.Value()
	}
	for _, image := range n.Status.Images {
		for _, name := range image.Names {
			node.images[name] = image.SizeBytes
		}
	}
	return node
}

// at returns the node with n's new description and the same pods.
func (n *Node) at(desc *corev1.Node) *Node {
	fresh := newNode(desc)
	fresh.Requested, fresh.Assumed = n.Requested, n.Assumed
	fresh.Pods, fresh.ports, fresh.siblings = n.Pods, n.ports, n.siblings
	fresh.lowest, fresh.nominated, fresh.choosy = n.lowest, n.nominated, n.choosy
	return fresh
}

// with returns the node with pods on it beside those that are.
func (n *Node) with(pods ...*Pod) *Node {
	c := *n
	c.Pods = slices.Concat(n.Pods, pods)
	c.siblings = maps.Clone(n.siblings)
	for _, p := range pods {
		c.take(p)
	}
	return &c
}

// take counts p, which is among the pods by now, in what is derived from them. n owns its siblings.
func (n *Node) take(p *Pod) {
	n.Requested, n.Assumed = n.Requested.add(p.Requests, 1), n.Assumed.add(p.Assumed, 1)
	n.lowest = min(n.lowest, p.Priority)
	if len(p.ports) > 0 {
		n.ports = slices.Concat(n.ports, p.ports)
	}
	if p.terms != nil {
		n.choosy = slices.Concat(n.choosy, []*Pod{p})
	}
	if p.siblings != "" {
		if n.siblings == nil {
			n.siblings = map[types.UID]int{}
		}
		n.siblings[p.siblings]++
	}
}

// without returns the node without the pod.
func (n *Node) without(uid types.UID) *Node {
	i := slices.IndexFunc(n.Pods, func(p *Pod) bool { return p.UID == uid })
	if i < 0 {
		return n
	}
	p := n.Pods[i]
	c := *n
	c.Pods = slices.Delete(slices.Clone(n.Pods), i, i+1)
	c.release(p)
	return &c
}

// release is the opposite of take: p is not among the pods any more.
func (n *Node) release(p *Pod) {
	n.Requested, n.Assumed = n.Requested.add(p.Requests, -1), n.Assumed.add(p.Assumed, -1)
	if p.Priority == n.lowest {
		n.lowest = math.MaxInt32
		for _, other := range n.Pods {
			n.lowest = min(n.lowest, other.Priority)
		}
	}
	if len(p.ports) > 0 {
		n.ports = nil
		for _, other := range n.Pods {
			n.ports = append(n.ports, other.ports...)
		}
	}
	if p.terms != nil {
		n.choosy = slices.DeleteFunc(slices.Clone(n.choosy), func(o *Pod) bool { return o == p })
	}
	if p.siblings != "" {
		n.siblings = maps.Clone(n.siblings)
		if n.siblings[p.siblings]--; n.siblings[p.siblings] == 0 {
			delete(n.siblings, p.siblings)
		}
	}
}

// split returns the node with only those pods that keep is true of, and the others.
func (n *Node) split(keep func(*Pod) bool) (rest *Node, gone []*Pod) {
	rest = &Node{Node: n.Node, Allocatable: n.Allocatable, MaxPods: n.MaxPods, images: n.images, lowest: math.MaxInt32, nominated: n.nominated}
	for _, p := range n.Pods {
		if keep(p) {
			rest.Pods = append(rest.Pods, p)
			rest.take(p)
		} else {
			gone = append(gone, p)
		}
	}
	return rest, gone
}

// nominating returns the node with p among those nominated to it; without it, if on is false.
func (n *Node) nominating(p *Pod, on bool) *Node {
	c := *n
	c.nominated = slices.DeleteFunc(slices.Clone(n.nominated), func(o *Pod) bool { return o.UID == p.UID })
	if on {
		c.nominated = append(c.nominated, p)
	}
	return &c
}
