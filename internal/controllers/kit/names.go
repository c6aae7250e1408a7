package kit

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
)

// NamespaceLives tells whether the namespace is there and not being deleted.
func NamespaceLives(ctx context.Context, c client.Reader, name string) (bool, error) {
	var ns corev1.Namespace
	if err := c.Get(ctx, types.NamespacedName{Name: name}, &ns); client.IgnoreNotFound(err) != nil {
		return false, fmt.Errorf("get namespace %s: %w", name, err)
	} else if err != nil {
		return false, nil
	}
	return ns.Status.Phase != corev1.NamespaceTerminating && ns.DeletionTimestamp == nil, nil
}

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
