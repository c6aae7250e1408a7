package registry

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metav1validation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/registry/rest"
)

func kindOf(group, kind string) schema.GroupKind { return schema.GroupKind{Group: group, Kind: kind} }

// Update replaces an object, or the part of it that a subresource shows. created tells that it
// did not exist before. obj is of the request's version, defaulted by its decoder; it is not
// changed.
func (r *Registry) Update(ctx context.Context, req Request, obj runtime.Object, opts *metav1.UpdateOptions) (Result, bool, error) {
	if !req.allows("update") {
		return Result{}, false, methodNotSupported(req, "update")
	}
	if opts == nil {
		opts = &metav1.UpdateOptions{}
	}
	if errs := metav1validation.ValidateUpdateOptions(opts); len(errs) > 0 {
		return Result{}, false, apierrors.NewInvalid(kindOf(metav1.GroupName, "UpdateOptions"), "", errs)
	}
	opts.SetGroupVersionKind(metav1.SchemeGroupVersion.WithKind("UpdateOptions"))
	ctx = r.context(ctx, req, "update")
	sent, uid, err := prepareUpdate(ctx, req, obj)
	if err != nil {
		return Result{}, false, err
	}
	v, err := r.viewOf(req)
	if err != nil {
		return Result{}, false, err
	}
	fields, err := r.fields.of(req)
	if err != nil {
		return Result{}, false, err
	}
	c := change{
		op:  operation{req: req, op: admission.Update, options: opts, dryRun: isDryRun(opts.DryRun), name: req.Name},
		uid: uid, view: v, creates: req.Subresource == "" && req.Resource.Rules.AllowCreateOnUpdate(ctx),
		make: func(ctx context.Context, live runtime.Object) (_ runtime.Object, err error) {
			made := sent
			if sent = nil; made == nil { // the second attempt
				if made, _, err = prepareUpdate(ctx, req, obj); err != nil {
					return nil, err
				}
			}
			return fields.UpdateNoErrors(live, made, manager(ctx, opts.FieldManager)), nil
		},
	}
	result, created, err := r.modify(ctx, c)
	if err != nil {
		return Result{}, false, err
	}
	return shown(v, result, created)
}

// prepareUpdate makes what an attempt at an update begins with: a copy of what the client sent, in the form that its version
// takes, and its UID, which is a precondition.
func prepareUpdate(ctx context.Context, req Request, sent runtime.Object) (runtime.Object, types.UID, error) {
	obj := sent.DeepCopyObject()
	m, err := checkObject(req, obj)
	if err != nil {
		return nil, "", err
	}
	uid := m.GetUID()
	if req.Subresource != "scale" {
		if obj, err = normalize(req, obj); err != nil {
			return nil, "", err
		}
	}
	dedupOwners(ctx, obj, false)
	return obj, uid, nil
}

// shown turns the result of a change into what the request's clients get.
func shown(v view, result Result, created bool) (Result, bool, error) {
	if _, scaled := v.(scaleView); !scaled {
		return result, created, nil
	}
	obj, err := result.Get()
	if err != nil {
		return Result{}, false, apierrors.NewInternalError(err)
	}
	out, err := v.show(obj)
	if err != nil {
		return Result{}, false, apierrors.NewInternalError(err)
	}
	if s, ok := out.(interface {
		SetManagedFields([]metav1.ManagedFieldsEntry)
	}); ok {
		s.SetManagedFields(nil)
	}
	return Result{Object: out}, false, nil
}

// checkObject holds an object to the name and namespace that the request says.
func checkObject(req Request, obj runtime.Object) (metav1.Object, error) {
	m, err := meta.Accessor(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	if err := rest.EnsureObjectNamespaceMatchesRequestNamespace(rest.ExpectedNamespaceForScope(req.Namespace, req.Resource.Namespaced), m); err != nil {
		return nil, err
	}
	if m.GetName() == "" {
		return nil, apierrors.NewBadRequest(fmt.Sprintf(
			"the name of the object (%s based on URL) was undeterminable: name must be provided", req.Name))
	}
	if m.GetName() != req.Name {
		return nil, apierrors.NewBadRequest(fmt.Sprintf(
			"the name of the object (%s) does not match the name on the URL (%s)", m.GetName(), req.Name))
	}
	return m, nil
}

// viewOf returns how the request sees the object.
func (r *Registry) viewOf(req Request) (view, error) {
	if req.Subresource == "scale" {
		return scaleView{req: req}, nil
	}
	if req.rules() == nil {
		return nil, methodNotSupported(req, "update")
	}
	return versionView{req: req}, nil
}
