package custom

import (
	"cmp"
	"errors"
	"log/slog"
	"slices"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/follow"
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
	*follow.Follower
	cfg Config

	mu sync.Mutex
	// known holds every definition that the registrar has seen, by name, whether it is served or not.
	known map[string]*registration
}

// registration is what became of one version of a definition: what is served, which is of an older version while the
// new one can't be registered; nil if nothing is.
type registration struct {
	*definition
	resource *api.Resource
}

// NewRegistrar registers what is established now; Run goes on from there. Await waits until what the image knows of a
// definition is served, as far as it can be, and Changed has returned for it.
func NewRegistrar(cfg Config) (*Registrar, error) {
	table := cfg.Resources.Table(apiextensionsv1.Resource("customresourcedefinitions"))
	if table == nil {
		return nil, errors.New("custom resources: definitions are not served")
	}
	r := &Registrar{cfg: cfg, known: map[string]*registration{}}
	r.Follower = follow.New(follow.Config{Table: table, What: "definitions of custom resources", Handle: r.handle})
	r.CatchUp()
	return r, nil
}

// handle brings one definition's resource up to date. Only one goroutine calls it at a time.
func (r *Registrar) handle(name string, entry *store.Entry) error {
	r.mu.Lock()
	was := r.known[name]
	r.mu.Unlock()
	var next *registration
	if entry != nil {
		next = r.register(entry, was)
	}
	changed, err := r.publish(was, next)
	if err != nil {
		r.cfg.Log.Error("a definition can't be served as it is, and is tried again", "definition", name, "error", err)
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
	return err
}

// register decides what a version of a definition is served as. was is what its last one was served as; it may be nil.
func (r *Registrar) register(entry *store.Entry, was *registration) *registration {
	next := &registration{}
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
