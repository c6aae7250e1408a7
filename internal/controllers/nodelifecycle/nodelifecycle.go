// Package nodelifecycle watches over nodes: it notices which are silent, says so in their
// conditions and taints, and declares lost those whose machine is gone.
//
// Two speeds. The stock one: a node that renews neither its lease nor its status for the grace
// period (40 s by default) is Unknown, is tainted unreachable, and its pods leave after the tolerations that they carry
// (300 s by default). The fast one (ADR 0001): every agent also holds a connection to every
// server. When it is silent, the servers are asked; when none of them reaches the machine, and
// a cut-off agent has had the time to stop what must not run twice, the node is lost: it gets
// the out-of-service taint, whose stock meaning is that its pods may be replaced at once, those
// of StatefulSets too (KEP-2268).
package nodelifecycle

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/cluster/liveness"
	"barque.dev/internal/controllers/kit"
	"barque.dev/internal/controllers/pods"
)

// Witness knows of nodes what the API does not; *liveness.Tracker is one.
type Witness interface {
	// LastHeard is when this server last heard the node; zero for never.
	LastHeard(node string) time.Time
	// Connected tells whether the node's agent holds a connection to this server now.
	Connected(node string) bool
	// Knock tells what becomes of a connection attempt, within a bound of its own.
	Knock(ctx context.Context, addr netip.AddrPort) liveness.Reply
	// Ask collects what every server knows.
	Ask(ctx context.Context, node string, addr netip.AddrPort) liveness.Opinion
	// Notify sets what is called when a node's connection ends or begins.
	Notify(func(node string))
}

type controller struct {
	deps     kit.Deps
	witness  Witness
	bounds   Bounds
	recorder record.EventRecorder

	mu    sync.Mutex
	signs map[string]sign
	began time.Time // of this term: nobody is silent for longer than we listen; zero before
}

// sign is a node's last sign of life in the API, and when this server saw it: clocks of
// different machines are never compared.
type sign struct {
	value string
	at    time.Time
}

// New makes the controller.
func New(deps kit.Deps, witness Witness, bounds Bounds) kit.Controller {
	c := &controller{
		deps: deps, witness: witness, bounds: bounds, recorder: deps.Recorder("node-controller"),
		signs: map[string]sign{},
	}
	return kit.Controller{
		Name:    "node-lifecycle",
		Account: "node-controller",
		Watches: []kit.Watch{
			{Kind: &corev1.Node{}, Requests: kit.Self},
			{Kind: &coordinationv1.Lease{}, Requests: c.leaseChanged},
		},
		Source: func(ctx context.Context, enqueue func(reconcile.Request)) error {
			c.begin()
			witness.Notify(func(node string) {
				enqueue(reconcile.Request{NamespacedName: types.NamespacedName{Name: node}})
			})
			<-ctx.Done()
			witness.Notify(nil)
			c.end()
			return nil
		},
		Reconcile: c.reconcile,
		Workers:   8,
	}
}

// leaseChanged notes a renewal. A node that had been silent is looked at; the renewals of
// healthy ones need no work.
func (c *controller) leaseChanged(e barqueclient.Event) []reconcile.Request {
	lease, ok := e.New.(*coordinationv1.Lease)
	if !ok || lease.Namespace != corev1.NamespaceNodeLease || lease.Spec.RenewTime == nil {
		return nil
	}
	before := c.note(lease.Name, "lease "+lease.Spec.RenewTime.String())
	if before < c.bounds.Grace/2 {
		return nil
	}
	return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: lease.Name}}}
}

// note records a sign of life and returns how long the node had been silent.
func (c *controller) note(node, value string) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.deps.Clock.Now()
	old, known := c.signs[node]
	if known && old.value == value {
		return now.Sub(old.at)
	}
	c.signs[node] = sign{value, now}
	if !known {
		return 0
	}
	return now.Sub(old.at)
}

func (c *controller) silence(node string, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.began.IsZero() {
		return 0
	}
	last := c.began
	if s, ok := c.signs[node]; ok {
		last = s.at
	}
	if heard := c.witness.LastHeard(node); heard.After(last) {
		last = heard
	}
	return now.Sub(last)
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var node corev1.Node
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &node); err != nil {
		if client.IgnoreNotFound(err) == nil {
			c.forget(req.Name)
		}
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	now := c.deps.Clock.Now()
	e, err := c.collect(ctx, &node, now)
	if err != nil {
		return reconcile.Result{}, err
	}
	v := judge(e)
	if err := c.apply(ctx, &node, v, now); err != nil {
		return reconcile.Result{}, err
	}
	return reconcile.Result{RequeueAfter: c.lookAgain(e, v)}, nil
}

// patience is how often a node is looked at without a reason.
const patience = 5 * time.Second

// lookAgain is when to look at the node again, if nothing happens before.
func (c *controller) lookAgain(e evidence, v verdict) time.Duration {
	switch {
	case v == suspect, v == alive && !e.connected && e.opinion == nil:
		return max(recheck, askAfter(c.bounds.Fence)-e.leaseSilence)
	case v != alive:
		return patience
	}
	return min(c.bounds.Grace-e.leaseSilence, patience)
}

// begin starts a term: what was noted in an earlier one says nothing about the time between.
func (c *controller) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = c.deps.Clock.Now()
	for name, s := range c.signs {
		s.at = c.began
		c.signs[name] = s
	}
}

// end forgets when the term began, so that nobody is judged in the next one before that begins.
func (c *controller) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.began = time.Time{}
}

func (c *controller) forget(node string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.signs, node)
}

// collect gathers the evidence; other servers are asked only about a suspect.
func (c *controller) collect(ctx context.Context, node *corev1.Node, now time.Time) (evidence, error) {
	e := evidence{
		leaseSilence: c.silence(node.Name, now), bounds: c.bounds,
		connected: c.witness.Connected(node.Name), connectedOnce: !c.witness.LastHeard(node.Name).IsZero(),
	}
	addr, known := agentAddress(node)
	if known && e.connectedOnce && !e.connected {
		e.refused = c.witness.Knock(ctx, addr) == liveness.Refused
	}
	if e.leaseSilence < askAfter(c.bounds.Fence) {
		return e, nil
	}
	var nodes corev1.NodeList
	if err := kit.Readable(c.deps.Client.List(ctx, &nodes)); err != nil {
		return e, err
	}
	e.nodes = len(nodes.Items)
	for i := range nodes.Items {
		if c.silence(nodes.Items[i].Name, now) >= suspectAfter {
			e.silentNodes++
		}
	}
	if known {
		opinion := c.witness.Ask(ctx, node.Name, addr)
		e.opinion = &opinion
		// This server may have come too late to hear it, another not.
		e.connectedOnce = e.connectedOnce || opinion.Silence >= 0
		// It may have been heard meanwhile, and else was silent for longer by now.
		e.leaseSilence = c.silence(node.Name, c.deps.Clock.Now())
	}
	return e, nil
}

// agentAddress is where the node's agent listens.
func agentAddress(n *corev1.Node) (netip.AddrPort, bool) {
	for _, a := range n.Status.Addresses {
		if ip, err := netip.ParseAddr(a.Address); err == nil && a.Type == corev1.NodeInternalIP {
			port := n.Status.DaemonEndpoints.KubeletEndpoint.Port
			return netip.AddrPortFrom(ip, uint16(port)), port != 0
		}
	}
	return netip.AddrPort{}, false
}

// apply writes the verdict: conditions, then taints, then the pods' readiness.
func (c *controller) apply(ctx context.Context, node *corev1.Node, v verdict, now time.Time) error {
	current := node
	if v == unknown || v == lost {
		changed := node.DeepCopy()
		if unknownConditions(&changed.Status, metav1.NewTime(now)) {
			// The whole list of conditions is replaced: a node that has just spoken must not be made silent.
			err := c.deps.Client.Status().Patch(ctx, changed, client.MergeFromWithOptions(node, client.MergeFromWithOptimisticLock{}))
			if apierrors.IsNotFound(err) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("mark node %s as unknown: %w", node.Name, err)
			}
			c.deps.Log.Warn("node is silent", "node", node.Name, "lost", v == lost)
			c.recorder.Event(node, corev1.EventTypeNormal, "NodeNotReady", "Node "+node.Name+" status is now: NodeNotReady")
			current = changed
		}
	}
	if err := c.applyTaints(ctx, current, v, metav1.NewTime(now)); err != nil {
		return err
	}
	if isReady(current) || readiness(current) == "" {
		return nil
	}
	return c.markPods(ctx, node.Name, metav1.NewTime(now))
}

func (c *controller) applyTaints(ctx context.Context, node *corev1.Node, v verdict, now metav1.Time) error {
	changed := node.DeepCopy()
	changed.Spec.Taints = desiredTaints(node, v, now)
	switch {
	case v == lost && node.Annotations[LostAnnotation] == "":
		metav1.SetMetaDataAnnotation(&changed.ObjectMeta, LostAnnotation, now.UTC().Format(time.RFC3339))
		c.deps.Log.Warn("node is lost; its pods are replaced", "node", node.Name)
		c.recorder.Event(node, corev1.EventTypeWarning, "NodeLost", "No server reaches node "+node.Name+": its pods are replaced")
	case v == alive && isReady(node) && node.Annotations[LostAnnotation] != "":
		delete(changed.Annotations, LostAnnotation)
		c.deps.Log.Info("node is back", "node", node.Name)
	}
	if equality.Semantic.DeepEqual(changed.Spec.Taints, node.Spec.Taints) && equality.Semantic.DeepEqual(changed.Annotations, node.Annotations) {
		return nil
	}
	// The whole list of taints is replaced, so it must be the one that was read.
	patch := client.MergeFromWithOptions(node, client.MergeFromWithOptimisticLock{})
	if err := c.deps.Client.Patch(ctx, changed, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("taint node %s: %w", node.Name, err)
	}
	return nil
}

// markPods says of a silent node's pods that they are not ready, so that services leave them
// out.
func (c *controller) markPods(ctx context.Context, node string, now metav1.Time) error {
	var list corev1.PodList
	if err := kit.Readable(c.deps.Client.List(ctx, &list, client.MatchingFields{"spec.nodeName": node})); err != nil {
		return err
	}
	var errs []error
	for i := range list.Items {
		p := &list.Items[i]
		if !pods.Ready(p) || pods.Terminal(p) {
			continue
		}
		changed := p.DeepCopy()
		j := slices.IndexFunc(changed.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
		cond := &changed.Status.Conditions[j]
		cond.Status, cond.Reason, cond.LastTransitionTime = corev1.ConditionFalse, "NodeNotReady", now
		if err := c.deps.Client.Status().Patch(ctx, changed, barqueclient.PatchSame(p)); barqueclient.IgnoreGone(err) != nil {
			errs = append(errs, fmt.Errorf("mark pod %s/%s as not ready: %w", p.Namespace, p.Name, err))
		}
	}
	return errors.Join(errs...)
}
