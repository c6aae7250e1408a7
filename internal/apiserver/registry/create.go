package registry

import (
	"context"
	"fmt"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"

	"barque.dev/internal/store"
)

const (
	// nameAttempts is how often a generated name that is taken is drawn again.
	nameAttempts = 8
	// maxObject bounds an encoded object in bytes: etcd refuses larger requests.
	maxObject = 1<<20 + 1<<19 - 4096
)

// Create makes a new object, or does what creating a subresource or virtual resource means. obj is
// of the request's version, defaulted by its decoder, and belongs to the registry from now on.
func (r *Registry) Create(ctx context.Context, req Request, obj runtime.Object, opts *metav1.CreateOptions) (Result, error) {
	if !req.allows("create") {
		return Result{}, methodNotSupported(req, "create")
	}
	if opts == nil {
		opts = &metav1.CreateOptions{}
	}
	if errs := metav1validation.ValidateCreateOptions(opts); len(errs) > 0 {
		return Result{}, apierrors.NewInvalid(schema.GroupKind{Group: metav1.GroupName, Kind: "CreateOptions"}, "", errs)
	}
	opts.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("CreateOptions"))
	ctx = r.context(ctx, req, "create")
	if req.Subresource != "" || req.Resource.Virtual() {
		return r.createAction(ctx, req, obj, opts)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return Result{}, apierrors.NewBadRequest(err.Error())
	}
	rest.WipeObjectMetaSystemFields(m)
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForScope(req.Namespace, req.Resource.Namespaced), m); err != nil {
		return Result{}, err
	}
	if req.Name == "" {
		req.Name = m.GetName()
	}
	if obj, err = normalize(req, obj); err != nil {
		return Result{}, err
	}
	dedupOwners(ctx, obj, false)
	if obj, err = r.manageCreate(ctx, req, obj, opts.FieldManager); err != nil {
		return Result{}, err
	}
	o := operation{req: req, op: admission.Create, options: opts, dryRun: isDryRun(opts.DryRun), name: req.Name}
	if err := r.mutate(ctx, o, obj, nil); err != nil {
		return Result{}, err
	}
	if obj, err = req.Resource.Codec().Convert(obj, req.Resource.Storage); err != nil {
		return Result{}, apierrors.NewBadRequest(err.Error())
	}
	return r.createNamed(ctx, o, obj)
}

// normalize brings obj into the form that its version takes after a trip through the hub
// version: fields with two spellings have both. Field managers see that form.
func normalize(req Request, obj runtime.Object) (runtime.Object, error) {
	out, err := req.Resource.Codec().Normalize(obj, req.gv())
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	return out, nil
}

// manageCreate records who set the fields of a new object.
func (r *Registry) manageCreate(ctx context.Context, req Request, obj runtime.Object, fieldManager string) (runtime.Object, error) {
	fields, err := r.fields.of(req)
	if err != nil {
		return nil, err
	}
	who := manager(ctx, fieldManager)
	if fields.Create(obj, who) {
		return obj, nil
	}
	empty, err := req.Resource.Codec().New(req.gv())
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	return fields.UpdateNoErrors(empty, obj, who), nil
}

// createNamed draws names until one is free, when the name is to be generated.
func (r *Registry) createNamed(ctx context.Context, o operation, obj runtime.Object) (Result, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return Result{}, apierrors.NewBadRequest(err.Error())
	}
	if m.GetName() != "" || m.GetGenerateName() == "" {
		return r.createOnce(ctx, o, obj)
	}
	var result Result
	for range nameAttempts {
		result, err = r.createOnce(ctx, o, obj.DeepCopyObject())
		if !apierrors.IsAlreadyExists(err) {
			break
		}
	}
	return result, err
}

// createOnce prepares, validates and keeps a new object of the storage version.
func (r *Registry) createOnce(ctx context.Context, o operation, obj runtime.Object) (Result, error) {
	req := o.req
	m, err := meta.Accessor(obj)
	if err != nil {
		return Result{}, apierrors.NewBadRequest(err.Error())
	}
	rest.FillObjectMetaSystemFields(m)
	if m.GetGenerateName() != "" && m.GetName() == "" {
		m.SetName(req.Resource.Rules.GenerateName(m.GetGenerateName()))
	}
	finish, err := r.begin(ctx, req, obj, nil, o.dryRun)
	if err != nil {
		return Result{}, err
	}
	became := refused
	defer func() { finish(context.WithoutCancel(ctx), became) }()

	stored, err := req.Resource.Rules.PrepareCreate(ctx, obj)
	if err != nil {
		return Result{}, err
	}
	if err := r.validate(ctx, o, stored, nil); err != nil {
		return Result{}, err
	}
	if m, err = meta.Accessor(stored); err != nil {
		return Result{}, apierrors.NewInternalError(err)
	}
	key := req.keyOf(m.GetName())
	value, err := encode(req, stored)
	if err != nil {
		return Result{}, err
	}
	table := r.tableOf(req)
	if o.dryRun {
		if _, ok := table.Get(key); ok {
			return Result{}, r.alreadyExists(req, key, m.GetGenerateName())
		}
		if _, err := r.charge(ctx, o, stored, nil); err != nil {
			return Result{}, err
		}
		return asRead(req, value, m)
	}
	var entry *store.Entry
	err = r.charged(ctx, o, stored, nil, func(opts store.WriteOptions) (err error) {
		entry, err = table.Create(ctx, key, value, opts)
		became = fateOf(err)
		return err
	})
	if err != nil {
		if err = statusError(err, req.groupResource(), key.Name, "create"); apierrors.IsAlreadyExists(err) {
			err = r.alreadyExists(req, key, m.GetGenerateName())
		}
		return Result{}, err
	}
	return Result{Entry: entry}, nil
}

// asRead is the result of a dry run: what would be read after value had been kept, with its defaults, also where rules took
// them away. It has the resource version of what was there before.
func asRead(req Request, value []byte, before metav1.Object) (Result, error) {
	obj, err := req.Resource.Codec().Decode(value, 0)
	if err != nil {
		return Result{}, apierrors.NewInternalError(fmt.Errorf("read what a dry run made: %w", err))
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return Result{}, apierrors.NewInternalError(err)
	}
	m.SetResourceVersion(before.GetResourceVersion())
	return Result{Object: obj}, nil
}

// alreadyExists explains a name that is taken.
func (r *Registry) alreadyExists(req Request, key store.Key, generated string) error {
	err := apierrors.NewAlreadyExists(req.groupResource(), key.Name)
	if generated != "" {
		err = apierrors.NewGenerateNameConflict(req.groupResource(), key.Name, 1)
	}
	if entry, ok := r.tableOf(req).Get(key); ok {
		if m := accessor(entry); m != nil && m.GetDeletionTimestamp() != nil {
			err.ErrStatus.Message = "object is being deleted: " + err.ErrStatus.Message
		}
	}
	return err
}

// accessor returns the metadata of an entry's object; nil if it cannot be decoded.
func accessor(entry *store.Entry) metav1.Object {
	obj, err := entry.Object()
	if err != nil {
		return nil
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil
	}
	return m
}

// encode makes the bytes to keep. An object that is too large for etcd gives up its managed
// fields first: they are what an object can best do without.
func encode(req Request, obj runtime.Object) ([]byte, error) {
	value, err := req.Resource.Codec().Encode(obj)
	if err != nil {
		return nil, apierrors.NewInternalError(err)
	}
	if len(value) <= maxObject {
		return value, nil
	}
	if m, err := meta.Accessor(obj); err == nil && len(m.GetManagedFields()) > 0 {
		m.SetManagedFields(nil)
		if value, err = req.Resource.Codec().Encode(obj); err != nil {
			return nil, apierrors.NewInternalError(err)
		}
	}
	if len(value) > maxObject {
		return nil, apierrors.NewRequestEntityTooLargeError(fmt.Sprintf("%s of %d bytes, limit is %d", req.Resource.Kind, len(value), maxObject))
	}
	return value, nil
}

// createAction does what creating a subresource or a virtual resource means.
func (r *Registry) createAction(ctx context.Context, req Request, obj runtime.Object, opts *metav1.CreateOptions) (Result, error) {
	o := operation{req: req, op: admission.Create, options: opts, dryRun: isDryRun(opts.DryRun), name: req.Name}
	if m, err := meta.Accessor(obj); err == nil {
		if o.name == "" {
			o.name = m.GetName()
		}
		if !keepsMeta(req) {
			rest.WipeObjectMetaSystemFields(m)
		}
		if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForScope(req.Namespace, req.Resource.Namespaced), m); err != nil {
			return Result{}, err
		}
	}
	if err := r.mutate(ctx, o, obj, nil); err != nil {
		return Result{}, err
	}
	name := req.Resource.Resource + "/" + req.Subresource
	if req.Subresource == "" {
		name = req.Resource.GroupResource.String()
	}
	if handler, ok := r.cfg.Virtual[name]; ok {
		if err := r.validate(ctx, o, obj, nil); err != nil {
			return Result{}, err
		}
		out, err := handler(ctx, req, obj)
		return Result{Object: out}, statusError(err, req.groupResource(), req.Name, "create")
	}
	switch {
	case name == "pods/binding" || name == "bindings":
		return r.bind(ctx, o, obj)
	case name == "pods/eviction":
		return r.evict(ctx, o, obj)
	default:
		return Result{}, methodNotSupported(req, "create")
	}
}

// keepsMeta tells whether UID and resource version of an action are its preconditions.
func keepsMeta(req Request) bool {
	if req.Resource.Resource == "serviceaccounts" && req.Subresource == "token" {
		return true
	}
	return slices.Contains([]string{"binding", ""}, req.Subresource) && (req.Resource.Resource == "pods" || req.Resource.Resource == "bindings")
}
