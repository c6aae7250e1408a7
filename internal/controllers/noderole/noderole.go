// Package noderole gives nodes that are servers the label by which kubectl shows them as
// control plane. Nodes may not give it to themselves (NodeRestriction).
//
// The label is all: servers run pods like every node, so they get no taint. An annotation beside it
// tells that the label is the controller's, so that one which a user set stays.
package noderole

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

const (
	// Label is the role; its value is empty.
	Label = "node-role.kubernetes.io/control-plane"
	// Annotation says that the controller set the label.
	Annotation = "barque.dev/control-plane"

	// period is how often it is asked who the servers are.
	period = 5 * time.Second
	// absence is how long a server has to be gone to lose its role: one that restarts keeps it.
	absence = time.Minute
)

// Servers names the nodes that are servers.
type Servers func(ctx context.Context) ([]string, error)

type controller struct {
	deps    kit.Deps
	servers Servers

	mu sync.Mutex
	// seen is when each server was last named, in this term of leadership.
	seen map[string]time.Time
}

// New makes the controller.
func New(deps kit.Deps, servers Servers) kit.Controller {
	c := &controller{deps: deps, servers: servers}
	return kit.Controller{
		Name:      "node-role",
		Account:   "node-controller",
		Watches:   []kit.Watch{{Kind: &corev1.Node{}, Requests: relabelled}},
		Source:    c.start,
		Workers:   1,
		Reconcile: func(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) { return c.ensure(ctx) },
	}
}

// relabelled is woken by new nodes and by those whose labels change.
func relabelled(e barqueclient.Event) []reconcile.Request {
	if e.New == nil || (e.Old != nil && maps.Equal(e.Old.GetLabels(), e.New.GetLabels())) {
		return nil
	}
	return []reconcile.Request{{}}
}

// start begins a term: nobody was seen yet, and the first request makes the next.
func (c *controller) start(ctx context.Context, enqueue func(reconcile.Request)) error {
	c.mu.Lock()
	c.seen = nil
	c.mu.Unlock()
	enqueue(reconcile.Request{})
	<-ctx.Done()
	return nil
}

func (c *controller) ensure(ctx context.Context) (reconcile.Result, error) {
	names, err := c.servers(ctx)
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("find out who the servers are: %w", err)
	}
	var nodes corev1.NodeList
	if err := kit.Readable(c.deps.Client.List(ctx, &nodes)); err != nil {
		return reconcile.Result{}, fmt.Errorf("list nodes: %w", err)
	}
	now := c.deps.Clock.Now()
	seen := c.note(names, nodes.Items, now)
	var failures []error
	for i := range nodes.Items {
		node := &nodes.Items[i]
		after := decide(node, slices.Contains(names, node.Name), now.Sub(seen[node.Name]) > absence)
		if after == nil {
			continue
		}
		if err := c.deps.Client.Patch(ctx, after, client.MergeFrom(node)); err != nil && !apierrors.IsNotFound(err) {
			failures = append(failures, fmt.Errorf("set role of node %s: %w", node.Name, err))
		}
	}
	return reconcile.Result{RequeueAfter: period}, errors.Join(failures...)
}

// note remembers who was named when, and returns that. A node that has the role, and was never asked about, may just have restarted.
func (c *controller) note(names []string, nodes []corev1.Node, now time.Time) map[string]time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := make(map[string]time.Time, len(nodes))
	for i := range nodes {
		name := nodes[i].Name
		last, known := c.seen[name]
		if !known || slices.Contains(names, name) {
			last = now
		}
		seen[name] = last
	}
	c.seen = seen
	return seen
}

// decide returns the node with the role that it should have, or nil if it has it. gone says that it has not been a
// server for long enough.
func decide(node *corev1.Node, server, gone bool) *corev1.Node {
	_, labelled := node.Labels[Label]
	_, ours := node.Annotations[Annotation]
	switch {
	case server && !labelled:
		after := node.DeepCopy()
		metav1.SetMetaDataLabel(&after.ObjectMeta, Label, "")
		metav1.SetMetaDataAnnotation(&after.ObjectMeta, Annotation, "server")
		return after
	case !server && gone && ours:
		after := node.DeepCopy()
		delete(after.Labels, Label)
		delete(after.Annotations, Annotation)
		return after
	}
	return nil
}
