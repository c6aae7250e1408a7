package custom

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"strconv"

	"k8s.io/apiextensions-apiserver/pkg/apihelpers"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// codec is the api.Codec of a definition's objects. Those that it decodes are of the version in which they stand in etcd,
// which may be any that was kept once: a webhook that is not there must not keep objects from being listed, watched
// and deleted by those who want their metadata alone. Whoever wants a version converts to it.
type codec struct {
	group, kind, listKind string
	storage               string
	// preserve keeps fields that the schemas do not know.
	preserve bool
	// schemas are by version; nil for versions without one.
	schemas map[string]*structuralschema.Structural
	convert runtime.ObjectConvertor // returns memory of its own
}

var _ runtime.ObjectDefaulter = (*codec)(nil)

func newCodec(crd *apiextensionsv1.CustomResourceDefinition, converters Converters) (*codec, error) {
	storage, err := apihelpers.GetCRDStorageVersion(crd)
	if err != nil {
		return nil, err
	}
	convert, _, err := converters.NewConverter(crd)
	if err != nil {
		return nil, fmt.Errorf("conversion: %w", err)
	}
	c := &codec{
		group: crd.Spec.Group, kind: crd.Status.AcceptedNames.Kind, listKind: crd.Status.AcceptedNames.ListKind,
		storage: storage, preserve: crd.Spec.PreserveUnknownFields, schemas: map[string]*structuralschema.Structural{}, convert: convert,
	}
	for i := range crd.Spec.Versions {
		v := &crd.Spec.Versions[i]
		if c.schemas[v.Name], err = c.structural(v); err != nil {
			return nil, fmt.Errorf("schema of version %s: %w", v.Name, err)
		}
	}
	return c, nil
}

// structural is a version's schema as pruning and defaulting work on it; nil if there is none.
func (c *codec) structural(v *apiextensionsv1.CustomResourceDefinitionVersion) (*structuralschema.Structural, error) {
	hub, err := internalSchema(v)
	if err != nil || hub == nil {
		return nil, err
	}
	s, err := structuralschema.NewStructural(hub)
	if c.preserve {
		return s, nil //nolint:nilerr // old definitions may have schemas that are not structural, which then say nothing
	}
	if err != nil {
		return nil, err
	}
	s = s.DeepCopy() // its defaults are the definition's own
	if err := defaulting.PruneDefaults(s); err != nil {
		return nil, fmt.Errorf("defaults: %w", err)
	}
	return s, nil
}

// creater makes empty objects of any kind.
type creater struct{}

func (creater) New(gvk schema.GroupVersionKind) (runtime.Object, error) {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(gvk)
	return u, nil
}

func (c *codec) New(gv schema.GroupVersion) (runtime.Object, error) {
	return creater{}.New(gv.WithKind(c.kind))
}

func (c *codec) NewList(gv schema.GroupVersion) (runtime.Object, error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(gv.WithKind(c.listKind))
	return list, nil
}

func (c *codec) Default(obj runtime.Object) {
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return
	}
	if gvk := u.GroupVersionKind(); gvk.Group == c.group && gvk.Kind == c.kind {
		defaulting.Default(u.Object, c.schemas[gvk.Version])
	}
}

func (c *codec) Convert(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error) {
	if obj.GetObjectKind().GroupVersionKind().GroupVersion() == gv {
		return obj, nil
	}
	out, err := c.convert.ConvertToVersion(obj, gv)
	if err != nil {
		return nil, fmt.Errorf("convert %s to %s: %w", c.kind, gv, err)
	}
	if u, ok := out.(*unstructured.Unstructured); ok {
		if err := c.converted(u, gv); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// converted completes what a conversion made.
func (c *codec) converted(u *unstructured.Unstructured, gv schema.GroupVersion) error {
	if _, err := c.coerce(u, source{}); err != nil {
		return fmt.Errorf("convert %s to %s: %w", c.kind, gv, err)
	}
	c.Default(u)
	return nil
}

// ConvertAll asks a webhook once for all.
func (c *codec) ConvertAll(objs []runtime.Object, gv schema.GroupVersion) ([]runtime.Object, error) {
	list := &unstructured.UnstructuredList{Items: make([]unstructured.Unstructured, len(objs))}
	list.SetGroupVersionKind(gv.WithKind(c.listKind))
	for i, obj := range objs {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("convert %s to %s: it is a %T", c.kind, gv, obj)
		}
		list.Items[i] = *u
	}
	out, err := c.convert.ConvertToVersion(list, gv)
	if err != nil {
		return nil, fmt.Errorf("convert %d %s to %s: %w", len(objs), c.kind, gv, err)
	}
	converted, ok := out.(*unstructured.UnstructuredList)
	if !ok || len(converted.Items) != len(objs) {
		return nil, fmt.Errorf("convert %d %s to %s: a %T came back", len(objs), c.kind, gv, out)
	}
	all := make([]runtime.Object, len(objs))
	for i := range converted.Items {
		u := &converted.Items[i]
		if err := c.converted(u, gv); err != nil {
			return nil, err
		}
		all[i] = u
	}
	return all, nil
}

// Normalize has nothing to do: fields have one spelling.
func (c *codec) Normalize(obj runtime.Object, gv schema.GroupVersion) (runtime.Object, error) {
	return c.Convert(obj, gv)
}

func (c *codec) DecodeJSON(data []byte, gv schema.GroupVersion, strict bool) (runtime.Object, error) {
	want := gv.WithKind(c.kind)
	obj, got, err := newReader(c, false, strict).Decode(data, &want, nil)
	if obj == nil {
		return nil, err
	}
	if *got != want {
		return nil, fmt.Errorf("expected %s, got %s", want, got)
	}
	c.Default(obj)
	return obj, err
}

func (c *codec) Encode(obj runtime.Object) ([]byte, error) {
	kept, err := c.Convert(obj, schema.GroupVersion{Group: c.group, Version: c.storage})
	if err != nil {
		return nil, err
	}
	u, ok := kept.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("encode %s: it is a %T", c.kind, obj)
	}
	content := maps.Clone(u.Object)
	if m, ok := content["metadata"].(map[string]any); ok {
		m = maps.Clone(m)
		delete(m, "resourceVersion")
		delete(m, "selfLink")
		content["metadata"] = m
	}
	var buf bytes.Buffer
	if err := json.NewEncoder(&buf).Encode(content); err != nil {
		return nil, fmt.Errorf("encode %s: %w", c.kind, err)
	}
	return buf.Bytes(), nil
}

func (c *codec) Decode(value []byte, revision int64) (runtime.Object, error) {
	obj, _, err := unstructured.UnstructuredJSONScheme.Decode(value, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	u, ok := obj.(*unstructured.Unstructured)
	if !ok {
		return nil, fmt.Errorf("decode %s: it is a list", c.kind)
	}
	if _, err := c.coerce(u, source{stored: true}); err != nil {
		return nil, fmt.Errorf("decode %s: %w", c.kind, err)
	}
	c.Default(u)
	u.SetResourceVersion(strconv.FormatInt(revision, 10))
	return u, nil
}

func (c *codec) ConvertField(gv schema.GroupVersion, label, value string) (string, string, error) {
	return c.convert.ConvertFieldLabel(gv.WithKind(c.kind), label, value)
}
