package client

import (
	"context"
	"encoding/json"
	"fmt"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// returned copies what a write returned into the caller's object, in memory of its own. A Status
// tells nothing that the caller wants to know.
func (c *InProcess) returned(result runtime.Object, out runtime.Object) error {
	if _, ok := result.(*metav1.Status); ok || result == nil {
		return nil
	}
	own := result.DeepCopyObject()
	gvk, err := c.GroupVersionKindFor(out)
	if err != nil {
		return err
	}
	if res, _, ok := c.cfg.Tables.ForKind(gvk.GroupKind()); ok {
		return copyInto(res, own, gvk, out)
	}
	if u, ok := out.(*unstructured.Unstructured); ok {
		content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(own)
		if err != nil {
			return fmt.Errorf("read %s: %w", gvk, err)
		}
		u.Object = content
		return nil
	}
	return assign(own, out)
}

// Create implements client.Writer.
func (c *InProcess) Create(ctx context.Context, obj client.Object, opts ...client.CreateOption) error {
	t, err := c.target(obj, "")
	if err != nil {
		return err
	}
	o := (&client.CreateOptions{FieldManager: c.cfg.FieldManager}).ApplyOptions(opts)
	t.Name = obj.GetName()
	result, err := c.cfg.Verbs.Create(c.identify(ctx), t, obj, o)
	if err != nil {
		return err
	}
	return c.returned(result, obj)
}

// Update implements client.Writer.
func (c *InProcess) Update(ctx context.Context, obj client.Object, opts ...client.UpdateOption) error {
	o := (&client.UpdateOptions{FieldManager: c.cfg.FieldManager}).ApplyOptions(opts)
	return c.update(ctx, obj, "", obj, o)
}

func (c *InProcess) update(ctx context.Context, obj client.Object, subresource string, body client.Object, o *client.UpdateOptions) error {
	t, err := c.target(obj, subresource)
	if err != nil {
		return err
	}
	result, err := c.cfg.Verbs.Update(c.identify(ctx), t, body, o)
	if err != nil {
		return err
	}
	return c.returned(result, body)
}

// Patch implements client.Writer.
func (c *InProcess) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.PatchOption) error {
	o := (&client.PatchOptions{FieldManager: c.cfg.FieldManager}).ApplyOptions(opts)
	return c.patch(ctx, obj, "", obj, patch, o)
}

func (c *InProcess) patch(ctx context.Context, obj client.Object, subresource string, body client.Object, patch client.Patch, o *client.PatchOptions) error {
	t, err := c.target(obj, subresource)
	if err != nil {
		return err
	}
	result, err := c.cfg.Verbs.Patch(c.identify(ctx), t, patch, body, o)
	if err != nil {
		return err
	}
	return c.returned(result, body)
}

// Apply implements client.Writer: server-side apply.
func (c *InProcess) Apply(ctx context.Context, obj runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
	o := &client.ApplyOptions{FieldManager: c.cfg.FieldManager}
	o.ApplyOptions(opts)
	return c.apply(ctx, obj, "", o)
}

func (c *InProcess) apply(ctx context.Context, obj runtime.ApplyConfiguration, subresource string, o *client.ApplyOptions) error {
	data, err := json.Marshal(obj)
	if err != nil {
		return fmt.Errorf("encode apply configuration: %w", err)
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(data, &u.Object); err != nil {
		return fmt.Errorf("encode apply configuration: %w", err)
	}
	t, err := c.target(u, subresource)
	if err != nil {
		return err
	}
	patch := &client.PatchOptions{DryRun: o.DryRun, Force: o.Force, FieldManager: o.FieldManager}
	result, err := c.cfg.Verbs.Patch(c.identify(ctx), t, client.RawPatch(types.ApplyYAMLPatchType, data), u, patch)
	if err != nil {
		return err
	}
	after, err := json.Marshal(result)
	if err != nil {
		return fmt.Errorf("decode result of apply: %w", err)
	}
	if err := json.Unmarshal(after, obj); err != nil {
		return fmt.Errorf("decode result of apply: %w", err)
	}
	return nil
}

// Delete implements client.Writer.
func (c *InProcess) Delete(ctx context.Context, obj client.Object, opts ...client.DeleteOption) error {
	t, err := c.target(obj, "")
	if err != nil {
		return err
	}
	return c.cfg.Verbs.Delete(c.identify(ctx), t, (&client.DeleteOptions{}).ApplyOptions(opts))
}

// DeleteAllOf implements client.Writer.
func (c *InProcess) DeleteAllOf(ctx context.Context, obj client.Object, opts ...client.DeleteAllOfOption) error {
	o := (&client.DeleteAllOfOptions{}).ApplyOptions(opts)
	t, err := c.target(obj, "")
	if err != nil {
		return err
	}
	t.Name, t.Namespace = "", o.Namespace
	return c.cfg.Verbs.DeleteAll(c.identify(ctx), t, o)
}

// Status implements client.StatusClient.
func (c *InProcess) Status() client.SubResourceWriter { return c.SubResource("status") }

// SubResource implements client.SubResourceClientConstructor.
func (c *InProcess) SubResource(name string) client.SubResourceClient {
	return &subresource{c: c, name: name}
}

// subresource is a client of one subresource of every kind.
type subresource struct {
	c    *InProcess
	name string
}

// reader is what Verbs that can read subresources implement.
type reader interface {
	Get(ctx context.Context, t Target) (runtime.Object, error)
}

// Get implements client.SubResourceReader.
func (s *subresource) Get(ctx context.Context, obj, body client.Object, _ ...client.SubResourceGetOption) error {
	t, err := s.c.target(obj, s.name)
	if err != nil {
		return err
	}
	verbs, ok := s.c.cfg.Verbs.(reader)
	if !ok {
		return apierrors.NewMethodNotSupported(t.Resource.GroupResource(), "get")
	}
	result, err := verbs.Get(s.c.identify(ctx), t)
	if err != nil {
		return err
	}
	return s.c.returned(result, body)
}

// Create implements client.SubResourceWriter. A body without a name takes the object's.
func (s *subresource) Create(ctx context.Context, obj, body client.Object, opts ...client.SubResourceCreateOption) error {
	t, err := s.c.target(obj, s.name)
	if err != nil {
		return err
	}
	if body.GetName() == "" {
		body.SetName(t.Name)
	}
	if body.GetNamespace() == "" {
		body.SetNamespace(t.Namespace)
	}
	o := (&client.SubResourceCreateOptions{}).ApplyOptions(opts)
	if o.FieldManager == "" {
		o.FieldManager = s.c.cfg.FieldManager
	}
	result, err := s.c.cfg.Verbs.Create(s.c.identify(ctx), t, body, &o.CreateOptions)
	if err != nil {
		return err
	}
	return s.c.returned(result, body)
}

// Update implements client.SubResourceWriter.
func (s *subresource) Update(ctx context.Context, obj client.Object, opts ...client.SubResourceUpdateOption) error {
	o := (&client.SubResourceUpdateOptions{}).ApplyOptions(opts)
	if o.FieldManager == "" {
		o.FieldManager = s.c.cfg.FieldManager
	}
	return s.c.update(ctx, obj, s.name, bodyOr(o.SubResourceBody, obj), &o.UpdateOptions)
}

// Patch implements client.SubResourceWriter.
func (s *subresource) Patch(ctx context.Context, obj client.Object, patch client.Patch, opts ...client.SubResourcePatchOption) error {
	o := (&client.SubResourcePatchOptions{}).ApplyOptions(opts)
	if o.FieldManager == "" {
		o.FieldManager = s.c.cfg.FieldManager
	}
	return s.c.patch(ctx, obj, s.name, bodyOr(o.SubResourceBody, obj), patch, &o.PatchOptions)
}

// Apply implements client.SubResourceWriter.
func (s *subresource) Apply(ctx context.Context, obj runtime.ApplyConfiguration, opts ...client.SubResourceApplyOption) error {
	o := (&client.SubResourceApplyOptions{}).ApplyOpts(opts)
	if o.FieldManager == "" {
		o.FieldManager = s.c.cfg.FieldManager
	}
	if o.SubResourceBody != nil {
		obj = o.SubResourceBody
	}
	return s.c.apply(ctx, obj, s.name, &o.ApplyOptions)
}

func bodyOr(body, obj client.Object) client.Object {
	if body != nil {
		return body
	}
	return obj
}
