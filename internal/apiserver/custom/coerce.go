package custom

import (
	"fmt"

	structuralschema "k8s.io/apiextensions-apiserver/pkg/apiserver/schema"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/defaulting"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/objectmeta"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/schema/pruning"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// source tells where an object comes from.
type source struct {
	// stored objects may be older than the rules that they break: what is malformed in their metadata is dropped.
	stored bool
	// track asks for the paths of unknown fields.
	track bool
}

// coerce gives an object, in place, the form that Go types give theirs when they are decoded: metadata is well formed,
// what the schema does not know is gone, and so are nulls where it knows none. It returns the fields that it dropped if
// they are asked for.
func (c *codec) coerce(u *unstructured.Unstructured, from source) (unknown []string, err error) {
	apiVersion, kind := u.GetAPIVersion(), u.GetKind()
	gv, err := schema.ParseGroupVersion(apiVersion)
	if err != nil {
		return nil, fmt.Errorf("read the object's version: %w", err)
	}
	m, found, dropped, err := objectmeta.GetObjectMetaWithOptions(u.Object, objectmeta.ObjectMetaOptions{
		DropMalformedFields: from.stored, ReturnUnknownFieldPaths: from.track,
	})
	if err != nil {
		return nil, err
	}
	unknown = append(unknown, dropped...)
	if gv.Group == c.group && kind == c.kind {
		shape := c.schemas[gv.Version]
		if !c.preserve {
			options := structuralschema.UnknownFieldPathOptions{TrackUnknownFieldPaths: from.track}
			unknown = append(unknown, pruning.PruneWithOptions(u.Object, shape, true, options)...)
			defaulting.PruneNonNullableNullsWithoutDefaults(u.Object, shape)
		}
		failure, embedded := objectmeta.CoerceWithOptions(nil, u.Object, shape, false, objectmeta.CoerceOptions{
			DropInvalidFields: from.stored, ReturnUnknownFieldPaths: from.track,
		})
		if failure != nil {
			return nil, failure
		}
		unknown = append(unknown, embedded...)
		if from.stored && found && m.Generation == 0 {
			m.Generation = 1 // the oldest objects have none
		}
	}
	// Schemas need not name these, so that pruning has taken them.
	if kind != "" {
		u.SetKind(kind)
	}
	if apiVersion != "" {
		u.SetAPIVersion(apiVersion)
	}
	if found {
		if err := objectmeta.SetObjectMeta(u.Object, m); err != nil {
			return nil, err
		}
	}
	return unknown, nil
}
