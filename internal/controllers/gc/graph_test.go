package gc

import (
	"slices"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

var thing = schema.GroupVersionKind{Group: "g", Version: "v1", Kind: "Thing"}

func obj(uid string, edit ...func(*object)) *object {
	o := &object{gvk: thing, namespace: "ns", name: uid, uid: types.UID(uid)}
	for _, e := range edit {
		e(o)
	}
	return o
}

func ownedBy(uid string, block bool) func(*object) {
	return func(o *object) {
		o.owners = append(o.owners, metav1.OwnerReference{APIVersion: "g/v1", Kind: "Thing", Name: uid, UID: types.UID(uid), BlockOwnerDeletion: &block})
	}
}

func deleting(finalizers ...string) func(*object) {
	return func(o *object) { o.deleting, o.finalizers = true, finalizers }
}

func TestDecide(t *testing.T) {
	const fg, orph = metav1.FinalizerDeleteDependents, metav1.FinalizerOrphanDependents
	tests := []struct {
		name    string
		objects []*object
		about   string
		want    action
		policy  metav1.DeletionPropagation
		refs    []types.UID
	}{
		{name: "no owner", objects: []*object{obj("a")}, about: "a"},
		{name: "owner lives", objects: []*object{obj("o"), obj("a", ownedBy("o", true))}, about: "a"},
		{name: "owner is gone", objects: []*object{obj("a", ownedBy("o", true))}, about: "a", want: collect, policy: metav1.DeletePropagationBackground},
		{name: "one owner of two is gone", objects: []*object{obj("p"), obj("a", ownedBy("o", true), ownedBy("p", true))}, about: "a", want: drop, refs: []types.UID{"o"}},
		{name: "owner's name is another's now", objects: []*object{obj("o", func(o *object) { o.name = "other" }), obj("a", ownedBy("o", true))}, about: "a", want: collect, policy: metav1.DeletePropagationBackground},
		{name: "owner in another namespace", objects: []*object{obj("o", func(o *object) { o.namespace = "x" }), obj("a", ownedBy("o", true))}, about: "a", want: collect, policy: metav1.DeletePropagationBackground},
		{name: "cluster-scoped owner", objects: []*object{obj("o", func(o *object) { o.namespace = "" }), obj("a", ownedBy("o", true))}, about: "a"},
		{name: "owner goes in the background", objects: []*object{obj("o", deleting("x")), obj("a", ownedBy("o", true))}, about: "a"},
		{name: "owner goes in the foreground", objects: []*object{obj("o", deleting(fg)), obj("a", ownedBy("o", true))}, about: "a", want: collect, policy: metav1.DeletePropagationBackground},
		{name: "… and there are dependents", objects: []*object{obj("o", deleting(fg)), obj("a", ownedBy("o", true)), obj("b", ownedBy("a", true))}, about: "a", want: collect, policy: metav1.DeletePropagationForeground},
		{name: "foreground waits for what blocks", objects: []*object{obj("o", deleting(fg)), obj("a", ownedBy("o", true))}, about: "o"},
		{name: "… but not for what does not", objects: []*object{obj("o", deleting(fg)), obj("a", ownedBy("o", false))}, about: "o", want: finish},
		{name: "a circle going in the foreground ends", objects: []*object{obj("a", deleting(fg), ownedBy("c", true)), obj("b", deleting(fg), ownedBy("a", true)), obj("c", deleting(fg), ownedBy("b", true))}, about: "a", want: finish},
		{name: "… once all of it goes", objects: []*object{obj("a", deleting(fg), ownedBy("c", true)), obj("b", deleting(fg), ownedBy("a", true)), obj("c", ownedBy("b", true))}, about: "a"},
		{name: "… and what hangs on it has gone", objects: []*object{obj("a", deleting(fg), ownedBy("b", true)), obj("b", deleting(fg), ownedBy("a", true)), obj("x", deleting("y"), ownedBy("a", true))}, about: "a"},
		{name: "foreground ends", objects: []*object{obj("o", deleting(fg))}, about: "o", want: finish},
		{name: "orphan", objects: []*object{obj("o", deleting(orph)), obj("a", ownedBy("o", true))}, about: "o", want: orphan},
		{name: "an unknown kind is not gone", objects: []*object{obj("a", func(o *object) {
			o.owners = []metav1.OwnerReference{{APIVersion: "alien/v1", Kind: "Thing", Name: "o", UID: "o"}}
		})}, about: "a"},
		{name: "a namespaced owner of a cluster-scoped object is nowhere", objects: []*object{obj("a", ownedBy("o", true), func(o *object) { o.namespace = "" })}, about: "a"},
		{name: "… not in any namespace", objects: []*object{obj("o"), obj("a", ownedBy("o", true), func(o *object) { o.namespace = "" })}, about: "a"},
		{name: "gone already", about: "a"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			g := newGraph()
			g.follow(thing.GroupKind(), true)
			for _, o := range tt.objects {
				g.set(o)
			}
			d := g.decide(types.UID(tt.about))
			if d.action != tt.want || d.policy != tt.policy || (tt.want == drop && !slices.Equal(d.refs, tt.refs)) {
				t.Errorf("got %+v", d)
			}
		})
	}
}

// In any order of deletions, working off what is woken leaves nothing whose owner is gone.
func TestCascadeReachesEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		g := newGraph()
		g.follow(thing.GroupKind(), true)
		names := []string{"a", "b", "c", "d", "e", "f", "g", "h"}
		var queue []types.UID
		for i, n := range names {
			var owners []func(*object)
			for _, m := range names[:i] {
				if rapid.IntRange(0, 3).Draw(t, "owns") == 0 {
					owners = append(owners, ownedBy(m, true))
				}
			}
			queue = append(queue, g.set(obj(n, owners...))...)
		}
		queue = append(queue, g.remove(types.UID(rapid.SampledFrom(names).Draw(t, "victim")))...)
		for len(queue) > 0 {
			i := rapid.IntRange(0, len(queue)-1).Draw(t, "next")
			uid := queue[i]
			queue = slices.Delete(queue, i, i+1)
			switch d := g.decide(uid); d.action {
			case collect:
				queue = append(queue, g.remove(uid)...)
			case drop:
				o := *d.object
				o.owners = slices.DeleteFunc(slices.Clone(o.owners), func(r metav1.OwnerReference) bool { return slices.Contains(d.refs, r.UID) })
				queue = append(queue, g.set(&o)...)
			}
		}
		for uid := range g.objects {
			if d := g.decide(uid); d.action != nothing {
				t.Fatalf("%s still needs %+v, but nobody woke it", uid, d)
			}
		}
	})
}
