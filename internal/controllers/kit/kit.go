// Package kit is what every controller is made of: the types Controller, Watch and Deps, the
// functions that turn events into requests, adoption and release by owner reference, and
// batches of writes that start slowly.
//
// It is a package of its own so that the controllers' packages can import it while package
// controllers imports them.
//
// # Consistency
//
// A controller reads and writes through one client. A write through the in-process client
// returns when the local image holds it, so a reconciler always sees its own writes: nothing
// here counts "expected" creations or deletions, as controllers over a lagging informer cache
// must. What makes this hold: reads go through Deps.Client only, two requests that are equal
// never run at once, and a term of leadership begins with an image that holds all that was
// committed before. Writes of others may still arrive between read and write; they meet
// resource versions and UIDs there.
package kit

import (
	"context"
	"log/slog"

	"k8s.io/client-go/tools/record"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"barque.dev/internal/api"
	barqueclient "barque.dev/internal/client"
)

// A Controller is a reconciler and what wakes it.
type Controller struct {
	// Name is the controller's, as in `--controllers`: "deployment".
	Name string
	// Account is the service account in kube-system whose user does the controller's
	// writes; empty means Name + "-controller".
	Account string
	// Watches lists the kinds whose changes make requests.
	Watches []Watch
	// Source, which may be nil, is a further source of requests: a timer, or kinds that come
	// and go. It runs from the moment the watches have synced, and returns when ctx ends.
	Source func(ctx context.Context, enqueue func(reconcile.Request)) error
	// Reconcile brings one object's world towards its spec. It is called by up to Workers
	// goroutines, never twice at once for the same request. An error makes the request come
	// again, later each time; reconcile.TerminalError does not.
	Reconcile reconcile.Func
	// Workers is how many requests run at once; 0 means 4.
	Workers int
}

// A Watch turns the changes of one kind into requests. Requests is called in the order of the
// changes and must not block; it may read through the client, whose image holds the change.
type Watch struct {
	Kind     client.Object
	Requests func(barqueclient.Event) []reconcile.Request
}

// Kinds knows what is served, for controllers that look after objects of every kind.
type Kinds interface {
	// Resources are those that are served now.
	Resources() []*api.Resource
	// Changed returns a channel that is closed when they are others than when Changed was called.
	Changed() <-chan struct{}
}

// Deps is what controllers are made with.
type Deps struct {
	// Kinds are those of the cluster.
	Kinds Kinds
	// Client reads the shared image and writes with the fence of the context.
	Client barqueclient.Client
	// CatchUp returns once the image holds every write that was acknowledged, by whichever server, before the
	// call. What is not there may just not have come yet: who is about to destroy something for want of
	// something else catches up, and looks again. An error means that nothing is known.
	CatchUp func(context.Context) error
	// Recorder makes the recorder of events for a component such as "deployment-controller".
	Recorder func(component string) record.EventRecorder
	// Clock tells the time that goes into decisions and statuses.
	Clock clock.PassiveClock
	// Log is never nil.
	Log *slog.Logger
}
