package scheduler

import (
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Snapshot is the cluster at one moment: its nodes by name, and the labels of its namespaces. It is
// immutable.
type Snapshot struct {
	Nodes      []*Node
	Namespaces map[string]labels.Set
	// choosy is how many nodes have pods with terms about other pods.
	choosy int
}

// Cluster is the scheduler's model of nodes and the pods on them. It is not safe for
// concurrent use; the snapshots that it hands out are.
type Cluster struct {
	nodes  []*Node // by name
	shared bool    // a snapshot has nodes: copy it before the next change
	choosy int     // how many of them have pods with terms about other pods
	// namespaces are their labels; a snapshot has them if lent: copy before the next change.
	namespaces map[string]labels.Set
	lent       bool
	where      map[types.UID]string
	// homeless are pods on nodes that are not known (yet).
	homeless map[string]map[types.UID]*Pod
	// nominated are pods without a node that a node was nominated for, whether it is known or not.
	nominated map[types.UID]*Pod
}

// NewCluster returns an empty model.
func NewCluster() *Cluster {
	return &Cluster{namespaces: map[string]labels.Set{}, where: map[types.UID]string{}, homeless: map[string]map[types.UID]*Pod{}, nominated: map[types.UID]*Pod{}}
}

// Snapshot returns the state as it is now, in constant time.
func (c *Cluster) Snapshot() Snapshot {
	c.shared, c.lent = true, true
	return Snapshot{Nodes: c.nodes, Namespaces: c.namespaces, choosy: c.choosy}
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

// replace puts a new version of a node in its place.
func (c *Cluster) replace(i int, n *Node) {
	c.unshare()
	c.choosy += picky(n) - picky(c.nodes[i])
	c.nodes[i] = n
}

// picky is 1 of a node that has pods with terms about other pods, 0 of another.
func picky(n *Node) int { return min(len(n.choosy), 1) }

// SetNamespace takes a namespace's labels.
func (c *Cluster) SetNamespace(name string, set labels.Set) {
	c.ownNamespaces()
	c.namespaces[name] = set
}

// RemoveNamespace forgets a namespace.
func (c *Cluster) RemoveNamespace(name string) {
	c.ownNamespaces()
	delete(c.namespaces, name)
}

func (c *Cluster) ownNamespaces() {
	if c.lent {
		c.namespaces, c.lent = maps.Clone(c.namespaces), false
	}
}

// SetNode adds a node or takes its new description.
func (c *Cluster) SetNode(n *corev1.Node) {
	i, ok := c.find(n.Name)
	if ok {
		c.replace(i, c.nodes[i].at(n))
		return
	}
	node := newNode(n)
	for _, p := range c.homeless[n.Name] {
		node = node.with(p)
	}
	delete(c.homeless, n.Name)
	for _, p := range c.nominated {
		if p.Nominated == n.Name {
			node = node.nominating(p, true)
		}
	}
	c.unshare()
	c.choosy += picky(node)
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
	c.choosy -= picky(c.nodes[i])
	c.nodes = slices.Delete(c.nodes, i, i+1)
}

func (c *Cluster) shelter(node string, p *Pod) {
	if c.homeless[node] == nil {
		c.homeless[node] = map[types.UID]*Pod{}
	}
	c.homeless[node][p.UID] = p
}

// SetPod puts a pod on a node, moving or replacing what was known of it. Its nomination is over.
func (c *Cluster) SetPod(p *Pod, node string) {
	c.RemovePod(p.UID)
	c.where[p.UID] = node
	i, ok := c.find(node)
	if !ok {
		c.shelter(node, p)
		return
	}
	c.replace(i, c.nodes[i].with(p))
}

// RemovePod forgets a pod: it is on no node, nor nominated to one.
func (c *Cluster) RemovePod(uid types.UID) {
	c.Renounce(uid)
	node, ok := c.where[uid]
	if !ok {
		return
	}
	delete(c.where, uid)
	if i, ok := c.find(node); ok {
		c.replace(i, c.nodes[i].without(uid))
		return
	}
	delete(c.homeless[node], uid)
	if len(c.homeless[node]) == 0 {
		delete(c.homeless, node)
	}
}

// Nominate has the room that p needs on p.Nominated counted as taken in decisions on pods that are
// not above it. p has no node.
func (c *Cluster) Nominate(p *Pod) {
	c.Renounce(p.UID)
	if p.Nominated == "" {
		return
	}
	c.nominated[p.UID] = p
	if i, ok := c.find(p.Nominated); ok {
		c.replace(i, c.nodes[i].nominating(p, true))
	}
}

// Renounce ends a pod's nomination, if it has one.
func (c *Cluster) Renounce(uid types.UID) {
	p := c.nominated[uid]
	if p == nil {
		return
	}
	delete(c.nominated, uid)
	if i, ok := c.find(p.Nominated); ok {
		c.replace(i, c.nodes[i].nominating(p, false))
	}
}

// Nomination is the node that the pod is nominated to; empty when none.
func (c *Cluster) Nomination(uid types.UID) string {
	if p := c.nominated[uid]; p != nil {
		return p.Nominated
	}
	return ""
}

func milli(n int64) *resource.Quantity { return resource.NewMilliQuantity(n, resource.DecimalSI) }
func bytes(n int64) *resource.Quantity { return resource.NewQuantity(n, resource.BinarySI) }

// holds tells whether the model has exactly this version of the pod.
func (c *Cluster) holds(p *Pod) bool {
	i, ok := c.find(c.where[p.UID])
	return ok && slices.Contains(c.nodes[i].Pods, p)
}
