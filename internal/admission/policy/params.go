package policy

import (
	"context"
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/tools/cache"

	"barque.dev/internal/admission/state"
	"barque.dev/internal/api"
)

// parameters finds where the objects of a kind of parameters are read.
func parameters(image Image, kind *admissionv1.ParamKind) (informers.GenericInformer, meta.RESTScope, error) {
	gv, err := schema.ParseGroupVersion(kind.APIVersion)
	if err != nil {
		return nil, nil, fmt.Errorf("the apiVersion of paramKind: %w", err)
	}
	gvk := gv.WithKind(kind.Kind)
	resource, table, ok := image.ForKind(gvk.GroupKind())
	if !ok || table == nil || !resource.Serves(gv.Version) {
		return nil, nil, fmt.Errorf("failed to find resource referenced by paramKind: '%v'", gvk)
	}
	scope := meta.RESTScope(meta.RESTScopeRoot)
	if resource.Namespaced {
		scope = meta.RESTScopeNamespace
	}
	return params{image: image, resource: resource, version: gv}, scope, nil
}

// params reads the objects of one kind, in one version, from one namespace or all.
type params struct {
	image     Image
	resource  *api.Resource
	version   schema.GroupVersion
	namespace string
}

var _ informers.GenericInformer = params{}

// Informer implements informers.GenericInformer.
func (p params) Informer() cache.SharedIndexInformer { return state.Synced{} }

// Lister implements informers.GenericInformer.
func (p params) Lister() cache.GenericLister { return p }

// ByNamespace implements cache.GenericLister.
func (p params) ByNamespace(namespace string) cache.GenericNamespaceLister {
	p.namespace = namespace
	return p
}

// Get returns one object.
func (p params) Get(name string) (runtime.Object, error) {
	obj, err := p.image.Find(context.Background(), p.resource.GroupResource, p.namespace, name)
	if err != nil {
		return nil, err
	}
	return p.resource.Codec().Convert(obj, p.version)
}

// List returns the objects that a selector selects.
func (p params) List(selector labels.Selector) ([]runtime.Object, error) {
	var out []runtime.Object
	var failure error
	err := state.Each(p.image, p.resource.GroupResource, p.namespace, func(obj runtime.Object) bool {
		m, err := meta.Accessor(obj)
		if err == nil && !selector.Matches(labels.Set(m.GetLabels())) {
			return true
		}
		var param runtime.Object
		if err == nil {
			param, err = p.resource.Codec().Convert(obj, p.version)
		}
		out, failure = append(out, param), err
		return err == nil
	})
	if err == nil {
		err = failure
	}
	if err != nil {
		return nil, fmt.Errorf("list parameters of %s: %w", p.resource.GroupResource, err)
	}
	return out, nil
}
