package registry

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/admission"

	"barque.dev/internal/store"
)

// A Ledger holds changes to the quotas of their namespaces.
type Ledger interface {
	// Charge returns the quotas that a change uses more of, as they are to be once it is made,
	// or refuses it. seen is the resource version of the quotas that it was decided on; empty
	// if quotas have no say in the change.
	Charge(ctx context.Context, a admission.Attributes) (quotas []*corev1.ResourceQuota, seen string, err error)
}

// charged makes a write together with the quotas that it uses more of, which is the last question
// that admission asks. When another write has changed the quotas meanwhile, both are tried again.
func (r *Registry) charged(ctx context.Context, o operation, obj, old runtime.Object, write func(store.WriteOptions) error) error {
	opts, err := r.charge(ctx, o, obj, old)
	if err != nil {
		return err
	}
	if len(opts.With) > 0 {
		// This server's writes in a namespace take turns rather than overtake each other.
		release, err := r.turns.take(ctx, o.req.Namespace)
		if err != nil {
			return statusError(err, o.req.groupResource(), o.name, "charge")
		}
		defer release()
		if opts, err = r.charge(ctx, o, obj, old); err != nil {
			return err
		}
	}
	for {
		if err = write(opts); !errors.Is(err, store.ErrOvertaken) || ctx.Err() != nil {
			return err
		}
		if opts, err = r.charge(ctx, o, obj, old); err != nil {
			return err
		}
	}
}

// charge returns how a change is to be written as far as quotas go. A refusal counts only on the
// newest state: what was used a moment ago may be free by now.
func (r *Registry) charge(ctx context.Context, o operation, obj, old runtime.Object) (store.WriteOptions, error) {
	opts := store.WriteOptions{TTL: o.req.Resource.TTL}
	if r.cfg.Quota == nil {
		return opts, nil
	}
	attributes := o.attributes(ctx, obj, old)
	quotas, seen, err := r.cfg.Quota.Charge(ctx, attributes)
	if apierrors.IsForbidden(err) {
		if _, rerr := r.store.ReadIndex(ctx); rerr == nil {
			quotas, seen, err = r.cfg.Quota.Charge(ctx, attributes)
		}
	}
	if err != nil {
		return opts, statusError(err, o.req.groupResource(), o.name, "charge")
	}
	if seen == "" {
		return opts, nil
	}
	res, ok := r.Lookup(corev1.SchemeGroupVersion.WithResource("resourcequotas"))
	if !ok {
		return opts, apierrors.NewInternalError(errors.New("resource quotas are not served"))
	}
	table := r.Table(res.GroupResource)
	opts.Since = store.Since{Table: table, Namespace: o.req.Namespace}
	if opts.Since.Revision, err = parseRevision(seen); err != nil {
		return opts, err
	}
	for _, quota := range quotas {
		change := store.Change{Table: table, Key: store.Key{Namespace: quota.Namespace, Name: quota.Name}}
		if change.Expected, err = parseRevision(quota.ResourceVersion); err != nil {
			return opts, err
		}
		if change.Value, err = res.Codec().Encode(quota); err != nil {
			return opts, apierrors.NewInternalError(err)
		}
		opts.With = append(opts.With, change)
	}
	return opts, nil
}

func parseRevision(version string) (int64, error) {
	revision, err := strconv.ParseInt(version, 10, 64)
	if err != nil {
		return 0, apierrors.NewInternalError(fmt.Errorf("version of resource quotas: %w", err))
	}
	return revision, nil
}

// turns lets one write of a namespace, or of something else that has a name, at a time go on.
type turns struct {
	mu    sync.Mutex
	lanes map[string]*lane
}

// lane is what writes are under way of.
type lane struct {
	free  chan struct{} // holds one token, which whoever goes on has taken
	users int
}

func newTurns() *turns { return &turns{lanes: map[string]*lane{}} }

// take waits for a turn, at most until ctx ends; release hands it on.
func (t *turns) take(ctx context.Context, name string) (release func(), err error) {
	t.mu.Lock()
	l := t.lanes[name]
	if l == nil {
		l = &lane{free: make(chan struct{}, 1)}
		l.free <- struct{}{}
		t.lanes[name] = l
	}
	l.users++
	t.mu.Unlock()
	leave := func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if l.users--; l.users == 0 {
			delete(t.lanes, name)
		}
	}
	select {
	case <-l.free:
		return func() { l.free <- struct{}{}; leave() }, nil
	case <-ctx.Done():
		leave()
		return nil, fmt.Errorf("wait for the writes of %s before this one: %w", name, ctx.Err())
	}
}
