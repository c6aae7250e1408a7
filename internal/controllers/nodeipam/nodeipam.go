// Package nodeipam gives every node its range of pod addresses out of the cluster's.
package nodeipam

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

// NodeBits is the length of a node's IPv4 prefix: 254 pods and the bridge.
const NodeBits = 24

type controller struct {
	deps     kit.Deps
	cluster  netip.Prefix
	recorder record.EventRecorder
}

// New makes the controller; cluster is the range that nodes' ranges are cut from.
func New(deps kit.Deps, cluster netip.Prefix) kit.Controller {
	c := &controller{deps: deps, cluster: cluster, recorder: deps.Recorder("cidrAllocator")}
	return kit.Controller{
		Name:      "node-ipam",
		Account:   "node-controller",
		Watches:   []kit.Watch{{Kind: &corev1.Node{}, Requests: kit.Self}},
		Reconcile: c.reconcile,
		Workers:   1, // one at a time, so that no range is given twice
	}
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var node corev1.Node
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if len(node.Spec.PodCIDRs) > 0 || node.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	var nodes corev1.NodeList
	if err := c.deps.Client.List(ctx, &nodes); err != nil {
		return reconcile.Result{}, err
	}
	var used []netip.Prefix
	for i := range nodes.Items {
		for _, s := range nodes.Items[i].Spec.PodCIDRs {
			if p, err := netip.ParsePrefix(s); err == nil {
				used = append(used, p)
			}
		}
	}
	free, ok := firstFree(c.cluster, NodeBits, used)
	if !ok {
		c.recorder.Event(&node, corev1.EventTypeWarning, "CIDRNotAvailable", "the cluster's range "+c.cluster.String()+" has no room for another node")
		return reconcile.Result{}, reconcile.TerminalError(fmt.Errorf("node %s: no /%d is free in %s", node.Name, NodeBits, c.cluster))
	}
	changed := node.DeepCopy()
	changed.Spec.PodCIDR = free.String()
	changed.Spec.PodCIDRs = []string{free.String()}
	if err := c.deps.Client.Patch(ctx, changed, client.MergeFromWithOptions(&node, client.MergeFromWithOptimisticLock{})); err != nil {
		return reconcile.Result{}, fmt.Errorf("give node %s the range %s: %w", node.Name, free, err)
	}
	return reconcile.Result{}, nil
}

// firstFree is the first prefix of the given length in cluster that overlaps none of used.
func firstFree(cluster netip.Prefix, bits int, used []netip.Prefix) (netip.Prefix, bool) {
	// Nearly all have the length that is wanted: those are looked up, so that the ten-thousandth
	// node costs no more than ten thousand steps.
	same := make(map[netip.Prefix]bool, len(used))
	var others []netip.Prefix
	for _, u := range used {
		if u.Bits() == bits {
			same[u.Masked()] = true
		} else {
			others = append(others, u)
		}
	}
	for p := netip.PrefixFrom(cluster.Masked().Addr(), bits); p.IsValid() && cluster.Contains(p.Addr()); {
		if !same[p] && !slices.ContainsFunc(others, p.Overlaps) {
			return p, true
		}
		next, ok := after(p)
		if !ok {
			break
		}
		p = next
	}
	return netip.Prefix{}, false
}

// after is the prefix of the same length that follows p.
func after(p netip.Prefix) (netip.Prefix, bool) {
	raw := p.Addr().AsSlice()
	bit := p.Bits() - 1
	for i := bit / 8; i >= 0; i-- {
		step := byte(1)
		if i == bit/8 {
			step = 1 << (7 - bit%8)
		}
		raw[i] += step
		if raw[i] >= step {
			addr, ok := netip.AddrFromSlice(raw)
			return netip.PrefixFrom(addr, p.Bits()), ok
		}
	}
	return netip.Prefix{}, false
}
