package scheduler

import (
	"maps"
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

	ports     []hostPort
	required  nodeaffinity.RequiredNodeAffinity
	preferred *nodeaffinity.PreferredSchedulingTerms
	// siblings names the set that the pod should be spread among: those of its controller.
	// Empty when it has none.
	siblings types.UID
}

// NewPod computes what a decision needs of pod.
func NewPod(pod *corev1.Pod) *Pod {
	p := &Pod{Pod: pod, required: nodeaffinity.GetRequiredNodeAffinity(pod)}
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
	if owner := metav1.GetControllerOfNoCopy(pod); owner != nil {
		p.siblings = owner.UID
	}
	for _, containers := range [][]corev1.Container{pod.Spec.InitContainers, pod.Spec.Containers} {
		for i := range containers {
			p.addPorts(&containers[i])
		}
	}
	return p
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
}

func newNode(n *corev1.Node) *Node {
	node := &Node{Node: n, Allocatable: resourcesOf(n.Status.Allocatable), images: map[string]int64{}}
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
	return fresh
}

func (n *Node) with(p *Pod) *Node {
	c := *n
	c.Pods = append(slices.Clone(n.Pods), p)
	c.Requested, c.Assumed = n.Requested.add(p.Requests, 1), n.Assumed.add(p.Assumed, 1)
	if len(p.ports) > 0 {
		c.ports = append(slices.Clone(n.ports), p.ports...)
	}
	if p.siblings != "" {
		c.siblings = maps.Clone(n.siblings)
		if c.siblings == nil {
			c.siblings = map[types.UID]int{}
		}
		c.siblings[p.siblings]++
	}
	return &c
}

func (n *Node) without(uid types.UID) *Node {
	i := slices.IndexFunc(n.Pods, func(p *Pod) bool { return p.UID == uid })
	if i < 0 {
		return n
	}
	p := n.Pods[i]
	c := *n
	c.Pods = slices.Delete(slices.Clone(n.Pods), i, i+1)
	c.Requested, c.Assumed = n.Requested.add(p.Requests, -1), n.Assumed.add(p.Assumed, -1)
	if len(p.ports) > 0 {
		c.ports = nil
		for _, other := range c.Pods {
			c.ports = append(c.ports, other.ports...)
		}
	}
	if p.siblings != "" {
		c.siblings = maps.Clone(n.siblings)
		if c.siblings[p.siblings]--; c.siblings[p.siblings] == 0 {
			delete(c.siblings, p.siblings)
		}
	}
	return &c
}
