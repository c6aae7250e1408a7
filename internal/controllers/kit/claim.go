package kit

import (
	"context"
	"errors"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// A Relation is what an owner and an object that it might own are to each other.
type Relation int8

const (
	// Foreign: somebody else's, or nobody's and not wanted.
	Foreign Relation = iota
	// Owned: the owner's, and it matches.
	Owned
	// Adopt: nobody's, and it matches.
	Adopt
	// Release: the owner's, but it matches no longer.
	Release
)

// Relate decides what owner and obj are to each other; matches tells whether owner's selector
// takes obj. An owner that is being deleted keeps what it has and changes nothing.
func Relate(owner, obj metav1.Object, matches bool) Relation {
	ref := metav1.GetControllerOfNoCopy(obj)
	dying := owner.GetDeletionTimestamp() != nil
	switch {
	case ref != nil && ref.UID != owner.GetUID():
		return Foreign
	case ref != nil && matches:
		return Owned
	case ref != nil && dying:
		return Foreign
	case ref != nil:
		return Release
	case dying || !matches || obj.GetDeletionTimestamp() != nil || obj.GetNamespace() != owner.GetNamespace():
		return Foreign
	}
	return Adopt
}

// A Claimer settles which objects belong to an owner, adopting and releasing as needed.
type Claimer struct {
	Client client.Client
	// Owner is the controller, OwnerKind its kind.
	Owner     client.Object
	OwnerKind schema.GroupVersionKind
	Selector  labels.Selector
	// Filter, which may be nil, has to take an object too, besides the selector.
	Filter func(obj client.Object) bool
	// OnAdopt and OnRelease, which may be nil, change the object further in the same write.
	OnAdopt, OnRelease func(obj client.Object)
}

// Claim returns those of objs that are owner's when it returns, in their order, changed ones in
// their new version. It goes on after an error and returns what it has with all errors joined.
// An object that is gone is no error.
func Claim[T client.Object](ctx context.Context, c Claimer, objs []T) ([]T, error) {
	var claimed []T
	var errs []error
	adoptable := func() error { return nil }
	if c.Owner.GetDeletionTimestamp() == nil {
		adoptable = onlyOnce(func() error { return c.recheck(ctx) })
	}
	for _, obj := range objs {
		matches := c.Selector.Matches(labels.Set(obj.GetLabels())) && (c.Filter == nil || c.Filter(obj))
		switch Relate(c.Owner, obj, matches) {
		case Owned:
			claimed = append(claimed, obj)
		case Adopt:
			if err := adoptable(); err != nil {
				errs = append(errs, fmt.Errorf("adopt %s: %w", obj.GetName(), err))
				continue
			}
			changed := obj.DeepCopyObject().(T)
			changed.SetOwnerReferences(append(changed.GetOwnerReferences(), *metav1.NewControllerRef(c.Owner, c.OwnerKind)))
			if c.OnAdopt != nil {
				c.OnAdopt(changed)
			}
			if err := c.Client.Update(ctx, changed); err == nil {
				claimed = append(claimed, changed)
			} else if !apierrors.IsNotFound(err) {
				errs = append(errs, fmt.Errorf("adopt %s: %w", obj.GetName(), err))
			}
		case Release:
			changed := obj.DeepCopyObject().(T)
			changed.SetOwnerReferences(withoutOwner(changed.GetOwnerReferences(), c.Owner))
			if c.OnRelease != nil {
				c.OnRelease(changed)
			}
			if err := c.Client.Update(ctx, changed); client.IgnoreNotFound(err) != nil {
				errs = append(errs, fmt.Errorf("release %s: %w", obj.GetName(), err))
			}
		}
	}
	return claimed, errors.Join(errs...)
}

// recheck makes sure that the owner still lives, before it adopts: an owner that was deleted
// with orphans left behind must not take them back.
func (c Claimer) recheck(ctx context.Context) error {
	fresh := c.Owner.DeepCopyObject().(client.Object)
	if err := c.Client.Get(ctx, client.ObjectKeyFromObject(c.Owner), fresh); err != nil {
		return fmt.Errorf("recheck %s %s: %w", c.OwnerKind.Kind, c.Owner.GetName(), err)
	}
	if fresh.GetUID() != c.Owner.GetUID() || fresh.GetDeletionTimestamp() != nil {
		return fmt.Errorf("%s %s is gone or being deleted", c.OwnerKind.Kind, c.Owner.GetName())
	}
	return nil
}

func withoutOwner(refs []metav1.OwnerReference, owner metav1.Object) []metav1.OwnerReference {
	var kept []metav1.OwnerReference
	for _, r := range refs {
		if r.UID != owner.GetUID() {
			kept = append(kept, r)
		}
	}
	return kept
}

func onlyOnce(f func() error) func() error {
	var done bool
	var err error
	return func() error {
		if !done {
			done, err = true, f()
		}
		return err
	}
}

// Selector converts an object's label selector. A selector that is absent, empty or malformed
// selects nothing: validation refuses such ones, and selecting everything would be a disaster.
func Selector(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil || sel.Empty() {
		return labels.Nothing()
	}
	return sel
}
