package kit

import (
	"reflect"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
)

// RequestFor names obj.
func RequestFor(obj client.Object) reconcile.Request {
	return reconcile.Request{NamespacedName: client.ObjectKeyFromObject(obj)}
}

// Self requests the object that changed.
func Self(e barqueclient.Event) []reconcile.Request {
	return []reconcile.Request{RequestFor(e.Object())}
}

// Owner returns a function that requests the controllers, of the given kind, that the object's
// owner references name before and after the change. An object without a controller whose
// labels or owners changed is offered to whoever may adopt it: orphan, which may be nil, lists
// those.
func Owner(kind string, orphan func(obj client.Object) []reconcile.Request) func(barqueclient.Event) []reconcile.Request {
	return func(e barqueclient.Event) []reconcile.Request {
		var requests []reconcile.Request
		add := func(obj client.Object) *metav1.OwnerReference {
			if isNil(obj) {
				return nil
			}
			ref := metav1.GetControllerOfNoCopy(obj)
			if ref != nil && ref.Kind == kind {
				r := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: obj.GetNamespace(), Name: ref.Name}}
				if len(requests) == 0 || requests[0] != r {
					requests = append(requests, r)
				}
			}
			return ref
		}
		before, after := add(e.Old), add(e.New)
		if orphan == nil || isNil(e.New) || after != nil || e.New.GetDeletionTimestamp() != nil {
			return requests
		}
		if isNil(e.Old) || before != nil || !reflect.DeepEqual(e.Old.GetLabels(), e.New.GetLabels()) {
			requests = append(requests, orphan(e.New)...)
		}
		return requests
	}
}

// isNil sees through an interface that holds a nil pointer.
func isNil(obj client.Object) bool {
	if obj == nil {
		return true
	}
	v := reflect.ValueOf(obj)
	return v.Kind() == reflect.Pointer && v.IsNil()
}
