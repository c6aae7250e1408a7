package quota

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	resourcev1 "k8s.io/api/resource/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// lister gives stock's evaluators the objects that they measure. What they only count comes as
// metadata.
type lister struct {
	ctx      context.Context //nolint:containedctx // stock's listers take none
	measures Measures
}

func (l lister) forResource(gvr schema.GroupVersionResource) (cache.GenericLister, error) {
	return resourceLister{lister: l, resource: gvr.GroupResource()}, nil
}

// resourceLister lists one resource. Stock's evaluators call ByNamespace alone.
type resourceLister struct {
	lister
	resource  schema.GroupResource
	namespace string
}

func (l resourceLister) ByNamespace(namespace string) cache.GenericNamespaceLister {
	l.namespace = namespace
	return l
}

func (l resourceLister) List(selector labels.Selector) ([]runtime.Object, error) {
	list, err := l.empty()
	if err != nil {
		return nil, err
	}
	if err := l.measures.Reader.List(l.ctx, list, client.InNamespace(l.namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, fmt.Errorf("list %s of namespace %s: %w", l.resource, l.namespace, err)
	}
	return meta.ExtractList(list)
}

// empty is a list to read into.
func (l resourceLister) empty() (client.ObjectList, error) {
	switch l.resource {
	case corev1.Resource("pods"):
		return &corev1.PodList{}, nil
	case corev1.Resource("services"):
		return &corev1.ServiceList{}, nil
	case corev1.Resource("persistentvolumeclaims"):
		return &corev1.PersistentVolumeClaimList{}, nil
	case resourcev1.Resource("resourceclaims"):
		return &resourcev1.ResourceClaimList{}, nil
	}
	gvk, ok := l.measures.Kind(l.resource)
	if !ok {
		return nil, fmt.Errorf("%s is not served", l.resource)
	}
	list := &metav1.PartialObjectMetadataList{}
	list.SetGroupVersionKind(gvk.GroupVersion().WithKind(gvk.Kind + "List"))
	return list, nil
}

func (l resourceLister) Get(name string) (runtime.Object, error) {
	gvk, ok := l.measures.Kind(l.resource)
	if !ok {
		return nil, fmt.Errorf("%s is not served", l.resource)
	}
	obj := &metav1.PartialObjectMetadata{}
	obj.SetGroupVersionKind(gvk)
	return obj, l.measures.Reader.Get(l.ctx, client.ObjectKey{Namespace: l.namespace, Name: name}, obj)
}

// podReader reads the pods that claims of devices belong to.
type podReader struct {
	ctx       context.Context //nolint:containedctx // stock's listers take none
	reader    client.Reader
	namespace string
}

var _ corelisters.PodLister = podReader{}

func (p podReader) Pods(namespace string) corelisters.PodNamespaceLister {
	p.namespace = namespace
	return p
}

func (p podReader) Get(name string) (*corev1.Pod, error) {
	var pod corev1.Pod
	if err := p.reader.Get(p.ctx, client.ObjectKey{Namespace: p.namespace, Name: name}, &pod); err != nil {
		return nil, err
	}
	return &pod, nil
}

func (p podReader) List(selector labels.Selector) ([]*corev1.Pod, error) {
	var list corev1.PodList
	if err := p.reader.List(p.ctx, &list, client.InNamespace(p.namespace), client.MatchingLabelsSelector{Selector: selector}); err != nil {
		return nil, fmt.Errorf("list pods of namespace %s: %w", p.namespace, err)
	}
	pods := make([]*corev1.Pod, len(list.Items))
	for i := range list.Items {
		pods[i] = &list.Items[i]
	}
	return pods, nil
}

// claimsOf are the claims that stand for a pod's extended resources.
func (p podReader) claimsOf(namespace string, pod types.UID) ([]*resourcev1.ResourceClaim, error) {
	var list resourcev1.ResourceClaimList
	if err := p.reader.List(p.ctx, &list, client.InNamespace(namespace)); err != nil {
		return nil, fmt.Errorf("list ResourceClaims of namespace %s: %w", namespace, err)
	}
	var claims []*resourcev1.ResourceClaim
	for i := range list.Items {
		claim := &list.Items[i]
		owner := metav1.GetControllerOfNoCopy(claim)
		if owner != nil && owner.UID == pod && claim.Annotations[resourcev1.ExtendedResourceClaimAnnotation] == "true" {
			claims = append(claims, claim)
		}
	}
	return claims, nil
}
