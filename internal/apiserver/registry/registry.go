// Package registry is the API server without HTTP: the verbs on every resource, over the store.
//
// A write is one transaction: field management, mutating admission, the resource's rules
// (package api), validating admission, then a compare-and-swap in the store; when the object
// changed in between, all of it runs again on the newer version. Reads come from the store's
// shared image, behind a read-index barrier when they must be consistent. What a request means
// follows kube-apiserver to the letter, down to the bytes that are kept.
//
// The context of a request carries its user (k8s.io/apiserver/pkg/endpoints/request), a warning
// recorder where warnings are wanted, and the fence of a leader (store.WithFence). Every error
// is a *apierrors.StatusError.
package registry

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilnet "k8s.io/apimachinery/pkg/util/net"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/authorization/authorizer"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// A Request says what a verb acts on.
type Request struct {
	Resource *api.Resource
	// Version is the version that the client speaks; "" is the storage version.
	Version     string
	Subresource string
	Namespace   string
	Name        string
}

// A Result is the outcome of a verb.
type Result struct {
	// Entry is the version in the store that the result is, if it is one.
	Entry *store.Entry
	// Object is the result otherwise (dry runs, virtual resources, scale, statuses). It may
	// be of any version that converts to the request's. It is shared: do not change it.
	Object runtime.Object
}

// Get returns the result as an object of some version of its kind.
func (r Result) Get() (runtime.Object, error) {
	if r.Entry != nil {
		return r.Entry.Object()
	}
	return r.Object, nil
}

// A Handler creates something that is not kept, and returns the answer.
type Handler func(ctx context.Context, r Request, obj runtime.Object) (runtime.Object, error)

// A Guard refuses a change for reasons of its own, after validation and before the store. old
// is nil for a creation. Both are of the storage version and read-only.
type Guard func(ctx context.Context, r Request, obj, old runtime.Object) error

// Config configures a Registry.
type Config struct {
	Store *store.Store
	// Admission lets objects in; nil lets everything in. Mutating plugins see objects of the
	// request's version, validating ones of the storage version.
	Admission admission.Interface
	// Authorizer answers whether PUT or apply may create, and what rules ask beyond the
	// request; nil allows.
	Authorizer authorizer.Authorizer
	// ServiceCIDRs are the ranges of cluster IPs, one or one of each family, the primary
	// family first. They are kept as the ServiceCIDR "kubernetes".
	ServiceCIDRs []netip.Prefix
	// ServerPort is the port that the API servers listen on, for the Service "kubernetes"; 0
	// is 6443.
	ServerPort int32
	// NodePortRange is where node ports come from.
	NodePortRange utilnet.PortRange
	// Indexes are kept by the store beside those of the resources themselves, by name.
	Indexes map[schema.GroupResource]map[string]store.IndexFunc
	// Transformer returns what encrypts a resource at rest, or nil; it may itself be nil. It is asked
	// whenever a resource comes to be served.
	Transformer func(schema.GroupResource) store.Transformer
	// Virtual creates what is not kept: "tokenreviews.authentication.k8s.io", or
	// "serviceaccounts/token" for a subresource.
	Virtual map[string]Handler
	// Quota holds changes to quotas after everything else has let them in; nil charges nothing.
	Quota Ledger
	// Guards are asked before each creation and change of a resource.
	Guards map[schema.GroupResource]Guard
	Log    *slog.Logger
}

// Registry serves the verbs. It is safe for concurrent use.
type Registry struct {
	cfg     Config
	log     *slog.Logger
	store   *store.Store
	lookups *api.Lookups
	fields  *fieldManagers
	ports   *nodePorts
	ips     *clusterIPs
	turns   *turns
	// abandoned is what Reclaim has seen.
	abandoned abandoned

	// changing serialises changes of what is served. It is taken before mu, and held while etcd is read.
	changing  sync.Mutex
	mu        sync.RWMutex
	resources map[schema.GroupResource]*api.Resource
	kinds     map[schema.GroupKind]*api.Resource
	tables    map[string]*store.Table // by prefix
	changed   chan struct{}           // closed when a resource comes, goes or changes

	// absent is the table of resources that went while a request for them was under way.
	absent *store.Table
}

// New registers every built-in resource with the store.
func New(cfg Config) (*Registry, error) {
	r := &Registry{
		cfg: cfg, log: cfg.Log, store: cfg.Store, turns: newTurns(),
		resources: map[schema.GroupResource]*api.Resource{},
		kinds:     map[schema.GroupKind]*api.Resource{},
		tables:    map[string]*store.Table{},
		changed:   make(chan struct{}),
		absent:    cfg.Store.Absent(),
	}
	if r.log == nil {
		r.log = slog.New(slog.DiscardHandler)
	}
	r.cfg.Admission = remarked(cfg.Admission)
	r.fields = newFieldManagers()
	r.lookups = &api.Lookups{Authorizer: cfg.Authorizer, Get: r.lookupObject}
	for _, res := range api.Resources() {
		if err := r.Register(res); err != nil {
			return nil, err
		}
	}
	ranges := api.RangeAllocations()
	table, err := r.table(ranges)
	if err != nil {
		return nil, err
	}
	r.ports = newNodePorts(cfg.NodePortRange, ranges, table)
	if r.ips, err = newClusterIPs(r, cfg.ServiceCIDRs); err != nil {
		return nil, err
	}
	return r, nil
}

// Register starts to serve a resource, in place of the one that has its name. Resources come and go while the registry
// serves. Objects that another codec decoded are decoded anew. A kind is one resource's, and a custom resource never takes
// the place of a built-in one.
func (r *Registry) Register(res *api.Resource) error {
	r.changing.Lock()
	defer r.changing.Unlock()
	if err := r.mayRegister(res); err != nil {
		return fmt.Errorf("register %s: %w", res.GroupResource, err)
	}
	if !res.Virtual() {
		if was, ok := r.Lookup(res.GVR("")); ok && was.Namespaced != res.Namespaced {
			r.unregister(res.GroupResource) // its keys are others
		}
		if _, err := r.table(res); err != nil {
			return err
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if !res.Virtual() {
		if err := r.decodeAnew(res); err != nil {
			return fmt.Errorf("register %s: %w", res.GroupResource, err)
		}
	}
	r.forget(res.GroupResource)
	r.resources[res.GroupResource] = res
	r.kinds[schema.GroupKind{Group: res.Group, Kind: res.Kind}] = res
	r.announce()
	return nil
}

// mayRegister returns why a resource can't be served, beside those that are.
func (r *Registry) mayRegister(res *api.Resource) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	kind := schema.GroupKind{Group: res.Group, Kind: res.Kind}
	if owner := r.kinds[kind]; owner != nil && owner.GroupResource != res.GroupResource {
		return fmt.Errorf("kind %s is that of %s", kind, owner.GroupResource)
	}
	if was := r.resources[res.GroupResource]; was != nil && was.Custom == nil && res.Custom != nil {
		return errors.New("it is a built-in resource")
	}
	return nil
}

// Unregister stops serving a resource that no other shares its objects with. What is kept of it stays in etcd.
func (r *Registry) Unregister(gr schema.GroupResource) {
	r.changing.Lock()
	defer r.changing.Unlock()
	r.unregister(gr)
}

func (r *Registry) unregister(gr schema.GroupResource) {
	r.mu.Lock()
	defer r.mu.Unlock()
	res := r.forget(gr)
	if res == nil {
		return
	}
	if t := r.tables[res.Prefix]; t != nil {
		delete(r.tables, res.Prefix)
		r.store.Unregister(t)
	}
	r.announce()
}

// forget takes a resource and its kind out of what is served.
func (r *Registry) forget(gr schema.GroupResource) *api.Resource {
	res := r.resources[gr]
	if res == nil {
		return nil
	}
	delete(r.resources, gr)
	if gk := (schema.GroupKind{Group: res.Group, Kind: res.Kind}); r.kinds[gk] == res {
		delete(r.kinds, gk)
	}
	return res
}

func (r *Registry) announce() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// Changed returns a channel that is closed when the resources that are served are no longer those that they
// were when Changed was called.
func (r *Registry) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.changed
}

// decodeAnew replaces the table of a resource that is about to be served in place of one with another codec.
func (r *Registry) decodeAnew(res *api.Resource) error {
	was := r.resources[res.GroupResource]
	if was == nil || was.Codec() == res.Codec() {
		return nil // another view of the same objects, or nothing about them changed
	}
	next, err := r.store.Replace(r.tables[res.Prefix], r.schemaOf(res))
	if err != nil {
		return err
	}
	r.tables[res.Prefix] = next
	return nil
}

// table returns the resource's table, registered with the store at first use. That reads from etcd, which requests
// for other resources don't wait for. Who calls it changes what is served, alone.
func (r *Registry) table(res *api.Resource) (*store.Table, error) {
	r.mu.RLock()
	t, ok := r.tables[res.Prefix]
	r.mu.RUnlock()
	if ok {
		return t, nil
	}
	t, err := r.store.Register(r.schemaOf(res))
	if err != nil {
		return nil, fmt.Errorf("register %s: %w", res.GroupResource, err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.tables[res.Prefix] = t
	return t, nil
}

// schemaOf is how the store keeps a resource.
func (r *Registry) schemaOf(res *api.Resource) store.Schema {
	indexes := maps.Clone(r.cfg.Indexes[res.GroupResource])
	if indexes == nil {
		indexes = map[string]store.IndexFunc{}
	}
	maps.Copy(indexes, res.Indexes)
	out := store.Schema{
		Prefix: res.KeyPrefix(), Namespaced: res.Namespaced, Decode: res.Codec().Decode, Indexes: indexes,
	}
	if r.cfg.Transformer != nil {
		out.Transform = r.cfg.Transformer(res.GroupResource)
	}
	return out
}

// Kept returns the tables of everything that is kept, in no order.
func (r *Registry) Kept() []*store.Table {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return slices.Collect(maps.Values(r.tables))
}

// tableOf is the table that a request's objects are in.
func (r *Registry) tableOf(req Request) *store.Table {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if t, ok := r.tables[req.Resource.Prefix]; ok {
		return t
	}
	return r.absent
}

// Resources returns what is served now, in no order.
func (r *Registry) Resources() []*api.Resource {
	r.mu.RLock()
	defer r.mu.RUnlock()
	out := make([]*api.Resource, 0, len(r.resources))
	for _, res := range r.resources {
		out = append(out, res)
	}
	return out
}

// Lookup returns a resource as a version sees it, if it is served in that. An empty version matches any.
func (r *Registry) Lookup(gvr schema.GroupVersionResource) (*api.Resource, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	res, ok := r.resources[gvr.GroupResource()]
	if !ok || (gvr.Version != "" && !res.Serves(gvr.Version)) {
		return nil, false
	}
	return res.In(gvr.Version), true
}

// Table returns the table of a kept resource; nil if there is none.
func (r *Registry) Table(gr schema.GroupResource) *store.Table {
	r.mu.RLock()
	defer r.mu.RUnlock()
	if res, ok := r.resources[gr]; ok {
		return r.tables[res.Prefix]
	}
	return nil
}

// ForKind returns the resource of a kind, and its table, which is nil for a virtual one.
func (r *Registry) ForKind(gk schema.GroupKind) (*api.Resource, *store.Table, bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	res, ok := r.kinds[gk]
	if !ok {
		return nil, nil, false
	}
	return res, r.tables[res.Prefix], true
}

// lookupObject reads for rules that have to know other objects.
func (r *Registry) lookupObject(ctx context.Context, gr schema.GroupResource, name string) (runtime.Object, error) {
	res, ok := r.Lookup(gr.WithVersion(""))
	if !ok {
		return nil, notFound(gr, name)
	}
	entry, err := r.find(ctx, Request{Resource: res, Name: name})
	if err != nil {
		return nil, err
	}
	return entry.Object()
}
