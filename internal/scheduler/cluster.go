package scheduler

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is the cluster at one moment: its nodes by name. It is immutable.
type Snapshot struct {
	Nodes []*Node
}

// Cluster is the scheduler's model of nodes and the pods on them. It is not safe for
// concurrent use; the snapshots that it hands out are.
type Cluster struct {
	nodes  []*Node // by name
	shared bool    // a snapshot has nodes: copy it before the next change
	where  map[types.UID]string
	// homeless are pods on nodes that are not known (yet).
	homeless map[string]map[types.UID]*Pod
}

// NewCluster returns an empty model.
func NewCluster() *Cluster {
	return &Cluster{where: map[types.UID]string{}, homeless: map[string]map[types.UID]*Pod{}}
}

// Snapshot returns the state as it is now, in constant time.
func (c *Cluster) Snapshot() Snapshot {
	c.shared = true
	return Snapshot{Nodes: c.nodes}
}

func (c *Cluster) find(name string) (int, bool) {
	return slices.BinarySearchFunc(c.nodes, name, func(n *Node, name string) int { return strings.Compare(n.Name, name) })
}

func (c *Cluster) unshare() {
	if c.shared {
		c.nodes = slices.Clone(c.nodes)
		c.shared = false
	}
}

// SetNode adds a node or takes its new description.
func (c *Cluster) SetNode(n *corev1.Node) {
	c.unshare()
	i, ok := c.find(n.Name)
	if ok {
		c.nodes[i] = c.nodes[i].at(n)
		return
	}
	node := newNode(n)
	for _, p := range c.homeless[n.Name] {
		node = node.with(p)
	}
	delete(c.homeless, n.Name)
	c.nodes = slices.Insert(c.nodes, i, node)
}

// RemoveNode forgets a node; its pods wait for its return, or their own removal.
func (c *Cluster) RemoveNode(name string) {
	i, ok := c.find(name)
	if !ok {
		return
	}
	c.unshare()
	for _, p := range c.nodes[i].Pods {
		c.shelter(name, p)
	}
	c.nodes = slices.Delete(c.nodes, i, i+1)
}

func (c *Cluster) shelter(node string, p *Pod) {
	if c.homeless[node] == nil {
		c.homeless[node] = map[types.UID]*Pod{}
	}
	c.homeless[node][p.UID] = p
}

// SetPod puts a pod on a node, moving or replacing what was known of it.
func (c *Cluster) SetPod(p *Pod, node string) {
	c.RemovePod(p.UID)
	c.where[p.UID] = node
	i, ok := c.find(node)
	if !ok {
		c.shelter(node, p)
		return
	}
	c.unshare()
	c.nodes[i] = c.nodes[i].with(p)
}

// RemovePod takes a pod off its node.
func (c *Cluster) RemovePod(uid types.UID) {
	node, ok := c.where[uid]
	if !ok {
		return
	}
	delete(c.where, uid)
	if i, ok := c.find(node); ok {
		c.unshare()
		c.nodes[i] = c.nodes[i].without(uid)
		return
	}
	delete(c.homeless[node], uid)
	if len(c.homeless[node]) == 0 {
		delete(c.homeless, node)
	}
}

func milli(n int64) *resource.Quantity { return resource.NewMilliQuantity(n, resource.DecimalSI) }
func bytes(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }

// holds tells whether the model has exactly this version of the pod.
func (c *Cluster) holds(p *Pod) bool {
	i, ok := c.find(c.where[p.UID])
	return ok && slices.Contains(c.nodes[i].Pods, p)
}
