package gc

import (
	"context"
	"errors"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/controllertest"
	"barque.dev/internal/controllers/kit"
)

// damaged is a cluster where the object of one name can't be read: followers pass over it, and reads of it fail.
type damaged struct {
	barqueclient.Client
	name string

	mu   sync.Mutex
	gone bool
}

var errDamaged = errors.New("damaged")

func (d *damaged) Follow(ctx context.Context, kind client.Object, synced func(), handle func(barqueclient.Event)) error {
	return d.Client.Follow(ctx, kind, synced, func(e barqueclient.Event) {
		if e.Object().GetName() != d.name {
			handle(e)
		}
	})
}

func (d *damaged) Get(ctx context.Context, key client.ObjectKey, obj client.Object, opts ...client.GetOption) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if key.Name == d.name && !d.gone {
		return errDamaged
	}
	return d.Client.Get(ctx, key, obj, opts...)
}

// Whoever follows passes over what can't be read. An owner that nobody has seen for that reason is not gone: its
// dependents stay until it is known to be.
func TestOwnerThatCannotBeRead(t *testing.T) {
	owner := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "owner", UID: "owner"}}
	dependent := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "dependent", UID: "dependent",
		OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "ConfigMap", Name: "owner", UID: "owner"}}}}
	w := controllertest.New(t, owner, dependent)
	cluster := &damaged{Client: w, name: "owner"}
	deps := w.Deps()
	deps.Client = cluster
	c := New(deps)

	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	woken := make(chan reconcile.Request, 10)
	go func() { done <- c.Source(ctx, func(r reconcile.Request) { woken <- r }) }()
	defer func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	request := <-woken
	if request != (reconcile.Request{NamespacedName: types.NamespacedName{Name: "dependent"}}) {
		t.Fatalf("asked for %v", request)
	}
	if _, err := c.Reconcile(t.Context(), request); !errors.Is(err, errDamaged) {
		t.Errorf("an owner that can't be read: %v", err) // the error makes the request come again
	}
	if err := w.Get(t.Context(), kit.RequestFor(dependent).NamespacedName, &corev1.ConfigMap{}); err != nil {
		t.Fatalf("the dependent: %v", err)
	}
	if err := w.Delete(t.Context(), owner); err != nil {
		t.Fatal(err)
	}
	cluster.mu.Lock()
	cluster.gone = true
	cluster.mu.Unlock()
	if _, err := c.Reconcile(t.Context(), request); err != nil {
		t.Errorf("an owner that is gone: %v", err)
	}
	if err := w.Get(t.Context(), kit.RequestFor(dependent).NamespacedName, &corev1.ConfigMap{}); !apierrors.IsNotFound(err) {
		t.Errorf("the dependent is still there: %v", err)
	}
}
