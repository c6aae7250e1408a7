// Package client is how Barque's own parts read and write the API.
//
// In process, reads are answered from the store's shared image and writes go through the API
// server's verbs (admission, validation and all) without a socket; see [InProcess]. From
// another machine, [HTTPS] speaks to all servers at once, by health. Both satisfy
// sigs.k8s.io/controller-runtime's client.Client, so that a reconciler looks like everybody's.
//
// What a read returns may share memory with every other reader: treat it as read-only, and
// DeepCopy before changing it, as with client-go's listers.
package client

import (
	"context"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Client reads, writes and watches the API.
type Client interface {
	client.Client
	Watcher
}

// Watcher follows the objects of one kind.
type Watcher interface {
	// Follow calls handle for every object of kind that exists (as additions), then for every
	// change, in order, until ctx ends. It resumes by itself after a broken or expired
	// watch, turning what was missed into events. kind is a sample such as &corev1.Pod{}.
	// synced, which may be nil, is called once the existing objects have been handed over.
	// handle must not block for long and must not change the objects.
	Follow(ctx context.Context, kind client.Object, synced func(), handle func(Event)) error
}

// An Event is one change: Old is nil for an addition, New is nil for a removal.
type Event struct {
	Old, New client.Object
}

// Object returns the newer of the two.
func (e Event) Object() client.Object {
	if e.New != nil {
		return e.New
	}
	return e.Old
}

// Target names what a verb acts on.
type Target struct {
	Resource    schema.GroupVersionResource
	Subresource string
	Namespace   string
	Name        string
}

// Verbs is the API server's request path below authentication and authorization: admission,
// defaulting, validation, strategy, managed fields, one transaction. internal/apiserver/registry
// implements it. Objects are of the versioned types; the returned object may be shared. The
// user is the context's (k8s.io/apiserver/pkg/endpoints/request), the fence too.
type Verbs interface {
	Create(ctx context.Context, t Target, obj runtime.Object, opts *client.CreateOptions) (runtime.Object, error)
	Update(ctx context.Context, t Target, obj runtime.Object, opts *client.UpdateOptions) (runtime.Object, error)
	Patch(ctx context.Context, t Target, patch client.Patch, obj client.Object, opts *client.PatchOptions) (runtime.Object, error)
	Delete(ctx context.Context, t Target, opts *client.DeleteOptions) error
	DeleteAll(ctx context.Context, t Target, opts *client.DeleteAllOfOptions) error
}
