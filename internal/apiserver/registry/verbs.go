package registry

import (
	"context"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	barqueclient "barque.dev/internal/client"
)

// Verbs lets the server's own parts use the registry without HTTP. Their contexts carry the user
// they act as; they are not authorized, but pass through everything else.
func (r *Registry) Verbs() barqueclient.Verbs { return verbs{r} }

type verbs struct{ r *Registry }

func (v verbs) request(t barqueclient.Target) (Request, error) {
	res, ok := v.r.Lookup(t.Resource)
	if !ok {
		// What is kept can be reached by those inside, even if its version is not served.
		res, ok = v.r.Lookup(t.Resource.GroupResource().WithVersion(""))
		ok = ok && res.Kept.Version == t.Resource.Version
	}
	if !ok {
		return Request{}, apierrors.NewGenericServerResponse(404, "", t.Resource.GroupResource(), t.Name, "the server does not serve this resource", 0, false)
	}
	if t.Subresource != "" && res.Subresources[t.Subresource] == nil {
		return Request{}, apierrors.NewNotFound(t.Resource.GroupResource(), t.Name+"/"+t.Subresource)
	}
	return Request{Resource: res, Version: t.Resource.Version, Subresource: t.Subresource, Namespace: t.Namespace, Name: t.Name}, nil
}

func (v verbs) Create(ctx context.Context, t barqueclient.Target, obj runtime.Object, opts *client.CreateOptions) (runtime.Object, error) {
	req, err := v.request(t)
	if err != nil {
		return nil, err
	}
	if obj, err = own(req, obj); err != nil {
		return nil, err
	}
	result, err := v.r.Create(trust(ctx), req, obj, opts.AsCreateOptions())
	return object(req, result, err)
}

func (v verbs) Update(ctx context.Context, t barqueclient.Target, obj runtime.Object, opts *client.UpdateOptions) (runtime.Object, error) {
	req, err := v.request(t)
	if err != nil {
		return nil, err
	}
	if obj, err = own(req, obj); err != nil {
		return nil, err
	}
	result, _, err := v.r.Update(trust(ctx), req, obj, opts.AsUpdateOptions())
	return object(req, result, err)
}

func (v verbs) Patch(ctx context.Context, t barqueclient.Target, patch client.Patch, obj client.Object, opts *client.PatchOptions) (runtime.Object, error) {
	req, err := v.request(t)
	if err != nil {
		return nil, err
	}
	body, err := patch.Data(obj)
	if err != nil {
		return nil, apierrors.NewBadRequest(fmt.Sprintf("patch of %s: %v", t.Name, err))
	}
	result, _, err := v.r.Patch(trust(ctx), req, patch.Type(), body, opts.AsPatchOptions())
	return object(req, result, err)
}

func (v verbs) Delete(ctx context.Context, t barqueclient.Target, opts *client.DeleteOptions) error {
	req, err := v.request(t)
	if err != nil {
		return err
	}
	_, _, err = v.r.Delete(trust(ctx), req, opts.AsDeleteOptions())
	return err
}

func (v verbs) DeleteAll(ctx context.Context, t barqueclient.Target, opts *client.DeleteAllOfOptions) error {
	req, err := v.request(t)
	if err != nil {
		return err
	}
	list := &metainternalversion.ListOptions{LabelSelector: opts.LabelSelector, FieldSelector: opts.FieldSelector}
	_, err = v.r.DeleteCollection(trust(ctx), req, opts.AsDeleteOptions(), list)
	return err
}

// own copies an object that a caller keeps, brings it to the request's version, and sets its
// defaults, as the decoder of an HTTP request does.
func own(req Request, obj runtime.Object) (runtime.Object, error) {
	out, err := structured(req, obj.DeepCopyObject())
	if err != nil {
		return nil, apierrors.NewBadRequest(err.Error())
	}
	req.Resource.Codec().Default(out)
	if req.sub() == nil || req.rules() != nil {
		return req.Resource.Codec().Convert(out, req.gv())
	}
	out.GetObjectKind().SetGroupVersionKind(req.kind())
	return out, nil
}

// structured turns unstructured objects of built-in kinds into their Go types.
func structured(req Request, obj runtime.Object) (runtime.Object, error) {
	u, ok := obj.(runtime.Unstructured)
	if !ok {
		return obj, nil
	}
	out, err := kindCreater{}.New(req.kind())
	if err != nil {
		return obj, nil //nolint:nilerr // a custom resource stays as it is
	}
	if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.UnstructuredContent(), out); err != nil {
		return nil, fmt.Errorf("read %s %s: %w", req.Resource.Kind, req.Name, err)
	}
	return out, nil
}

// object returns a result in the request's version. It may be shared.
func object(req Request, result Result, err error) (runtime.Object, error) {
	if err != nil {
		return nil, err
	}
	out, err := result.Get()
	if err != nil {
		return nil, statusError(err, req.groupResource(), req.Name, "read")
	}
	if _, isStatus := out.(*metav1.Status); isStatus || (req.sub() != nil && req.rules() == nil) {
		return out, nil
	}
	if _, err := meta.Accessor(out); err != nil {
		return out, nil //nolint:nilerr // reviews and the like have no metadata to speak of
	}
	return req.Resource.Codec().Convert(out, req.gv())
}

// Get reads a subresource.
func (v verbs) Get(ctx context.Context, t barqueclient.Target) (runtime.Object, error) {
	req, err := v.request(t)
	if err != nil {
		return nil, err
	}
	result, err := v.r.Get(trust(ctx), req, nil)
	return object(req, result, err)
}
