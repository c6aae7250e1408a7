package client

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"

	"barque.dev/internal/api"
	"barque.dev/internal/store"
)

// Tables finds what is served and where it is kept. internal/apiserver/registry implements it.
type Tables interface {
	// ForKind returns the resource of a kind, and its table, which is nil for a virtual one.
	ForKind(gk schema.GroupKind) (*api.Resource, *store.Table, bool)
	// Resources returns everything that is served now.
	Resources() []*api.Resource
}

// Config configures an InProcess client.
type Config struct {
	Tables Tables
	Verbs  Verbs
	// Scheme knows the types that callers use; nil is that of the built-in kinds.
	Scheme *runtime.Scheme
	// User is who writes; nil leaves that to the context, and the server itself by default.
	User user.Info
	// FieldManager names the writer in managed fields when a call does not.
	FieldManager string
	// Log may be nil.
	Log *slog.Logger
}

// InProcess is a client that reads the store's shared image and writes through the API server's
// verbs, without a socket. Reads see whatever the image holds at the moment: a write of this
// server's own is visible as soon as it returned. It is safe for concurrent use.
type InProcess struct {
	cfg Config
	// lists are what is known of the Go types of lists, by reflect.Type; see listType.
	lists *sync.Map
}

var _ Client = (*InProcess)(nil)

// NewInProcess returns a client of the server that it runs in.
func NewInProcess(cfg Config) *InProcess {
	if cfg.Scheme == nil {
		cfg.Scheme = api.Scheme()
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	return &InProcess{cfg: cfg, lists: &sync.Map{}}
}

// As returns a client that writes as another user.
func (c *InProcess) As(u user.Info) *InProcess {
	cfg := c.cfg
	cfg.User = u
	return &InProcess{cfg: cfg, lists: c.lists}
}

// WithFieldManager returns a client whose writes are recorded under another name.
func (c *InProcess) WithFieldManager(name string) *InProcess {
	cfg := c.cfg
	cfg.FieldManager = name
	return &InProcess{cfg: cfg, lists: c.lists}
}

// Controller is the identity of a stock controller: the service account of its name in
// kube-system.
func Controller(name string) user.Info {
	return &user.DefaultInfo{
		Name:   "system:serviceaccount:kube-system:" + name,
		Groups: []string{"system:serviceaccounts", "system:serviceaccounts:kube-system", user.AllAuthenticated},
	}
}

// Component is the identity of a stock component, such as user.KubeScheduler or
// user.KubeControllerManager.
func Component(name string) user.Info {
	return &user.DefaultInfo{Name: name, Groups: []string{user.AllAuthenticated}}
}

// Scheme implements client.Client.
func (c *InProcess) Scheme() *runtime.Scheme { return c.cfg.Scheme }

// GroupVersionKindFor implements client.Client.
func (c *InProcess) GroupVersionKindFor(obj runtime.Object) (schema.GroupVersionKind, error) {
	return apiutil.GVKForObject(obj, c.cfg.Scheme)
}

// IsObjectNamespaced implements client.Client.
func (c *InProcess) IsObjectNamespaced(obj runtime.Object) (bool, error) {
	gvk, err := c.GroupVersionKindFor(obj)
	if err != nil {
		return false, err
	}
	res, _, ok := c.cfg.Tables.ForKind(gvk.GroupKind())
	if !ok {
		return false, noKind(gvk)
	}
	return res.Namespaced, nil
}

// RESTMapper returns a mapper of what is served at the moment.
func (c *InProcess) RESTMapper() meta.RESTMapper {
	served := c.cfg.Tables.Resources()
	var versions []schema.GroupVersion
	for _, res := range served {
		if len(res.Served) > 0 {
			versions = append(versions, res.Preferred())
		}
	}
	mapper := meta.NewDefaultRESTMapper(versions)
	for _, res := range served {
		scope := meta.RESTScope(meta.RESTScopeRoot)
		if res.Namespaced {
			scope = meta.RESTScopeNamespace
		}
		for _, version := range res.Served {
			gv := schema.GroupVersion{Group: res.Group, Version: version}
			mapper.AddSpecific(gv.WithKind(res.Kind), gv.WithResource(res.Resource), gv.WithResource(res.Singular), scope)
		}
	}
	return mapper
}

func noKind(gvk schema.GroupVersionKind) error {
	return &meta.NoKindMatchError{GroupKind: gvk.GroupKind(), SearchedVersions: []string{gvk.Version}}
}

// kept finds where objects of a kind are kept.
func (c *InProcess) kept(gvk schema.GroupVersionKind) (*api.Resource, *store.Table, error) {
	res, table, ok := c.cfg.Tables.ForKind(gvk.GroupKind())
	if !ok {
		return nil, nil, noKind(gvk)
	}
	if table == nil {
		return nil, nil, apierrors.NewMethodNotSupported(res.GroupResource, "get")
	}
	return res, table, nil
}

// Get copies an object into obj. What obj points to is shared: see the package.
func (c *InProcess) Get(_ context.Context, key client.ObjectKey, obj client.Object, _ ...client.GetOption) error {
	gvk, err := c.GroupVersionKindFor(obj)
	if err != nil {
		return err
	}
	res, table, err := c.kept(gvk)
	if err != nil {
		return err
	}
	k := store.Key{Name: key.Name}
	if res.Namespaced {
		k.Namespace = key.Namespace
	}
	entry, ok := table.Get(k)
	if !ok {
		return apierrors.NewNotFound(res.GroupResource, key.Name)
	}
	shared, err := entry.Object()
	if err != nil {
		return fmt.Errorf("read %s %s: %w", res.GroupResource, key, err)
	}
	return copyInto(res, shared, gvk, obj)
}

// identify puts the client's user and name into a write's context.
func (c *InProcess) identify(ctx context.Context) context.Context {
	if c.cfg.User != nil {
		ctx = request.WithUser(ctx, c.cfg.User)
	}
	return ctx
}

// target names what a write acts on.
func (c *InProcess) target(obj client.Object, subresource string) (Target, error) {
	gvk, err := c.GroupVersionKindFor(obj)
	if err != nil {
		return Target{}, err
	}
	res, _, ok := c.cfg.Tables.ForKind(gvk.GroupKind())
	if !ok {
		return Target{}, noKind(gvk)
	}
	t := Target{Resource: res.GVR(gvk.Version), Subresource: subresource, Name: obj.GetName()}
	if res.Namespaced {
		t.Namespace = obj.GetNamespace()
	}
	return t, nil
}
