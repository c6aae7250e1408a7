package gc

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/lru"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	"barque.dev/internal/controllers/kit"
)

type controller struct {
	deps  kit.Deps
	graph *graph

	mu    sync.Mutex
	kinds map[schema.GroupKind]*api.Resource // that are followed

	// absent are owners that are known to be gone, for good: no UID comes twice.
	absent *lru.Cache
}

// knownAbsent is how many owners are remembered to be gone (stock: 500): their dependents come all at once.
const knownAbsent = 500

// coordinates are where a reference says that an owner is.
type coordinates struct {
	namespace, apiVersion, kind, name string
	uid                               types.UID
}

// lookAgain is how soon an object is looked at again whose owner seems gone but is not.
const lookAgain = 200 * time.Millisecond

// ignored are kinds that are not collected: events are many, short-lived and own nothing.
var ignored = map[schema.GroupKind]bool{{Kind: "Event"}: true, {Group: "events.k8s.io", Kind: "Event"}: true}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	c := newController(deps)
	return kit.Controller{
		Name:      "garbage-collector",
		Account:   "generic-garbage-collector",
		Source:    c.follow,
		Reconcile: c.reconcile,
		Workers:   16,
	}
}

func newController(deps kit.Deps) *controller {
	return &controller{deps: deps, graph: newGraph(), kinds: map[schema.GroupKind]*api.Resource{}, absent: lru.New(knownAbsent)}
}

func (c *controller) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	d := c.graph.decide(types.UID(req.Name))
	if d.action == nothing {
		return reconcile.Result{}, nil
	}
	gone, err := c.allGone(ctx, d)
	if err != nil || !gone {
		return reconcile.Result{RequeueAfter: lookAgain}, err
	}
	switch d.action {
	case drop:
		err = c.drop(ctx, d.object, d.refs)
	case collect:
		err = c.delete(ctx, d.object, d.policy)
	case orphan:
		err = kit.Each(len(d.dependents), func(i int) error {
			return c.drop(ctx, d.dependents[i], []types.UID{d.object.uid})
		})
		if err == nil {
			err = c.unfinalize(ctx, d.object, metav1.FinalizerOrphanDependents)
		}
	case finish:
		err = c.unfinalize(ctx, d.object, metav1.FinalizerDeleteDependents)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("%s %s/%s: %w", d.object.gvk.Kind, d.object.namespace, d.object.name, err)
	}
	return reconcile.Result{}, nil
}

// allGone looks absent owners up once more: the graph follows the image kind by kind, so one
// kind may be a moment behind another, and the image may be behind what other servers wrote.
func (c *controller) allGone(ctx context.Context, d decision) (bool, error) {
	if gone, err := c.notFound(ctx, d); err != nil || !gone {
		return false, err
	}
	var unsure []coordinates
	for _, r := range d.absent {
		at := coordinates{d.object.namespace, r.APIVersion, r.Kind, r.Name, r.UID}
		if _, known := c.absent.Get(at); !known {
			unsure = append(unsure, at)
		}
	}
	if len(unsure) == 0 {
		return true, nil
	}
	if err := c.deps.CatchUp(ctx); err != nil {
		return false, fmt.Errorf("make sure that the owners of %s %s/%s are gone: %w", d.object.gvk.Kind, d.object.namespace, d.object.name, err)
	}
	if gone, err := c.notFound(ctx, d); err != nil || !gone {
		return false, err
	}
	for _, at := range unsure {
		c.absent.Add(at, nil)
	}
	return true, nil
}

// notFound tells whether none of the absent owners is in the image.
func (c *controller) notFound(ctx context.Context, d decision) (bool, error) {
	for _, r := range d.absent {
		gv, err := schema.ParseGroupVersion(r.APIVersion)
		if err != nil {
			return false, nil
		}
		res := c.resource(gv.WithKind(r.Kind).GroupKind())
		if res == nil {
			return false, nil
		}
		owner, err := kit.Sample(res)
		if err != nil {
			return false, err
		}
		key := types.NamespacedName{Name: r.Name}
		if res.Namespaced {
			key.Namespace = d.object.namespace
		}
		if err := c.deps.Client.Get(ctx, key, owner); err == nil && owner.GetUID() == r.UID {
			return false, nil
		} else if client.IgnoreNotFound(err) != nil {
			return false, fmt.Errorf("look up owner %s %s: %w", r.Kind, r.Name, err)
		}
	}
	return true, nil
}

// reference makes an object by which the client addresses o.
func (c *controller) reference(o *object) (client.Object, error) {
	res := c.resource(o.gvk.GroupKind())
	if res == nil {
		return nil, fmt.Errorf("kind %s is not served", o.gvk)
	}
	ref, err := kit.Sample(res)
	if err != nil {
		return nil, err
	}
	ref.SetNamespace(o.namespace)
	ref.SetName(o.name)
	return ref, nil
}

// delete deletes an object as long as its owners are those that the decision was made on: who has given it another in
// the meantime wants it to stay.
func (c *controller) delete(ctx context.Context, o *object, policy metav1.DeletionPropagation) error {
	version, same, err := c.unmoved(ctx, o)
	if err != nil || !same {
		return err
	}
	err = c.deleteVersion(ctx, o, policy, &version)
	if !apierrors.IsConflict(err) {
		return client.IgnoreNotFound(err)
	}
	// It has changed, or another has its name. What changes all the time goes all the same if that is not about owners.
	if err := c.deps.CatchUp(ctx); err != nil {
		return err
	}
	if _, same, err := c.unmoved(ctx, o); err != nil || !same {
		return err
	}
	if err := c.deleteVersion(ctx, o, policy, nil); !apierrors.IsConflict(err) {
		return client.IgnoreNotFound(err)
	}
	return nil
}

func (c *controller) deleteVersion(ctx context.Context, o *object, policy metav1.DeletionPropagation, version *string) error {
	ref, err := c.reference(o)
	if err != nil {
		return err
	}
	return c.deps.Client.Delete(ctx, ref, client.PropagationPolicy(policy), client.Preconditions{UID: &o.uid, ResourceVersion: version})
}

// unmoved returns the version of an object that is there and has the owners that the graph knows of. If it does not have
// them, the graph is about to learn that, and to ask for the object again.
func (c *controller) unmoved(ctx context.Context, o *object) (version string, same bool, err error) {
	ref, err := c.reference(o)
	if err != nil {
		return "", false, err
	}
	if err := c.deps.Client.Get(ctx, client.ObjectKeyFromObject(ref), ref); err != nil {
		return "", false, client.IgnoreNotFound(err)
	}
	same = ref.GetUID() == o.uid && equality.Semantic.DeepEqual(ref.GetOwnerReferences(), o.owners)
	return ref.GetResourceVersion(), same, nil
}

// drop takes references off an object. The patch names its UID, so that it can't hit another.
func (c *controller) drop(ctx context.Context, o *object, refs []types.UID) error {
	if res := c.resource(o.gvk.GroupKind()); res != nil && res.Custom != nil {
		return c.dropWhole(ctx, o, refs)
	}
	owners := make([]map[string]any, 0, len(refs))
	for _, uid := range refs {
		owners = append(owners, map[string]any{"$patch": "delete", "uid": uid})
	}
	return c.patch(ctx, o, types.StrategicMergePatchType, map[string]any{"uid": o.uid, "ownerReferences": owners})
}

// dropWhole is drop for custom resources, whose lists no patch can change in part.
func (c *controller) dropWhole(ctx context.Context, o *object, refs []types.UID) error {
	ref, err := c.reference(o)
	if err != nil {
		return err
	}
	if err := c.deps.Client.Get(ctx, client.ObjectKeyFromObject(ref), ref); err != nil {
		return client.IgnoreNotFound(err)
	}
	if ref.GetUID() != o.uid {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(ref.GetOwnerReferences()), func(r metav1.OwnerReference) bool { return slices.Contains(refs, r.UID) })
	return c.patch(ctx, o, types.MergePatchType, map[string]any{
		"uid": o.uid, "resourceVersion": ref.GetResourceVersion(), "ownerReferences": rest,
	})
}

func (c *controller) unfinalize(ctx context.Context, o *object, finalizer string) error {
	ref, err := c.reference(o)
	if err != nil {
		return err
	}
	if err := c.deps.Client.Get(ctx, client.ObjectKeyFromObject(ref), ref); err != nil {
		return client.IgnoreNotFound(err)
	}
	if ref.GetUID() != o.uid || !slices.Contains(ref.GetFinalizers(), finalizer) {
		return nil
	}
	rest := slices.DeleteFunc(slices.Clone(ref.GetFinalizers()), func(f string) bool { return f == finalizer })
	return c.patch(ctx, o, types.MergePatchType, map[string]any{
		"uid": o.uid, "resourceVersion": ref.GetResourceVersion(), "finalizers": rest,
	})
}

func (c *controller) patch(ctx context.Context, o *object, kind types.PatchType, metadata map[string]any) error {
	ref, err := c.reference(o)
	if err != nil {
		return err
	}
	data, err := json.Marshal(map[string]any{"metadata": metadata})
	if err != nil {
		return err
	}
	return client.IgnoreNotFound(c.deps.Client.Patch(ctx, ref, client.RawPatch(kind, data)))
}
