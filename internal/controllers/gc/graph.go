package gc

import (
	"slices"
	"sync"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
)

// object is what the graph knows of an object. It is replaced, not changed.
type object struct {
	gvk             schema.GroupVersionKind
	namespace, name string
	uid             types.UID
	owners          []metav1.OwnerReference
	finalizers      []string
	deleting        bool
}

func newObject(gvk schema.GroupVersionKind, m metav1.Object) *object {
	return &object{
		gvk: gvk, namespace: m.GetNamespace(), name: m.GetName(), uid: m.GetUID(),
		owners: m.GetOwnerReferences(), finalizers: m.GetFinalizers(), deleting: m.GetDeletionTimestamp() != nil,
	}
}

func (o *object) has(finalizer string) bool { return slices.Contains(o.finalizers, finalizer) }

// blocks tells whether o keeps its owner from going in the foreground.
func (o *object) blocks(owner types.UID) bool {
	return slices.ContainsFunc(o.owners, func(r metav1.OwnerReference) bool {
		return r.UID == owner && r.BlockOwnerDeletion != nil && *r.BlockOwnerDeletion
	})
}

// graph holds every object and who depends on whom. It is safe for concurrent use.
type graph struct {
	mu         sync.Mutex
	objects    map[types.UID]*object
	dependents map[types.UID]map[types.UID]bool // by owner, which may not exist
	// kinds holds the kinds that are followed, and whether they are namespaced: only of these is an absent
	// owner known to be gone.
	kinds map[schema.GroupKind]bool
}

func newGraph() *graph {
	return &graph{
		objects:    map[types.UID]*object{},
		dependents: map[types.UID]map[types.UID]bool{},
		kinds:      map[schema.GroupKind]bool{},
	}
}

// set adds an object, or takes its new version, and returns the UIDs that may now need work:
// its own, its dependents' when it began to go, its owners' when it no longer blocks them.
func (g *graph) set(o *object) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.objects[o.uid]
	g.unlink(old)
	g.objects[o.uid] = o
	for _, r := range o.owners {
		if g.dependents[r.UID] == nil {
			g.dependents[r.UID] = map[types.UID]bool{}
		}
		g.dependents[r.UID][o.uid] = true
	}
	var wake []types.UID
	if len(o.owners) > 0 || o.deleting {
		wake = append(wake, o.uid)
	}
	if o.deleting {
		wake = append(wake, g.dependentsOf(o.uid)...)
	}
	if old != nil {
		for _, r := range old.owners {
			wake = append(wake, r.UID)
		}
	}
	return wake
}

// remove forgets an object and returns the UIDs that may now need work.
func (g *graph) remove(uid types.UID) []types.UID {
	g.mu.Lock()
	defer g.mu.Unlock()
	old := g.objects[uid]
	if old == nil {
		return nil
	}
	g.unlink(old)
	delete(g.objects, uid)
	wake := g.dependentsOf(uid)
	for _, r := range old.owners {
		wake = append(wake, r.UID)
	}
	return wake
}

func (g *graph) unlink(o *object) {
	if o == nil {
		return
	}
	for _, r := range o.owners {
		delete(g.dependents[r.UID], o.uid)
		if len(g.dependents[r.UID]) == 0 {
			delete(g.dependents, r.UID)
		}
	}
}

func (g *graph) dependentsOf(uid types.UID) []types.UID {
	var uids []types.UID
	for d := range g.dependents[uid] {
		uids = append(uids, d)
	}
	return uids
}

func (g *graph) follow(kind schema.GroupKind, namespaced bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.kinds[kind] = namespaced
}

func (g *graph) unfollow(kind schema.GroupKind) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.kinds, kind)
}

// resolvable tells whether it can be said of an owner that it is gone: its kind is known, and where it would be is, too,
// which it is not for a namespaced owner of a cluster-scoped object.
func (g *graph) resolvable(o *object, r metav1.OwnerReference) bool {
	gv, err := schema.ParseGroupVersion(r.APIVersion)
	if err != nil {
		return false
	}
	namespaced, known := g.kinds[gv.WithKind(r.Kind).GroupKind()]
	return known && (o.namespace != "" || !namespaced)
}

// action is what to do about an object.
type action int8

const (
	nothing action = iota
	// drop the references in decision.refs from the object.
	drop
	// collect deletes the object with decision.policy.
	collect
	// orphan makes decision.dependents forget the object, then takes its finalizer off.
	orphan
	// finish takes the finalizer foregroundDeletion off.
	finish
)

type decision struct {
	action     action
	object     *object
	policy     metav1.DeletionPropagation
	refs       []types.UID
	absent     []metav1.OwnerReference // to be looked up before the decision is carried out
	dependents []*object
}

// decide is what to do about the object with the UID.
func (g *graph) decide(uid types.UID) decision {
	g.mu.Lock()
	defer g.mu.Unlock()
	o := g.objects[uid]
	switch {
	case o == nil:
		return decision{}
	case o.deleting && o.has(metav1.FinalizerOrphanDependents):
		return decision{action: orphan, object: o, dependents: g.list(uid)}
	case o.deleting && o.has(metav1.FinalizerDeleteDependents):
		for _, d := range g.list(uid) {
			if d.blocks(uid) && !g.waitsFor(d, uid, map[types.UID]bool{}) {
				return decision{}
			}
		}
		return decision{action: finish, object: o}
	case o.deleting || len(o.owners) == 0:
		return decision{}
	}
	return g.collectable(o)
}

// waitsFor tells whether o, which goes in the foreground, waits for the object with the UID, however many are in
// between: if that one waited for o, neither would ever go.
func (g *graph) waitsFor(o *object, uid types.UID, seen map[types.UID]bool) bool {
	if seen[o.uid] || !o.deleting || !o.has(metav1.FinalizerDeleteDependents) {
		return false
	}
	seen[o.uid] = true
	return slices.ContainsFunc(g.list(o.uid), func(d *object) bool {
		return d.blocks(o.uid) && (d.uid == uid || g.waitsFor(d, uid, seen))
	})
}

func (g *graph) list(owner types.UID) []*object {
	var list []*object
	for uid := range g.dependents[owner] {
		list = append(list, g.objects[uid])
	}
	return list
}

// collectable decides about an object that has owners.
func (g *graph) collectable(o *object) decision {
	d := decision{object: o}
	solid, waiting := false, false
	var waitingRefs []types.UID
	for _, r := range o.owners {
		owner := g.objects[r.UID]
		switch {
		case owner == nil || !matches(o, owner, r):
			if !g.resolvable(o, r) {
				solid = true // nothing can be said of it
				continue
			}
			d.absent = append(d.absent, r)
			d.refs = append(d.refs, r.UID)
		case owner.deleting && owner.has(metav1.FinalizerDeleteDependents):
			waiting = true
			waitingRefs = append(waitingRefs, r.UID)
		default:
			solid = true
		}
	}
	switch {
	case solid && len(d.refs)+len(waitingRefs) > 0:
		d.action = drop
		d.refs = append(d.refs, waitingRefs...)
	case solid:
	case waiting && len(g.dependents[o.uid]) > 0:
		// Its own dependents shall be gone before it no longer blocks its owner.
		d.action, d.policy = collect, metav1.DeletePropagationForeground
	default:
		d.action, d.policy = collect, policyOf(o)
	}
	return d
}

// matches tells whether a reference is good: the owner is what it says it is, and is
// cluster-scoped or in the same namespace.
func matches(o, owner *object, r metav1.OwnerReference) bool {
	return owner.name == r.Name && owner.gvk.Kind == r.Kind && (owner.namespace == "" || owner.namespace == o.namespace)
}

// policyOf respects what the finalizers that are there already ask for.
func policyOf(o *object) metav1.DeletionPropagation {
	switch {
	case o.has(metav1.FinalizerOrphanDependents):
		return metav1.DeletePropagationOrphan
	case o.has(metav1.FinalizerDeleteDependents):
		return metav1.DeletePropagationForeground
	}
	return metav1.DeletePropagationBackground
}
