// Package endpointslice publishes the pods behind each service as EndpointSlices, from which
// proxies and DNS on every node work.
//
// A slice holds up to 100 endpoints with the same ports. An endpoint stays in the slice it is
// in, so that one pod's change is one slice's write.
package endpointslice

import (
	"context"
	"errors"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/backends"
	"barque.dev/internal/controllers/kit"
)

// managedBy marks the slices that are this controller's, as stock marks its own.
const managedBy = "endpointslice-controller.k8s.io"

type controller struct{ deps kit.Deps }

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps}
	return kit.Controller{
		Name: "endpointslice",
		Watches: backends.Watches(deps, &discoveryv1.EndpointSlice{}, func(obj client.Object) string {
			if obj.GetLabels()[discoveryv1.LabelManagedBy] != managedBy {
				return ""
			}
			return obj.GetLabels()[discoveryv1.LabelServiceName]
		}),
		Reconcile: c.reconcile,
	}
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var s corev1.Service
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &s); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err) // its slices go with it
	}
	if s.DeletionTimestamp != nil {
		return reconcile.Result{}, nil
	}
	var slices discoveryv1.EndpointSliceList
	err := c.deps.Client.List(ctx, &slices, client.InNamespace(s.Namespace), client.MatchingLabels{
		discoveryv1.LabelServiceName: s.Name, discoveryv1.LabelManagedBy: managedBy,
	})
	if err != nil {
		return reconcile.Result{}, err
	}
	var want plan
	if backends.Managed(&s) {
		pods, err := backends.Pods(ctx, c.deps.Client, &s)
		if err != nil {
			return reconcile.Result{}, err
		}
		zones, err := c.zones(ctx)
		if err != nil {
			return reconcile.Result{}, err
		}
		for _, family := range s.Spec.IPFamilies {
			want.add(decide(&s, family, backends.Of(&s, pods, family), zones, slices.Items))
		}
	} else {
		for i := range slices.Items {
			want.remove = append(want.remove, &slices.Items[i])
		}
	}
	return reconcile.Result{}, c.apply(ctx, &s, want)
}

// zones maps nodes to their zones.
func (c *controller) zones(ctx context.Context) (map[string]string, error) {
	var nodes corev1.NodeList
	if err := kit.Readable(c.deps.Client.List(ctx, &nodes)); err != nil {
		return nil, err
	}
	zones := map[string]string{}
	for i := range nodes.Items {
		if zone := nodes.Items[i].Labels[corev1.LabelTopologyZone]; zone != "" {
			zones[nodes.Items[i].Name] = zone
		}
	}
	return zones, nil
}

// apply writes the plan: additions before removals, so that no endpoint is missing meanwhile.
func (c *controller) apply(ctx context.Context, s *corev1.Service, p plan) error {
	var errs []error
	for _, slice := range p.create {
		if err := c.deps.Client.Create(ctx, slice); err != nil {
			errs = append(errs, fmt.Errorf("create a slice of service %s/%s: %w", s.Namespace, s.Name, err))
		}
	}
	for _, slice := range p.update {
		if err := c.deps.Client.Update(ctx, slice); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("update slice %s/%s: %w", slice.Namespace, slice.Name, err))
		}
	}
	for _, slice := range p.remove {
		if err := c.deps.Client.Delete(ctx, slice.DeepCopy()); client.IgnoreNotFound(err) != nil {
			errs = append(errs, fmt.Errorf("delete slice %s/%s: %w", slice.Namespace, slice.Name, err))
		}
	}
	return errors.Join(errs...)
}
