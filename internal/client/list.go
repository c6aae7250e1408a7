package client

import (
	"context"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/selection"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// List copies the objects that the options select into list, in key order, all of one revision.
// What the items point to is shared: see the package. Field selectors may use what the
// resource's field selectors can, and are fast for those that the store has an index for.
func (c *InProcess) List(_ context.Context, list client.ObjectList, opts ...client.ListOption) error {
	o := (&client.ListOptions{}).ApplyOptions(opts)
	gvk, err := c.GroupVersionKindFor(list)
	if err != nil {
		return err
	}
	gvk.Kind = strings.TrimSuffix(gvk.Kind, "List")
	res, table, err := c.kept(gvk)
	if err != nil {
		return err
	}
	snapshot := table.Snapshot()
	items, err := itemsOf(list)
	if err != nil {
		return err
	}
	after := store.Key{}
	if o.Continue != "" {
		after.Namespace, after.Name, _ = strings.Cut(o.Continue, "/")
	}
	next := ""
	var last store.Key
	err = selected(res, snapshot, o, after, func(entry *store.Entry, obj runtime.Object) (bool, error) {
		if o.Limit > 0 && int64(items.Len()) >= o.Limit {
			next = last.Namespace + "/" + last.Name
			return false, nil
		}
		last = entry.Key()
		return true, appendItem(res, items, obj, gvk)
	})
	if err != nil {
		return err
	}
	list.SetResourceVersion(strconv.FormatInt(snapshot.Revision(), 10))
	list.SetContinue(next)
	return nil
}

// selected calls f with what the options select, in key order behind after, until f says stop.
func selected(res *api.Resource, snapshot *store.Snapshot, o *client.ListOptions, after store.Key, f func(*store.Entry, runtime.Object) (bool, error)) error {
	var failure error
	visit := func(entry *store.Entry) bool {
		obj, err := entry.Object()
		if err != nil {
			failure = fmt.Errorf("read %s %v: %w", res.GroupResource, entry.Key(), err)
			return false
		}
		ok, err := matches(res, obj, o)
		if err != nil || !ok {
			failure = err
			return err == nil
		}
		more, err := f(entry, obj)
		failure = err
		return more && err == nil
	}
	namespace := o.Namespace
	if !res.Namespaced {
		namespace = ""
	}
	label, value, err := indexOf(res, o.FieldSelector)
	if err != nil {
		return err
	}
	if label == "" {
		snapshot.Ascend(namespace, after, visit)
		return failure
	}
	for _, entry := range snapshot.ByIndex(label, value) {
		key := entry.Key()
		if (namespace != "" && key.Namespace != namespace) || passed(key, after) {
			continue
		}
		if !visit(entry) {
			break
		}
	}
	return failure
}

// passed tells whether a key was on an earlier page.
func passed(key, after store.Key) bool {
	return after != store.Key{} && key.Namespace+"/"+key.Name <= after.Namespace+"/"+after.Name
}

// indexOf finds a requirement that the store has an index for, and refuses unknown fields.
func indexOf(res *api.Resource, selector fields.Selector) (label, value string, err error) {
	if selector == nil || selector.Empty() {
		return "", "", nil
	}
	for _, r := range selector.Requirements() {
		if _, _, err := res.Codec().ConvertField(res.Storage, r.Field, r.Value); err != nil {
			return "", "", apierrors.NewBadRequest(err.Error())
		}
		if r.Operator != selection.NotEquals && res.Indexes[r.Field] != nil {
			label, value = r.Field, r.Value
		}
	}
	return label, value, nil
}

func matches(res *api.Resource, obj runtime.Object, o *client.ListOptions) (bool, error) {
	if o.FieldSelector != nil && !o.FieldSelector.Empty() && !o.FieldSelector.Matches(res.Fields(obj)) {
		return false, nil
	}
	if o.LabelSelector == nil || o.LabelSelector.Empty() {
		return true, nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return false, err
	}
	return o.LabelSelector.Matches(labels.Set(m.GetLabels())), nil
}

// itemsOf returns the list's items, emptied.
func itemsOf(list runtime.Object) (reflect.Value, error) {
	ptr, err := meta.GetItemsPtr(list)
	if err != nil {
		return reflect.Value{}, fmt.Errorf("list into %T: %w", list, err)
	}
	items := reflect.ValueOf(ptr).Elem()
	items.Set(reflect.MakeSlice(items.Type(), 0, 0))
	return items, nil
}

// appendItem adds a shallow copy of a shared object to the items.
func appendItem(res *api.Resource, items reflect.Value, shared runtime.Object, gvk schema.GroupVersionKind) error {
	element := items.Type().Elem()
	pointer := element.Kind() == reflect.Pointer
	if pointer {
		element = element.Elem()
	}
	item := reflect.New(element)
	out, ok := item.Interface().(runtime.Object)
	if !ok {
		return fmt.Errorf("list of %s: %s is not an object", gvk, element)
	}
	if err := copyInto(res, shared, gvk, out); err != nil {
		return err
	}
	if !pointer {
		item = item.Elem()
	}
	items.Set(reflect.Append(items, item))
	return nil
}
