package kit

import (
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
)

// Changed requests the namespace of an object of the given name that was changed or removed.
func Changed(name string) func(barqueclient.Event) []reconcile.Request {
	return func(e barqueclient.Event) []reconcile.Request {
		if isNil(e.Old) || e.Object().GetName() != name {
			return nil
		}
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: e.Object().GetNamespace()}}}
	}
}

// Removed requests the namespace of an object of the given name that was removed.
func Removed(name string) func(barqueclient.Event) []reconcile.Request {
	return func(e barqueclient.Event) []reconcile.Request {
		if !isNil(e.New) {
			return nil
		}
		return Changed(name)(e)
	}
}
