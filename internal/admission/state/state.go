// Package state is what webhooks and policies know of the cluster, in the forms that the libraries
// of k8s.io/apiserver ask for. Those libraries are made for client-go's informers, each with a cache
// of its own; here they read the store's shared image, and nothing is kept beside it.
package state

import (
	"context"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes"
	typedcorev1 "k8s.io/client-go/kubernetes/typed/core/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"

	"barque.dev/internal/store"
)

// Image is the server's shared image of the cluster. internal/apiserver/registry implements it.
// What it returns is shared: read-only.
type Image interface {
	// Table returns the table of a kept resource; nil if there is none.
	Table(gr schema.GroupResource) *store.Table
	// Find returns an object of the storage version. What the image does not hold is looked for
	// again once the image has caught up with the other servers.
	Find(ctx context.Context, gr schema.GroupResource, namespace, name string) (runtime.Object, error)
}

// Each calls f with the objects of a resource in a namespace, or in all when it is empty, until f
// returns false. An object that can't be read ends it with an error.
func Each(image Image, gr schema.GroupResource, namespace string, f func(runtime.Object) bool) error {
	table := image.Table(gr)
	if table == nil {
		return nil
	}
	var failure error
	table.Snapshot().Ascend(namespace, store.Key{}, func(e *store.Entry) bool {
		obj, err := e.Object()
		failure = err
		return err == nil && f(obj)
	})
	return failure
}

// Synced is an informer that has synced, as the image always has, and that tells nothing else.
type Synced struct{ cache.SharedIndexInformer }

// HasSynced implements cache.SharedIndexInformer.
func (Synced) HasSynced() bool { return true }

func namespaces() schema.GroupResource { return corev1.Resource("namespaces") }

// Namespaces reads namespaces.
type Namespaces struct{ Image Image }

var _ corelisters.NamespaceLister = Namespaces{}

// Get returns a namespace.
func (n Namespaces) Get(name string) (*corev1.Namespace, error) {
	return n.find(context.Background(), name)
}

func (n Namespaces) find(ctx context.Context, name string) (*corev1.Namespace, error) {
	obj, err := n.Image.Find(ctx, namespaces(), "", name)
	if err != nil {
		return nil, err
	}
	return obj.(*corev1.Namespace), nil
}

// List returns the namespaces that a selector selects.
func (n Namespaces) List(selector labels.Selector) ([]*corev1.Namespace, error) {
	var out []*corev1.Namespace
	err := Each(n.Image, namespaces(), "", func(obj runtime.Object) bool {
		if ns := obj.(*corev1.Namespace); selector.Matches(labels.Set(ns.Labels)) {
			out = append(out, ns)
		}
		return true
	})
	return out, err
}

// Clientset is as much of a client as the matchers of k8s.io/apiserver use: it reads namespaces.
func (n Namespaces) Clientset() kubernetes.Interface { return clientset{namespaces: n} }

// clientset and what follows answer one call and no other; the types that they embed are nil.
type clientset struct {
	kubernetes.Interface
	namespaces Namespaces
}

func (c clientset) CoreV1() typedcorev1.CoreV1Interface { return coreClient{namespaces: c.namespaces} }

type coreClient struct {
	typedcorev1.CoreV1Interface
	namespaces Namespaces
}

func (c coreClient) Namespaces() typedcorev1.NamespaceInterface {
	return namespaceClient{namespaces: c.namespaces}
}

type namespaceClient struct {
	typedcorev1.NamespaceInterface
	namespaces Namespaces
}

func (c namespaceClient) Get(ctx context.Context, name string, _ metav1.GetOptions) (*corev1.Namespace, error) {
	return c.namespaces.find(ctx, name)
}
