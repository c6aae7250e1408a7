package custom

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// Resources is where resources are served. *registry.Registry is one.
type Resources interface {
	Register(*api.Resource) error
	Unregister(schema.GroupResource)
	Lookup(schema.GroupVersionResource) (*api.Resource, bool)
	Table(schema.GroupResource) *store.Table
	ForKind(schema.GroupKind) (*api.Resource, *store.Table, bool)
}

// Config configures a Registrar.
type Config struct {
	Resources  Resources
	Converters Converters
	// Changed is called after each change of what is served, one call at a time.
	Changed func()
	Log     *slog.Logger
}

// A Registrar serves the resources of all established definitions: it follows the definitions in the store's image.
// It is safe for concurrent use.
type Registrar struct {
	cfg   Config
	table *store.Table

	// failed are definitions that could not be registered; whoever handles definitions uses it.
	failed retries

	mu sync.Mutex
	// known holds every definition that the registrar has seen, by name, whether it is served or not.
	known map[string]*registration
	// told are the revisions of those that Changed has returned for since.
	told  map[string]int64
	moved chan struct{} // closed when told changes
}

// registration is what became of one version of a definition.
type registration struct {
	revision int64 // of the definition
	// What is served, which is of an older version while the new one can't be registered; nil if nothing is.
	*definition
	resource *api.Resource
}

// NewRegistrar registers what is established now; Run goes on from there.
func NewRegistrar(cfg Config) (*Registrar, error) {
	table := cfg.Resources.Table(apiextensionsv1.Resource("customresourcedefinitions"))
	if table == nil {
		return nil, errors.New("custom resources: definitions are not served")
	}
	r := &Registrar{cfg: cfg, table: table, known: map[string]*registration{}, told: map[string]int64{}, moved: make(chan struct{})}
	r.catchUp()
	return r, nil
}

// catchUp brings what is registered to what the image holds, and returns the image's revision.
func (r *Registrar) catchUp() int64 {
	snapshot := r.table.Snapshot()
	for _, name := range r.names() {
		if _, ok := snapshot.Get(store.Key{Name: name}); !ok {
			r.handle(name, nil)
		}
	}
	snapshot.Ascend("", store.Key{}, func(e *store.Entry) bool {
		r.handle(e.Key().Name, e)
		return true
	})
	return snapshot.Revision()
}

func (r *Registrar) names() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Collect(maps.Keys(r.told))
}

// Run follows the definitions until ctx ends or the store stops.
func (r *Registrar) Run(ctx context.Context) error {
	for ctx.Err() == nil {
		since := r.catchUp()
		err := r.follow(ctx, since)
		switch {
		case errors.Is(err, store.ErrClosed), ctx.Err() != nil:
			return nil
		case !errors.Is(err, store.ErrCompacted):
			return fmt.Errorf("follow definitions of custom resources: %w", err)
		}
	}
	return nil
}

func (r *Registrar) follow(ctx context.Context, since int64) error {
	cursor, err := r.table.Watch(since)
	if err != nil {
		return err
	}
	defer cursor.Close()
	cursor.EventsOnly()
	for {
		events, err := r.next(ctx, cursor)
		if err != nil {
			return err
		}
		for _, e := range events {
			r.handle(e.Key.Name, e.Entry)
		}
		for _, name := range r.failed.take(time.Now()) {
			entry, _ := r.table.Get(store.Key{Name: name})
			r.handle(name, entry)
		}
	}
}

// next waits for events, but no longer than until what failed is due again.
func (r *Registrar) next(ctx context.Context, cursor *store.Cursor) ([]store.Event, error) {
	wait, cancel := ctx, context.CancelFunc(func() {})
	if due, ok := r.failed.next(); ok {
		wait, cancel = context.WithDeadline(ctx, due)
	}
	defer cancel()
	events, _, err := cursor.Next(wait)
	if err != nil && errors.Is(err, wait.Err()) && ctx.Err() == nil {
		return nil, nil
	}
	return events, err
}

// handle brings one definition's resource up to date. Only one goroutine calls it at a time.
func (r *Registrar) handle(name string, entry *store.Entry) {
	r.mu.Lock()
	was := r.known[name]
	r.mu.Unlock()
	seen := entry == nil && was == nil || entry != nil && was != nil && was.revision == entry.Revision()
	if seen && !r.failed.has(name) {
		return
	}
	var next *registration
	if entry != nil {
		next = r.register(entry, was)
	}
	changed, err := r.publish(was, next)
	if err != nil {
		r.failed.add(name, time.Now())
		r.cfg.Log.Error("a definition can't be served as it is, and is tried again", "definition", name, "error", err)
	} else {
		r.failed.remove(name)
	}
	r.mu.Lock()
	if next == nil {
		delete(r.known, name)
	} else {
		r.known[name] = next
	}
	r.mu.Unlock()
	if changed && r.cfg.Changed != nil {
		r.cfg.Changed()
	}
	r.tell(name, next)
}

// tell wakes those who wait for a definition: it is served, and described.
func (r *Registrar) tell(name string, next *registration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if next == nil {
		delete(r.told, name)
	} else {
		r.told[name] = next.revision
	}
	close(r.moved)
	r.moved = make(chan struct{})
}

// register decides what a version of a definition is served as. was is what its last one was served as; it may be nil.
func (r *Registrar) register(entry *store.Entry, was *registration) *registration {
	next := &registration{revision: entry.Revision()}
	obj, err := entry.Object()
	if err != nil {
		r.cfg.Log.Error("a definition can't be read, and its custom resources are not served", "definition", entry.Key().Name, "error", err)
		return next
	}
	crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition)
	if !ok || !apihelpers.IsCRDConditionTrue(crd, apiextensionsv1.Established) {
		return next
	}
	if res := r.builtin(crd); res != nil {
		r.cfg.Log.Warn("a definition has a name of a built-in resource, and is not served", "definition", crd.Name, "resource", res.GroupResource)
		return next
	}
	if was != nil && was.resource != nil && same(was.crd, crd) {
		next.definition, next.resource = was.definition, was.resource
		if (was.crd.DeletionTimestamp == nil) != (crd.DeletionTimestamp == nil) {
			d := *was.definition
			d.crd = crd
			next.definition, next.resource = &d, d.resource()
		}
		return next
	}
	d, err := newDefinition(crd, r.cfg.Converters)
	if err != nil {
		r.cfg.Log.Error("a definition can't be served", "definition", crd.Name, "error", err)
		return next
	}
	next.definition, next.resource = d, d.resource()
	return next
}

// builtin is the built-in resource that has the plural or the kind of a definition; nil if there is none.
func (r *Registrar) builtin(crd *apiextensionsv1.CustomResourceDefinition) *api.Resource {
	group, names := crd.Spec.Group, crd.Status.AcceptedNames
	if res, ok := r.cfg.Resources.Lookup(schema.GroupVersionResource{Group: group, Resource: names.Plural}); ok && res.Custom == nil {
		return res
	}
	if res, _, ok := r.cfg.Resources.ForKind(schema.GroupKind{Group: group, Kind: names.Kind}); ok && res.Custom == nil {
		return res
	}
	return nil
}

// same tells whether two versions of a definition mean the same resource.
func same(a, b *apiextensionsv1.CustomResourceDefinition) bool {
	return a.UID == b.UID && apiequality.Semantic.DeepEqual(a.Spec, b.Spec) &&
		apiequality.Semantic.DeepEqual(a.Status.AcceptedNames, b.Status.AcceptedNames)
}

// publish registers what is to be served in place of what was, and tells whether anything else is served now. On an error,
// next becomes what still is.
func (r *Registrar) publish(was, next *registration) (changed bool, err error) {
	var before, after *api.Resource
	if was != nil {
		before = was.resource
	}
	if next != nil {
		after = next.resource
	}
	if before == after {
		return false, nil
	}
	if before != nil && (after == nil || was.crd.UID != next.crd.UID) {
		// A definition of the same name that was made anew may have other objects' scope.
		r.cfg.Resources.Unregister(before.GroupResource)
		was, changed = &registration{}, true
	}
	if after == nil {
		return true, nil
	}
	if err := r.cfg.Resources.Register(after); err != nil {
		next.definition, next.resource = nil, nil
		if was != nil {
			next.definition, next.resource = was.definition, was.resource
		}
		return changed, err
	}
	return true, nil
}

// Await waits until what the image knows of a definition is served, as far as it can be, and Changed has returned for it.
func (r *Registrar) Await(ctx context.Context, name string) error {
	for {
		entry, _ := r.table.Get(store.Key{Name: name})
		r.mu.Lock()
		told, known := r.told[name]
		moved := r.moved
		r.mu.Unlock()
		if (entry != nil) == known && (entry == nil || told >= entry.Revision()) {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return fmt.Errorf("wait for definition %s: %w", name, ctx.Err())
		}
	}
}

// AwaitAll is Await for all definitions.
func (r *Registrar) AwaitAll(ctx context.Context) error {
	var names []string
	r.table.Snapshot().Ascend("", store.Key{}, func(e *store.Entry) bool {
		names = append(names, e.Key().Name)
		return true
	})
	for _, name := range append(names, r.names()...) {
		if err := r.Await(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

// Definitions are those that are served, by name.
func (r *Registrar) Definitions() []*apiextensionsv1.CustomResourceDefinition {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []*apiextensionsv1.CustomResourceDefinition
	for _, known := range r.known {
		if known.resource != nil {
			out = append(out, known.crd)
		}
	}
	slices.SortFunc(out, func(a, b *apiextensionsv1.CustomResourceDefinition) int { return cmp.Compare(a.Name, b.Name) })
	return out
}
