// Package policystatus checks the expressions of every ValidatingAdmissionPolicy against the schemas of
// the kinds that it matches, and tells in the policy's status what does not fit.
package policystatus

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/controllers/kit"
)

// New makes the controller; schemas knows the kinds that are served.
func New(deps kit.Deps, schemas resolver.SchemaResolver) kit.Controller {
	c := controller{client: deps.Client, schemas: schemas}
	return kit.Controller{
		Name:      "validatingadmissionpolicy-status",
		Account:   "validatingadmissionpolicy-status-controller",
		Watches:   []kit.Watch{{Kind: &admissionv1.ValidatingAdmissionPolicy{}, Requests: kit.Self}},
		Reconcile: c.reconcile,
		Workers:   1, // a check may unpack a large schema
	}
}

type controller struct {
	client  client.Client
	schemas resolver.SchemaResolver
}

func (c controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var policy admissionv1.ValidatingAdmissionPolicy
	if err := c.client.Get(ctx, req.NamespacedName, &policy); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if policy.Status.ObservedGeneration >= policy.Generation {
		return reconcile.Result{}, nil
	}
	checker := validating.TypeChecker{SchemaResolver: c.schemas, RestMapper: c.client.RESTMapper()}
	changed := policy.DeepCopy()
	changed.Status.ObservedGeneration = policy.Generation
	changed.Status.TypeChecking = &admissionv1.TypeChecking{ExpressionWarnings: checker.Check(&policy)}
	if err := c.client.Status().Update(ctx, changed); err != nil {
		return reconcile.Result{}, fmt.Errorf("tell in its status how ValidatingAdmissionPolicy %s was checked: %w", policy.Name, err)
	}
	return reconcile.Result{}, nil
}
