// Package endpointslicemirroring copies Endpoints that somebody wrote by hand, for a service
// without selector, into EndpointSlices, since those alone are what proxies and DNS read
// (KEP-0752). An object is left alone if its label says so or if it is a lock of leader
// election.
//
//lint:file-ignore SA1019 Endpoints is deprecated by upstream, and served all the same.
package endpointslicemirroring

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

const (
	// managedBy marks the slices that are this controller's, as stock marks its own.
	managedBy = "endpointslicemirroring-controller.k8s.io"
	// leaderAnnotation is on Endpoints that are locks (client-go's resourcelock).
	leaderAnnotation = "control-plane.alpha.kubernetes.io/leader"
)

type controller struct{ deps kit.Deps }

// New makes the controller. Its requests are names of Endpoints, which are those of services.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps}
	return kit.Controller{
		Name: "endpointslicemirroring",
		Watches: []kit.Watch{
			{Kind: &corev1.Endpoints{}, Requests: kit.Self},
			{Kind: &corev1.Service{}, Requests: kit.Self},
			{Kind: &discoveryv1.EndpointSlice{}, Requests: fromSlice},
		},
		Reconcile: c.reconcile,
	}
}

// fromSlice mends what somebody else did to a slice.
func fromSlice(e barqueclient.Event) []reconcile.Request {
	labels := e.Object().GetLabels()
	if labels[discoveryv1.LabelManagedBy] != managedBy || labels[discoveryv1.LabelServiceName] == "" {
		return nil
	}
	return []reconcile.Request{{NamespacedName: client.ObjectKey{
		Namespace: e.Object().GetNamespace(), Name: labels[discoveryv1.LabelServiceName],
	}}}
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var endpoints corev1.Endpoints
	mirror, err := c.mirrored(ctx, req.NamespacedName, &endpoints)
	if err != nil {
		return reconcile.Result{}, err
	}
	var have discoveryv1.EndpointSliceList
	err = c.deps.Client.List(ctx, &have, client.InNamespace(req.Namespace), client.MatchingLabels{
		discoveryv1.LabelServiceName: req.Name, discoveryv1.LabelManagedBy: managedBy,
	})
	if err != nil {
		return reconcile.Result{}, err
	}
	var want []*discoveryv1.EndpointSlice
	if mirror {
		want = desired(&endpoints)
	}
	return reconcile.Result{}, c.apply(ctx, req, decide(want, have.Items))
}

// mirrored tells whether there are Endpoints to copy, and reads them.
func (c *controller) mirrored(ctx context.Context, key client.ObjectKey, e *corev1.Endpoints) (bool, error) {
	if err := c.deps.Client.Get(ctx, key, e); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	if e.DeletionTimestamp != nil || !wanted(e) {
		return false, nil
	}
	var s corev1.Service
	if err := c.deps.Client.Get(ctx, key, &s); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return s.Spec.Selector == nil, nil
}

func wanted(e *corev1.Endpoints) bool {
	_, lock := e.Annotations[leaderAnnotation]
	return !lock && e.Labels[discoveryv1.LabelSkipMirror] != "true"
}

// apply writes the plan: additions before removals, so that no endpoint is missing meanwhile.
func (c *controller) apply(ctx context.Context, req reconcile.Request, p plan) error {
	var errs []error
	for _, slice := range p.create {
		err := c.deps.Client.Create(ctx, slice)
		if apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause) {
			return nil
		}
		errs = append(errs, err)
	}
	for _, slice := range p.update {
		errs = append(errs, c.deps.Client.Update(ctx, slice))
	}
	for _, slice := range p.remove {
		errs = append(errs, client.IgnoreNotFound(c.deps.Client.Delete(ctx, slice)))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("mirror Endpoints %s: %w", req.NamespacedName, err)
	}
	return nil
}
