package gc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

type controller struct {
	deps  kit.Deps
	graph *graph
	kinds map[schema.GroupKind]*api.Resource
}

// lookAgain is how soon an object is looked at again whose owner seems gone but is not.
const lookAgain = 200 * time.Millisecond

// ignored are kinds that are not collected: events are many, short-lived and own nothing.
var ignored = map[schema.GroupKind]bool{{Kind: "Event"}: true, {Group: "events.k8s.io", Kind: "Event"}: true}

// New makes the controller.
func New(deps kit.Deps) kit.Controller {
	c := &controller{deps: deps, graph: newGraph(), kinds: map[schema.GroupKind]*api.Resource{}}
	for _, r := range collectables() {
		c.kinds[schema.GroupKind{Group: r.Group, Kind: r.Kind}] = r
	}
	return kit.Controller{
		Name:      "garbage-collector",
		Account:   "generic-garbage-collector",
		Source:    c.follow,
		Reconcile: c.reconcile,
		Workers:   16,
	}
}

// follow keeps the graph, from all kinds that can be deleted. Requests start when every kind
// has been read, since an owner not yet seen would look like one that is gone.
func (c *controller) follow(ctx context.Context, enqueue func(reconcile.Request)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var followers, unsynced sync.WaitGroup
	kinds := collectables()
	unsynced.Add(len(kinds))
	var mu sync.Mutex
	early := map[types.UID]bool{} // woken before all kinds were read
	started := false
	wake := func(uids []types.UID) {
		mu.Lock()
		defer mu.Unlock()
		for _, uid := range uids {
			if started {
				enqueue(request(uid))
			} else {
				early[uid] = true
			}
		}
	}
	for _, r := range kinds {
		followers.Go(func() {
			if err := c.followKind(ctx, r, wake, sync.OnceFunc(unsynced.Done)); err != nil && ctx.Err() == nil {
				cancel(fmt.Errorf("follow %s: %w", r.GroupResource, err))
			}
		})
	}
	unsynced.Wait()
	mu.Lock()
	started = true
	for uid := range early {
		enqueue(request(uid))
	}
	early = nil
	mu.Unlock()
	followers.Wait()
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

func request(uid types.UID) reconcile.Request {
	return reconcile.Request{NamespacedName: types.NamespacedName{Name: string(uid)}}
}

// collectables are the kept kinds that can be deleted, each set of objects once.
func collectables() []*api.Resource {
	var kinds []*api.Resource
	seen := map[string]bool{}
	for _, r := range api.Resources() {
		if r.Virtual() || seen[r.Prefix] || ignored[schema.GroupKind{Group: r.Group, Kind: r.Kind}] || !slices.Contains(r.Verbs, "delete") || !slices.Contains(r.Verbs, "watch") {
			continue
		}
		seen[r.Prefix] = true
		kinds = append(kinds, r)
	}
	return kinds
}

func (c *controller) followKind(ctx context.Context, r *api.Resource, wake func([]types.UID), synced func()) error {
	defer synced() // an error must not keep the others waiting
	sample, err := r.Codec().New(r.Storage)
	if err != nil {
		return err
	}
	gvk := r.Storage.WithKind(r.Kind)
	c.graph.follow(gvk.GroupKind(), r.Namespaced)
	return c.deps.Client.Follow(ctx, sample.(client.Object), synced, func(e barqueclient.Event) {
		if e.New == nil {
			wake(c.graph.remove(e.Old.GetUID()))
			return
		}
		if e.Old != nil && e.Old.GetUID() != e.New.GetUID() {
			wake(c.graph.remove(e.Old.GetUID()))
		}
		wake(c.graph.set(newObject(gvk, e.New)))
	})
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
// kind may be a moment behind another.
func (c *controller) allGone(ctx context.Context, d decision) (bool, error) {
	for _, r := range d.absent {
		gv, err := schema.ParseGroupVersion(r.APIVersion)
		if err != nil {
			return false, nil
		}
		res := c.kinds[gv.WithKind(r.Kind).GroupKind()]
		if res == nil {
			return false, nil
		}
		obj, err := res.Codec().New(res.Storage)
		if err != nil {
			return false, err
		}
		key := types.NamespacedName{Name: r.Name}
		if res.Namespaced {
			key.Namespace = d.object.namespace
		}
		owner := obj.(client.Object)
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
	res := c.kinds[o.gvk.GroupKind()]
	if res == nil {
		return nil, fmt.Errorf("kind %s is not served", o.gvk)
	}
	obj, err := res.Codec().New(res.Storage)
	if err != nil {
		return nil, err
	}
	ref := obj.(client.Object)
	ref.SetNamespace(o.namespace)
	ref.SetName(o.name)
	return ref, nil
}

func (c *controller) delete(ctx context.Context, o *object, policy metav1.DeletionPropagation) error {
	ref, err := c.reference(o)
	if err != nil {
		return err
	}
	err = c.deps.Client.Delete(ctx, ref, client.PropagationPolicy(policy), client.Preconditions{UID: &o.uid})
	if apierrors.IsConflict(err) {
		return nil // another object has the name now
	}
	return client.IgnoreNotFound(err)
}

// drop takes references off an object. The patch names its UID, so that it can't hit another.
func (c *controller) drop(ctx context.Context, o *object, refs []types.UID) error {
	owners := make([]map[string]any, 0, len(refs))
	for _, uid := range refs {
		owners = append(owners, map[string]any{"$patch": "delete", "uid": uid})
	}
	return c.patch(ctx, o, types.StrategicMergePatchType, map[string]any{"uid": o.uid, "ownerReferences": owners})
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
