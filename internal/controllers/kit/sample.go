package kit

import (
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"barque.dev/internal/api"
)

// KindOf is the kind by which controllers of every kind name a resource's objects.
func KindOf(r *api.Resource) schema.GroupVersionKind {
	if r.Custom != nil {
		return r.Kept.WithKind(r.Kind)
	}
	return r.Storage.WithKind(r.Kind)
}

// Sample is an empty object of a resource. Of a custom resource it is the metadata alone, which never has to be converted.
func Sample(r *api.Resource) (client.Object, error) {
	if r.Custom != nil {
		sample := &metav1.PartialObjectMetadata{}
		sample.SetGroupVersionKind(KindOf(r))
		return sample, nil
	}
	obj, err := r.Codec().New(r.Storage)
	if err != nil {
		return nil, err
	}
	sample, ok := obj.(client.Object)
	if !ok {
		return nil, fmt.Errorf("%s: a %T is no object", r.GroupResource, obj)
	}
	return sample, nil
}

// SampleList is an empty list of what Sample is one of.
func SampleList(r *api.Resource) (client.ObjectList, error) {
	if r.Custom != nil {
		list := &metav1.PartialObjectMetadataList{}
		kind := KindOf(r)
		list.SetGroupVersionKind(kind.GroupVersion().WithKind(kind.Kind + "List"))
		return list, nil
	}
	obj, err := r.Codec().NewList(r.Storage)
	if err != nil {
		return nil, err
	}
	list, ok := obj.(client.ObjectList)
	if !ok {
		return nil, fmt.Errorf("%s: a %T is no list", r.GroupResource, obj)
	}
	return list, nil
}
