package portability

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"reflect"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/util/retry"
)

// settle bounds how long one server may take to show what the other wrote.
const settle = 15 * time.Second

// exchange shows that two servers on one etcd are one API: what either reads, watches, updates
// and deletes is what the other has. The objects exist; afterwards they are gone.
func exchange(t *testing.T, writer, other *portal, items []item) {
	for _, i := range items {
		t.Run(i.String(), func(t *testing.T) {
			same(t, writer, other, i)
			listed(t, writer, other, i)
			updated(t, other, writer, i, "through-other")
			updated(t, writer, other, i, "through-writer")
			same(t, writer, other, i)
			deleted(t, other, writer, i)
		})
	}
}

// same compares what both servers answer to GET: as JSON, revision, uid and managed fields
// included, and as protobuf, to the byte.
func same(t *testing.T, a, b *portal, i item) {
	t.Helper()
	for _, accept := range []string{"application/json", "application/vnd.kubernetes.protobuf"} {
		eventually(t, settle, fmt.Sprintf("GET %s as %s is the same", i, accept), func(ctx context.Context) error {
			// A controller may change the object between the reads.
			x, err := get(ctx, a, i, accept)
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			y, err := get(ctx, b, i, accept)
			if err != nil {
				return fmt.Errorf("%s: %w", b.name, err)
			}
			if accept != "application/json" {
				if !bytes.Equal(x, y) {
					return fmt.Errorf("%s: %q\n%s: %q", a.name, x, b.name, y)
				}
				return nil
			}
			var p, q any
			if err := json.Unmarshal(x, &p); err != nil {
				return err
			}
			if err := json.Unmarshal(y, &q); err != nil {
				return err
			}
			if !reflect.DeepEqual(p, q) {
				return fmt.Errorf("%s: %s\n%s: %s", a.name, x, b.name, y)
			}
			return nil
		})
	}
}

func get(ctx context.Context, p *portal, i item, accept string) ([]byte, error) {
	root := "/apis/" + i.gvr.Group
	if i.gvr.Group == "" {
		root = "/api"
	}
	request := p.rest.Get().AbsPath(root, i.gvr.Version)
	if ns := i.object.GetNamespace(); ns != "" {
		request = request.Namespace(ns)
	}
	return request.Resource(i.gvr.Resource).Name(i.object.GetName()).SetHeader("Accept", accept).Do(ctx).Raw()
}

// listed compares the object in both servers' lists, one of them in chunks.
func listed(t *testing.T, a, b *portal, i item) {
	t.Helper()
	find := func(ctx context.Context, p *portal, limit int64) (*unstructured.Unstructured, error) {
		options := metav1.ListOptions{Limit: limit}
		for {
			list, err := i.of(p).List(ctx, options)
			if err != nil {
				return nil, fmt.Errorf("list through %s: %w", p.name, err)
			}
			for n := range list.Items {
				if list.Items[n].GetName() == i.object.GetName() {
					return &list.Items[n], nil
				}
			}
			if options.Continue = list.GetContinue(); options.Continue == "" {
				return nil, fmt.Errorf("%s is not in the list of %s", i, p.name)
			}
		}
	}
	eventually(t, settle, fmt.Sprintf("LIST shows the same %s", i), func(ctx context.Context) error {
		x, err := find(ctx, a, 0)
		if err != nil {
			return err
		}
		y, err := find(ctx, b, 5)
		if err != nil {
			return err
		}
		if !reflect.DeepEqual(x, y) {
			return fmt.Errorf("%s: %v\n%s: %v", a.name, x, b.name, y)
		}
		return nil
	})
}

// updated changes the object through one server and expects the event from the other.
func updated(t *testing.T, by, seen *portal, i item, mark string) {
	t.Helper()
	w := watchItem(t, seen, i)
	defer w.Stop()
	var result *unstructured.Unstructured
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		current, err := i.of(by).Get(t.Context(), i.object.GetName(), metav1.GetOptions{})
		if err != nil {
			return err
		}
		labels := current.GetLabels()
		if labels == nil {
			labels = map[string]string{}
		}
		labels["mark"] = mark
		current.SetLabels(labels)
		result, err = i.of(by).Update(t.Context(), current, metav1.UpdateOptions{FieldManager: manager})
		return err
	})
	if err != nil {
		t.Fatalf("update %s through %s: %v", i, by.name, err)
	}
	event := await(t, w, fmt.Sprintf("%s sees the update of %s", seen.name, i), func(e watch.Event, o *unstructured.Unstructured) bool {
		return e.Type == watch.Modified && o.GetResourceVersion() == result.GetResourceVersion()
	})
	if !reflect.DeepEqual(event, result) {
		t.Errorf("update of %s through %s: it answered\n%v\nbut %s's watch says\n%v", i, by.name, result, seen.name, event)
	}
}

// deleted removes the object through one server and expects the event from the other.
func deleted(t *testing.T, by, seen *portal, i item) {
	t.Helper()
	w := watchItem(t, seen, i)
	defer w.Stop()
	now, background := int64(0), metav1.DeletePropagationBackground
	err := i.of(by).Delete(t.Context(), i.object.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now, PropagationPolicy: &background})
	if err != nil {
		t.Fatalf("delete %s through %s: %v", i, by.name, err)
	}
	release(t, by, i)
	await(t, w, fmt.Sprintf("%s sees the deletion of %s", seen.name, i), func(e watch.Event, _ *unstructured.Unstructured) bool {
		return e.Type == watch.Deleted
	})
	for _, p := range []*portal{by, seen} {
		if _, err := i.of(p).Get(t.Context(), i.object.GetName(), metav1.GetOptions{}); !apierrors.IsNotFound(err) {
			t.Errorf("%s is deleted, but %s answers %v", i, p.name, err)
		}
	}
}

// release takes off the finalizers whose controllers don't run here.
func release(t *testing.T, p *portal, i item) {
	t.Helper()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		current, err := i.of(p).Get(t.Context(), i.object.GetName(), metav1.GetOptions{})
		if err != nil || len(current.GetFinalizers()) == 0 {
			return err
		}
		current.SetFinalizers(nil)
		_, err = i.of(p).Update(t.Context(), current, metav1.UpdateOptions{FieldManager: manager})
		return err
	})
	if err != nil && !apierrors.IsNotFound(err) {
		t.Fatalf("release %s: %v", i, err)
	}
}

// watchItem watches one object from now on.
func watchItem(t *testing.T, p *portal, i item) watch.Interface {
	t.Helper()
	selector := "metadata.name=" + i.object.GetName()
	list, err := i.of(p).List(t.Context(), metav1.ListOptions{FieldSelector: selector})
	if err != nil {
		t.Fatalf("list %s through %s: %v", i, p.name, err)
	}
	w, err := i.of(p).Watch(t.Context(), metav1.ListOptions{FieldSelector: selector, ResourceVersion: list.GetResourceVersion()})
	if err != nil {
		t.Fatalf("watch %s through %s: %v", i, p.name, err)
	}
	return w
}

// await returns the object of the first event that is wanted.
func await(t *testing.T, w watch.Interface, what string, want func(watch.Event, *unstructured.Unstructured) bool) *unstructured.Unstructured {
	t.Helper()
	timeout := time.NewTimer(settle)
	defer timeout.Stop()
	for {
		select {
		case e, ok := <-w.ResultChan():
			if !ok {
				t.Fatalf("%s: the watch ended", what)
			}
			o, is := e.Object.(*unstructured.Unstructured)
			if !is || e.Type == watch.Error {
				t.Fatalf("%s: the watch says %v", what, e)
			}
			if want(e, o) {
				return o
			}
		case <-timeout.C:
			t.Fatalf("%s: not within %v", what, settle)
		}
	}
}
