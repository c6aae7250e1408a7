package gc

import (
	"context"
	"sync"
	"testing"
	"testing/synctest"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

// changing is a cluster whose kinds change.
type changing struct {
	mu      sync.Mutex
	served  []*api.Resource
	changed chan struct{}
}

func (c *changing) Resources() []*api.Resource {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.served
}

func (c *changing) Changed() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changed
}

func (c *changing) change() {
	c.mu.Lock()
	defer c.mu.Unlock()
	close(c.changed)
	c.changed = make(chan struct{})
}

// refusing is a client that finds nobody who serves a kind.
type refusing struct {
	barqueclient.Client
	asked int
	began func() // called as soon as it is asked
}

func (r *refusing) Follow(ctx context.Context, _ client.Object, _ func(), _ func(barqueclient.Event)) error {
	r.asked++
	if r.asked > 10 {
		<-ctx.Done() // whoever asks without end is let off
		return ctx.Err()
	}
	r.began()
	return &meta.NoKindMatchError{GroupKind: schema.GroupKind{Group: "example.com", Kind: "Ship"}}
}

// TestKindsThatCannotBeFollowed: one that is listed but can't be found by its kind is tried again when what is served has
// changed, and not before.
func TestKindsThatCannotBeFollowed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		kinds := &changing{changed: make(chan struct{}), served: []*api.Resource{{
			GroupResource: schema.GroupResource{Group: "example.com", Resource: "ships"}, Kind: "Ship", Prefix: "example.com/ships",
			Kept: schema.GroupVersion{Group: "example.com", Version: "v1"}, Verbs: []string{"delete", "watch"}, Custom: &api.Custom{},
		}}}
		cluster := &refusing{began: func() {}}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		c := New(kit.Deps{Kinds: kinds, Client: cluster})
		go func() { done <- c.Source(ctx, func(reconcile.Request) {}) }()
		asked := func(about string, times int) {
			t.Helper()
			if synctest.Wait(); cluster.asked != times {
				t.Errorf("%s: asked %d times", about, cluster.asked)
			}
		}
		asked("at the start", 1)
		kinds.change()
		asked("after a change", 2)
		cluster.began = sync.OnceFunc(kinds.change)
		kinds.change()
		asked("after a change in the midst of it", 4)
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
