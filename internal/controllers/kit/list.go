package kit

import (
	"context"
	"fmt"
	"reflect"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
)

// List fills list as opts say and returns pointers to its items, which are shared and must not
// be changed. With an error that [Readable] forgives it returns the items that could be read.
func List[T client.Object](ctx context.Context, c client.Reader, list client.ObjectList, opts ...client.ListOption) ([]T, error) {
	err := c.List(ctx, list, opts...)
	if err != nil {
		err = fmt.Errorf("list %s%s: %w", reflect.TypeOf(list).Elem().Name(), where(opts), err)
	}
	if Readable(err) != nil {
		return nil, err
	}
	items := make([]T, 0, meta.LenList(list))
	if failure := meta.EachListItem(list, func(item runtime.Object) error {
		items = append(items, item.(T))
		return nil
	}); failure != nil {
		return nil, failure
	}
	return items, err
}

// Readable forgives a list that it lacks objects that can't be read: it is for those who do with each object what is to
// be done with it, so that one that is damaged does not keep the others waiting. It is not for those who conclude
// something from what a list does not have. Whoever follows the kind has logged which they are.
func Readable(err error) error {
	if apierrors.IsStoreReadError(err) {
		return nil
	}
	return err
}

func where(opts []client.ListOption) string {
	var o client.ListOptions
	if o.ApplyOptions(opts); o.Namespace == "" {
		return ""
	}
	return " in namespace " + o.Namespace
}

// Where requests those of the listed objects that wants takes. It is for use in a [Watch]: the
// image answers, so that failing means a bug, which is logged.
func Where[T client.Object](d Deps, list client.ObjectList, wants func(T) bool, opts ...client.ListOption) []reconcile.Request {
	items, err := List[T](context.Background(), d.Client, list, opts...)
	if Readable(err) != nil {
		d.Log.Error("look for what to reconcile", "error", err)
		return nil
	}
	var requests []reconcile.Request
	for _, item := range items {
		if wants(item) {
			requests = append(requests, RequestFor(item))
		}
	}
	return requests
}

// Concerns tells whether selector takes the object that changed, as it was or as it is.
func Concerns(selector labels.Selector, e barqueclient.Event) bool {
	takes := func(obj client.Object) bool { return !isNil(obj) && selector.Matches(labels.Set(obj.GetLabels())) }
	return takes(e.Old) || takes(e.New)
}

// Adopters returns a function, for [Owner], that requests the objects of an orphan's namespace
// whose selector takes the orphan. The empty list says which kind they are.
func Adopters[T client.Object](d Deps, empty client.ObjectList, selector func(T) *metav1.LabelSelector) func(client.Object) []reconcile.Request {
	return func(orphan client.Object) []reconcile.Request {
		list := empty.DeepCopyObject().(client.ObjectList)
		return Where(d, list, func(owner T) bool {
			return Selector(selector(owner)).Matches(labels.Set(orphan.GetLabels()))
		}, client.InNamespace(orphan.GetNamespace()))
	}
}
