package gc

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// wakeups are requests that wait until every kind that there was at the start has been read: an owner not yet seen
// would look like one that is gone.
type wakeups struct {
	enqueue func(reconcile.Request)

	mu      sync.Mutex
	started bool
	early   map[types.UID]bool
}

func (w *wakeups) wake(uids []types.UID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, uid := range uids {
		if w.started {
			w.enqueue(request(uid))
		} else {
			w.early[uid] = true
		}
	}
}

func (w *wakeups) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.started = true
	for uid := range w.early {
		w.enqueue(request(uid))
	}
	w.early = nil
}

// follow keeps the graph, from all kinds that can be deleted, also from those that come later.
func (c *controller) follow(ctx context.Context, enqueue func(reconcile.Request)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	w := &wakeups{enqueue: enqueue, early: map[types.UID]bool{}}
	var followers, unsynced sync.WaitGroup
	ended := make(chan string)
	following := map[string]<-chan struct{}{} // by prefix, what Changed returned when it began
	over := map[string]bool{}                 // those of following that have ended
	for first := true; ctx.Err() == nil; first = false {
		changed := c.deps.Kinds.Changed()
		for prefix := range over {
			// What ended although nothing has changed since it began would only end again.
			if following[prefix] != changed {
				delete(over, prefix)
				delete(following, prefix)
			}
		}
		for _, r := range collectables(c.deps.Kinds.Resources()) {
			if _, ok := following[r.Prefix]; ok {
				continue
			}
			following[r.Prefix] = changed
			unsynced.Add(1)
			followers.Go(func() {
				if err := c.followKind(ctx, r, w.wake, sync.OnceFunc(unsynced.Done)); err != nil && ctx.Err() == nil {
					cancel(fmt.Errorf("follow %s: %w", r.GroupResource, err))
				}
				select {
				case ended <- r.Prefix:
				case <-ctx.Done():
				}
			})
		}
		if first {
			unsynced.Wait()
			w.start()
		}
		select {
		case <-changed:
		case prefix := <-ended:
			over[prefix] = true
		case <-ctx.Done():
		}
	}
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
func collectables(served []*api.Resource) []*api.Resource {
	var kinds []*api.Resource
	seen := map[string]bool{}
	for _, r := range served {
		if r.Virtual() || seen[r.Prefix] || ignored[groupKind(r)] || !slices.Contains(r.Verbs, "delete") || !slices.Contains(r.Verbs, "watch") {
			continue
		}
		seen[r.Prefix] = true
		kinds = append(kinds, r)
	}
	return kinds
}

func groupKind(r *api.Resource) schema.GroupKind {
	return schema.GroupKind{Group: r.Group, Kind: r.Kind}
}

// followKind keeps what the graph knows of one kind, until ctx ends or the kind is no longer served.
func (c *controller) followKind(ctx context.Context, r *api.Resource, wake func([]types.UID), synced func()) error {
	defer synced() // an error must not keep the others waiting
	sample, err := kit.Sample(r)
	if err != nil {
		return err
	}
	gvk := kit.KindOf(r)
	c.setResource(gvk.GroupKind(), r)
	defer c.setResource(gvk.GroupKind(), nil)
	c.graph.follow(gvk.GroupKind(), r.Namespaced)
	defer c.graph.unfollow(gvk.GroupKind())
	err = c.deps.Client.Follow(ctx, sample, synced, func(e barqueclient.Event) {
		if e.New == nil {
			wake(c.graph.remove(e.Old.GetUID()))
			return
		}
		if e.Old != nil && e.Old.GetUID() != e.New.GetUID() {
			wake(c.graph.remove(e.Old.GetUID()))
		}
		wake(c.graph.set(newObject(gvk, e.New)))
	})
	if meta.IsNoMatchError(err) {
		return nil
	}
	return err
}

// resource is how a kind that is followed is served; nil for others. A definition may change how, meanwhile.
func (c *controller) resource(kind schema.GroupKind) *api.Resource {
	c.mu.Lock()
	known := c.kinds[kind]
	c.mu.Unlock()
	if known == nil || known.Custom == nil {
		return known
	}
	for _, r := range c.deps.Kinds.Resources() {
		if groupKind(r) == kind {
			return r
		}
	}
	return nil
}

func (c *controller) setResource(kind schema.GroupKind, r *api.Resource) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if r == nil {
		delete(c.kinds, kind)
		return
	}
	c.kinds[kind] = r
}
