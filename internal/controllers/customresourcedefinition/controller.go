// Package customresourcedefinition accepts the names of CustomResourceDefinitions, tells in their conditions what is to be
// told about them, and empties those that are being deleted. Serving custom resources is every server's own business
// (apiserver/custom); what is written about definitions is the leader's.
package customresourcedefinition

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/sets"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// again is how soon a definition is looked at again whose custom resources are not all gone.
const again = 200 * time.Millisecond

type controller struct{ deps kit.Deps }

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps}
	return kit.Controller{
		Name:      "customresourcedefinition",
		Watches:   []kit.Watch{{Kind: &apiextensionsv1.CustomResourceDefinition{}, Requests: c.requests}},
		Reconcile: c.reconcile,
		Workers:   1, // names are given to one definition at a time
	}
}

// requests asks for the definition that changed and, when it gave up names, for those of its group that may have
// waited for them.
func (c *controller) requests(e barqueclient.Event) []reconcile.Request {
	out := kit.Self(e)
	old, ok := e.Old.(*apiextensionsv1.CustomResourceDefinition)
	if !ok {
		return out
	}
	if crd, ok := e.New.(*apiextensionsv1.CustomResourceDefinition); ok && apiequality.Semantic.DeepEqual(old.Status.AcceptedNames, crd.Status.AcceptedNames) {
		return out
	}
	all, err := c.group(context.Background(), old.Spec.Group)
	if err != nil {
		c.deps.Log.Error("definitions that may have waited for names are not looked at", "definition", old.Name, "error", err)
		return out
	}
	for i := range all {
		if all[i].Name != old.Name {
			out = append(out, kit.RequestFor(&all[i]))
		}
	}
	return out
}

// group lists the definitions of a group.
func (c *controller) group(ctx context.Context, group string) ([]apiextensionsv1.CustomResourceDefinition, error) {
	var list apiextensionsv1.CustomResourceDefinitionList
	if err := c.deps.Client.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list definitions: %w", err)
	}
	var out []apiextensionsv1.CustomResourceDefinition
	for _, crd := range list.Items {
		if crd.Spec.Group == group {
			out = append(out, crd)
		}
	}
	return out, nil
}

// builtin are the resources of a group that no definition makes.
func (c *controller) builtin(group string) []*api.Resource {
	var out []*api.Resource
	for _, r := range c.deps.Kinds.Resources() {
		if r.Group == group && r.Custom == nil {
			out = append(out, r)
		}
	}
	return out
}

// served is the resource of a definition's plural, as it is served here; nil if it is not.
func (c *controller) served(crd *apiextensionsv1.CustomResourceDefinition) *api.Resource {
	for _, r := range c.deps.Kinds.Resources() {
		if r.Group == crd.Spec.Group && r.Resource == crd.Status.AcceptedNames.Plural {
			return r
		}
	}
	return nil
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var crd apiextensionsv1.CustomResourceDefinition
	if err := c.deps.Client.Get(ctx, req.NamespacedName, &crd); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if crd.DeletionTimestamp != nil {
		return c.finalize(ctx, crd.DeepCopy())
	}
	group, err := c.group(ctx, crd.Spec.Group)
	if err != nil {
		return reconcile.Result{}, err
	}
	next := crd.DeepCopy()
	accept(next, group, c.builtin(crd.Spec.Group))
	describe(next)
	return reconcile.Result{}, c.report(ctx, next, &crd)
}

// report writes a definition's status if it is another than it was.
func (c *controller) report(ctx context.Context, crd, was *apiextensionsv1.CustomResourceDefinition) error {
	stamp(crd, was, metav1.NewTime(c.deps.Clock.Now()))
	if apiequality.Semantic.DeepEqual(was.Status, crd.Status) {
		return nil
	}
	if err := c.deps.Client.Status().Update(ctx, crd); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("status of definition %s: %w", crd.Name, err)
	}
	return nil
}

// finalize deletes the custom resources of a definition that is being deleted, and lets it go when there are none.
func (c *controller) finalize(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) (reconcile.Result, error) {
	if !apihelpers.CRDHasFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer) {
		return reconcile.Result{}, nil
	}
	was := crd.DeepCopy()
	left, err := 0, error(nil)
	outcome := apiextensionsv1.CustomResourceDefinitionCondition{Type: apiextensionsv1.Terminating, Status: apiextensionsv1.ConditionFalse}
	if apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
		left, err = c.empty(ctx, crd)
		outcome.Reason, outcome.Message = "InstanceDeletionCompleted", "removed all instances"
	} else {
		outcome.Reason, outcome.Message = "NeverEstablished", "resource was never established"
	}
	switch {
	case err != nil:
		outcome.Status, outcome.Reason = apiextensionsv1.ConditionTrue, "InstanceDeletionFailed"
		outcome.Message = fmt.Sprintf("could not delete all custom resources: %v", err)
	case left > 0:
		outcome.Status, outcome.Reason = apiextensionsv1.ConditionTrue, "InstanceDeletionInProgress"
		outcome.Message = "CustomResource deletion is in progress"
	}
	apihelpers.SetCRDCondition(crd, outcome)
	if reported := c.report(ctx, crd, was); reported != nil {
		return reconcile.Result{}, reported
	}
	switch {
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("empty definition %s: %w", crd.Name, err)
	case left > 0:
		return reconcile.Result{RequeueAfter: again}, nil
	}
	before := crd.DeepCopy()
	apihelpers.CRDRemoveFinalizer(crd, apiextensionsv1.CustomResourceCleanupFinalizer)
	if err := c.deps.Client.Patch(ctx, crd, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})); client.IgnoreNotFound(err) != nil {
		return reconcile.Result{}, fmt.Errorf("let definition %s go: %w", crd.Name, err)
	}
	return reconcile.Result{}, nil
}

// empty asks for the deletion of all custom resources of a definition, and tells how many are left. What a client acts on it
// finds by kind: that is the definition's own only where the definition is what is served. A definition with the name of a
// built-in resource, which could once be established, never had objects; one with the kind of another resource may have
// some that nobody can reach.
func (c *controller) empty(ctx context.Context, crd *apiextensionsv1.CustomResourceDefinition) (int, error) {
	kind := schema.GroupVersionKind{Group: crd.Spec.Group, Kind: crd.Status.AcceptedNames.Kind}
	switch served := c.served(crd); {
	case served != nil && served.Custom == nil:
		return 0, nil
	case served == nil || served.Kind != kind.Kind:
		return 0, fmt.Errorf("%s of kind %s is not served here", crd.Name, kind.Kind)
	default:
		kind.Version = served.Kept.Version
	}
	if err := c.deps.CatchUp(ctx); err != nil {
		return 0, err
	}
	objs, err := c.instances(ctx, kind)
	if err != nil {
		return 0, err
	}
	namespaces := sets.New[string]()
	for _, obj := range objs {
		namespaces.Insert(obj.Namespace)
	}
	sample := &metav1.PartialObjectMetadata{}
	sample.SetGroupVersionKind(kind)
	for namespace := range namespaces {
		if err := c.deps.Client.DeleteAllOf(ctx, sample, client.InNamespace(namespace)); client.IgnoreNotFound(err) != nil {
			return len(objs), err
		}
	}
	if len(objs) > 0 {
		objs, err = c.instances(ctx, kind)
	}
	return len(objs), err
}

func (c *controller) instances(ctx context.Context, kind schema.GroupVersionKind) ([]metav1.PartialObjectMetadata, error) {
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
	if err := c.deps.Client.List(ctx, list); meta.IsNoMatchError(err) {
		return nil, fmt.Errorf("%s is not served here: %w", kind, err)
	} else if err != nil {
		return nil, err
	}
	return list.Items, nil
}
