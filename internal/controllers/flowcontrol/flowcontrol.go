// Package flowcontrol keeps the objects by which priority and fairness is configured (KEP-1040): it makes stock's
// mandatory and suggested FlowSchemas and PriorityLevelConfigurations, keeps them as they should be unless somebody has
// taken them over, and tells in the status of each FlowSchema whether the level that it names exists. Serving by them is
// every server's business: internal/apiserver/fairness.
package flowcontrol

import (
	"context"
	"fmt"
	"strconv"

	flowcontrolv1 "k8s.io/api/flowcontrol/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/apis/flowcontrol/bootstrap"
	"k8s.io/apiserver/pkg/util/apihelpers"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// Who writes the objects, and their statuses, in managed fields.
const (
	producer = client.FieldOwner("api-priority-and-fairness-config-producer-v1")
	consumer = client.FieldOwner("api-priority-and-fairness-config-consumer-v1")
)

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	c := controller{deps.Client, deps.Clock}
	// The objects refer to each other, and are few: whatever changes, all are looked after.
	all := reconcile.Request{NamespacedName: types.NamespacedName{Name: "all"}}
	requests := func(barqueclient.Event) []reconcile.Request { return []reconcile.Request{all} }
	return kit.Controller{
		Name: "api-priority-and-fairness",
		Watches: []kit.Watch{
			{Kind: &flowcontrolv1.PriorityLevelConfiguration{}, Requests: requests},
			{Kind: &flowcontrolv1.FlowSchema{}, Requests: requests},
		},
		Source: func(ctx context.Context, enqueue func(reconcile.Request)) error {
			enqueue(all) // in the beginning there is nothing that could change
			<-ctx.Done()
			return nil
		},
		Reconcile: c.reconcile,
		Workers:   1,
	}
}

type controller struct {
	client client.Client
	clock  clock.PassiveClock
}

func (c controller) reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	// Levels come before the schemas that name them, and what is only suggested before what must be there, as stock has
	// it: while something is missing, servers imagine what must be there.
	keepers := []func(context.Context) error{
		func(ctx context.Context) error {
			return keep(ctx, c.client, levelKind(), bootstrap.SuggestedPriorityLevelConfigurations, false)
		},
		func(ctx context.Context) error {
			return keep(ctx, c.client, schemaKind(), bootstrap.SuggestedFlowSchemas, false)
		},
		func(ctx context.Context) error {
			return keep(ctx, c.client, levelKind(), bootstrap.MandatoryPriorityLevelConfigurations, true)
		},
		func(ctx context.Context) error {
			return keep(ctx, c.client, schemaKind(), bootstrap.MandatoryFlowSchemas, true)
		},
		c.removeOutdated,
		c.tell,
	}
	for _, f := range keepers {
		if err := f(ctx); err != nil {
			return reconcile.Result{}, err
		}
	}
	return reconcile.Result{}, nil
}

// kind is what keeping needs to know of one of the two kinds.
type kind[T client.Object] struct {
	empty func() T
	// replace gives an object the spec of another. same tells whether they have the same one.
	replace func(into, from T)
	same    func(want, have T) bool
}

func levelKind() kind[*flowcontrolv1.PriorityLevelConfiguration] {
	type object = *flowcontrolv1.PriorityLevelConfiguration
	return kind[object]{
		empty:   func() object { return &flowcontrolv1.PriorityLevelConfiguration{} },
		replace: func(into, from object) { from.Spec.DeepCopyInto(&into.Spec) },
		same: func(want, have object) bool {
			if want.Name != flowcontrolv1.PriorityLevelConfigurationNameExempt {
				return equality.Semantic.DeepEqual(want.Spec, have.Spec)
			}
			// How much it has and lends is the administrator's to say.
			return have.Spec.Type == want.Spec.Type && have.Spec.Exempt != nil && have.Spec.Limited == nil
		},
	}
}

func schemaKind() kind[*flowcontrolv1.FlowSchema] {
	type object = *flowcontrolv1.FlowSchema
	return kind[object]{
		empty:   func() object { return &flowcontrolv1.FlowSchema{} },
		replace: func(into, from object) { from.Spec.DeepCopyInto(&into.Spec) },
		same:    func(want, have object) bool { return equality.Semantic.DeepEqual(want.Spec, have.Spec) },
	}
}

// keep makes objects that are missing, and brings those that are there back to what they should be if that must be so or
// nobody has taken them over.
func keep[T client.Object](ctx context.Context, c client.Client, k kind[T], wanted []T, must bool) error {
	for _, want := range wanted {
		have := k.empty()
		err := c.Get(ctx, client.ObjectKeyFromObject(want), have)
		switch {
		case apierrors.IsNotFound(err):
			if err = c.Create(ctx, want.DeepCopyObject().(T), producer); apierrors.IsAlreadyExists(err) {
				continue // it will come by here once more
			}
		case err == nil:
			changed, ok := revise(k, want, have, must)
			if !ok {
				continue
			}
			err = c.Update(ctx, changed, producer)
		}
		if err != nil {
			return fmt.Errorf("keep %T %s: %w", want, want.GetName(), err)
		}
	}
	return nil
}

// revise returns an object as it should be, and whether that is another than it is. What its annotation says about whether
// it is kept is made true.
func revise[T client.Object](k kind[T], want, have T, must bool) (T, bool) {
	kept := must || isKept(have)
	value, err := strconv.ParseBool(have.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey])
	annotated := err == nil && value == kept
	same := !kept || k.same(want, have)
	if annotated && same {
		return have, false
	}
	changed := have.DeepCopyObject().(T)
	if !same {
		k.replace(changed, want)
	}
	annotations := changed.GetAnnotations()
	if annotations == nil {
		annotations = map[string]string{}
	}
	annotations[flowcontrolv1.AutoUpdateAnnotationKey] = strconv.FormatBool(kept)
	changed.SetAnnotations(annotations)
	return changed, true
}

// isKept tells whether a suggested object is kept as suggested: its annotation says so, or, if that says nothing, nobody
// has ever changed its spec.
func isKept(obj client.Object) bool {
	if kept, err := strconv.ParseBool(obj.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey]); err == nil {
		return kept
	}
	return obj.GetGeneration() == 1
}

// removeOutdated removes what another version suggested and this one does not, unless somebody has taken it over.
func (c controller) removeOutdated(ctx context.Context) error {
	known := map[client.ObjectKey]bool{}
	names := func(kind string, objects ...client.Object) {
		for _, obj := range objects {
			known[client.ObjectKey{Namespace: kind, Name: obj.GetName()}] = true
		}
	}
	for _, list := range [][]*flowcontrolv1.FlowSchema{bootstrap.MandatoryFlowSchemas, bootstrap.SuggestedFlowSchemas} {
		for _, fs := range list {
			names("FlowSchema", fs)
		}
	}
	for _, list := range [][]*flowcontrolv1.PriorityLevelConfiguration{bootstrap.MandatoryPriorityLevelConfigurations, bootstrap.SuggestedPriorityLevelConfigurations} {
		for _, pl := range list {
			names("PriorityLevelConfiguration", pl)
		}
	}
	remove := func(kind string, obj client.Object) error {
		if known[client.ObjectKey{Namespace: kind, Name: obj.GetName()}] {
			return nil
		}
		if kept, err := strconv.ParseBool(obj.GetAnnotations()[flowcontrolv1.AutoUpdateAnnotationKey]); err != nil || !kept {
			return nil
		}
		uid, version := obj.GetUID(), obj.GetResourceVersion()
		err := c.client.Delete(ctx, obj, client.Preconditions{UID: &uid, ResourceVersion: &version})
		if err = client.IgnoreNotFound(err); err != nil {
			return fmt.Errorf("remove %s %s, which is not suggested any more: %w", kind, obj.GetName(), err)
		}
		return nil
	}
	var schemas flowcontrolv1.FlowSchemaList
	var levels flowcontrolv1.PriorityLevelConfigurationList
	if err := kit.Readable(c.client.List(ctx, &schemas)); err != nil {
		return fmt.Errorf("list FlowSchemas: %w", err)
	}
	for i := range schemas.Items {
		if err := remove("FlowSchema", &schemas.Items[i]); err != nil {
			return err
		}
	}
	if err := kit.Readable(c.client.List(ctx, &levels)); err != nil {
		return fmt.Errorf("list PriorityLevelConfigurations: %w", err)
	}
	for i := range levels.Items {
		if err := remove("PriorityLevelConfiguration", &levels.Items[i]); err != nil {
			return err
		}
	}
	return nil
}

// tell writes into each FlowSchema's status whether the level that it names exists.
func (c controller) tell(ctx context.Context) error {
	var schemas flowcontrolv1.FlowSchemaList
	if err := kit.Readable(c.client.List(ctx, &schemas)); err != nil {
		return fmt.Errorf("list FlowSchemas: %w", err)
	}
	for i := range schemas.Items {
		fs := &schemas.Items[i]
		var level flowcontrolv1.PriorityLevelConfiguration
		err := c.client.Get(ctx, client.ObjectKey{Name: fs.Spec.PriorityLevelConfiguration.Name}, &level)
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("look for the level of FlowSchema %s: %w", fs.Name, err)
		}
		want := dangling(fs, err == nil)
		have := apihelpers.GetFlowSchemaConditionByType(fs, want.Type)
		if have != nil && have.Status == want.Status && have.Reason == want.Reason && have.Message == want.Message {
			continue
		}
		want.LastTransitionTime = metav1.NewTime(c.clock.Now())
		changed := fs.DeepCopy()
		apihelpers.SetFlowSchemaCondition(changed, want)
		if err := c.client.Status().Update(ctx, changed, consumer); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("tell in its status whether the level of FlowSchema %s exists: %w", fs.Name, err)
		}
	}
	return nil
}

// dangling is the condition of a FlowSchema whose level exists, or does not.
func dangling(fs *flowcontrolv1.FlowSchema, exists bool) flowcontrolv1.FlowSchemaCondition {
	name := fs.Spec.PriorityLevelConfiguration.Name
	if exists {
		return flowcontrolv1.FlowSchemaCondition{
			Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionFalse, Reason: "Found",
			Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q and it exists", name),
		}
	}
	return flowcontrolv1.FlowSchemaCondition{
		Type: flowcontrolv1.FlowSchemaConditionDangling, Status: flowcontrolv1.ConditionTrue, Reason: "NotFound",
		Message: fmt.Sprintf("This FlowSchema references the PriorityLevelConfiguration object named %q but there is no such object", name),
	}
}
