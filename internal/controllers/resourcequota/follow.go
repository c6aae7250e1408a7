package resourcequota

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
)

// settle is how long changes are gathered before a quota is counted: a namespace that empties
// itself is not counted at each of its objects.
const settle = 100 * time.Millisecond

// errNotLeading is what reconciles get that come before the term has begun to follow.
var errNotLeading = errors.New("nothing is followed yet")

// follow watches the resources that some quota counts, and no others.
type follow struct {
	watcher  barqueclient.Watcher
	sample   func(schema.GroupResource) (client.Object, error)
	affected func(context.Context, schema.GroupResource, barqueclient.Event) []reconcile.Request
	all      func(context.Context) []reconcile.Request
	// kinds returns a channel that is closed when other kinds are served than now.
	kinds func() <-chan struct{}
	log   *slog.Logger

	mu   sync.Mutex
	term *term // nil outside of a term of leadership
}

// term is what is followed during one term of leadership.
type term struct {
	ctx       context.Context //nolint:containedctx // it is the term's
	enqueue   func(reconcile.Request)
	followers sync.WaitGroup
	resources map[schema.GroupResource]*follower
	due       map[reconcile.Request]bool // are counted when the changes have settled
}

// follower follows one resource. synced is closed when everything after can be relied on to be
// seen, or when it has failed.
type follower struct {
	synced chan struct{}
	err    error
}

// run is the controller's source of requests.
func (f *follow) run(ctx context.Context, enqueue func(reconcile.Request)) error {
	t := &term{ctx: ctx, enqueue: enqueue, resources: map[schema.GroupResource]*follower{}, due: map[reconcile.Request]bool{}}
	f.mu.Lock()
	f.term = t
	f.mu.Unlock()
	for changed := f.kinds(); ctx.Err() == nil; {
		select {
		case <-changed:
			// What a quota counts may be served from now on, or no more.
			changed = f.kinds()
			f.mark(t, f.all(ctx))
		case <-ctx.Done():
		}
	}
	f.mu.Lock()
	f.term = nil
	f.mu.Unlock()
	t.followers.Wait()
	return nil
}

// ensure returns when a resource is followed.
func (f *follow) ensure(ctx context.Context, gr schema.GroupResource) error {
	one, err := f.start(gr)
	if err != nil {
		return err
	}
	select {
	case <-one.synced:
		return one.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (f *follow) start(gr schema.GroupResource) (*follower, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	t := f.term
	if t == nil {
		return nil, errNotLeading
	}
	if one := t.resources[gr]; one != nil {
		return one, nil
	}
	sample, err := f.sample(gr)
	if err != nil {
		return nil, err
	}
	one := &follower{synced: make(chan struct{})}
	t.resources[gr] = one
	done := sync.OnceFunc(func() { close(one.synced) })
	t.followers.Go(func() {
		err := f.watcher.Follow(t.ctx, sample, done, func(e barqueclient.Event) {
			f.mark(t, f.affected(t.ctx, gr, e))
		})
		f.mu.Lock()
		delete(t.resources, gr)
		f.mu.Unlock()
		select {
		case <-one.synced:
			if t.ctx.Err() == nil {
				// Whoever still counts it follows it anew.
				f.log.Warn("a resource that quotas count is no longer followed", "resource", gr.String(), "error", err)
				f.mark(t, f.all(t.ctx))
			}
		default:
			one.err = fmt.Errorf("it ended: %w", err)
			done()
		}
	})
	return one, nil
}

// mark has quotas counted soon.
func (f *follow) mark(t *term, requests []reconcile.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range requests {
		if t.due[r] {
			continue
		}
		t.due[r] = true
		time.AfterFunc(settle, func() {
			f.mu.Lock()
			delete(t.due, r)
			f.mu.Unlock()
			t.enqueue(r)
		})
	}
}

// sample is an object of a resource's kind. Of what is counted only, metadata are enough.
func (c *controller) sample(gr schema.GroupResource) (client.Object, error) {
	switch gr {
	case corev1.Resource("pods"):
		return &corev1.Pod{}, nil
	case corev1.Resource("services"):
		return &corev1.Service{}, nil
	case corev1.Resource("persistentvolumeclaims"):
		return &corev1.PersistentVolumeClaim{}, nil
	case resourcev1.Resource("resourceclaims"):
		return &resourcev1.ResourceClaim{}, nil
	}
	gvk, ok := c.kind(gr)
	if !ok {
		return nil, fmt.Errorf("%s is not served", gr)
	}
	obj := &metav1.PartialObjectMetadata{}
	obj.SetGroupVersionKind(gvk)
	return obj, nil
}
