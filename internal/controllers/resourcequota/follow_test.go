package resourcequota

import (
	"context"
	"testing"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
)

// A quota of what nobody serves yet is counted once somebody does.
func TestQuotasAreCountedWhenKindsCome(t *testing.T) {
	quota := reconcile.Request{NamespacedName: types.NamespacedName{Namespace: "n", Name: "q"}}
	changes := make(chan struct{})
	var next <-chan struct{} = changes
	f := &follow{
		all: func(context.Context) []reconcile.Request { return []reconcile.Request{quota} },
		kinds: func() <-chan struct{} {
			now := next
			next = nil // what comes after does not change
			return now
		},
	}
	ctx, cancel := context.WithCancel(t.Context())
	enqueued, ended := make(chan reconcile.Request), make(chan error)
	go func() { ended <- f.run(ctx, func(r reconcile.Request) { enqueued <- r }) }()
	close(changes)
	if got := <-enqueued; got != quota {
		t.Errorf("%s is counted, want %s", got, quota)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}
