package aggregate

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"time"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authentication/serviceaccount"
	"k8s.io/apiserver/pkg/authentication/user"
)

// emptyTimeout bounds each request that empties a namespace.
const emptyTimeout = 30 * time.Second

// sweeper is who empties namespaces in stock clusters.
func sweeper() user.Info {
	return serviceaccount.UserInfo(metav1.NamespaceSystem, "namespace-controller", "")
}

// Empty asks for the deletion of everything that other servers keep in a namespace, and returns what is left, and the
// names of the APIServices whose servers do not say what they have: they may have something.
func (a *Aggregator) Empty(ctx context.Context, namespace string) (left map[schema.GroupResource][]metav1.PartialObjectMetadata, silent []string, err error) {
	left = map[schema.GroupResource][]metav1.PartialObjectMetadata{}
	var errs []error
	for _, b := range a.Backends() {
		said := b.Description()
		if said.Stale {
			silent = append(silent, b.name)
			continue
		}
		for _, r := range said.Resources {
			if r.Scope != apidiscoveryv2.ScopeNamespace || !slices.Contains(r.Verbs, "list") || !slices.Contains(r.Verbs, "delete") {
				continue // what nobody can delete comes and goes by itself
			}
			objs, err := b.empty(ctx, namespace, r)
			if err != nil {
				errs = append(errs, fmt.Errorf("delete %s.%s in namespace %s: %w", r.Resource, b.gv.Group, namespace, err))
			} else if len(objs) > 0 {
				left[schema.GroupResource{Group: b.gv.Group, Resource: r.Resource}] = objs
			}
		}
	}
	return left, silent, errors.Join(errs...)
}

// empty deletes the objects of one resource, and returns those that are still there.
func (b *Backend) empty(ctx context.Context, namespace string, r apidiscoveryv2.APIResourceDiscovery) ([]metav1.PartialObjectMetadata, error) {
	path := b.path() + "/namespaces/" + namespace + "/" + r.Resource
	objs, err := b.list(ctx, path)
	if err != nil || len(objs) == 0 {
		return nil, err
	}
	if slices.Contains(r.Verbs, "deletecollection") {
		if err := b.remove(ctx, path); err != nil {
			return nil, err
		}
		return b.list(ctx, path)
	}
	for _, obj := range objs {
		if err := b.remove(ctx, path+"/"+url.PathEscape(obj.Name)); err != nil {
			return nil, err
		}
	}
	return b.list(ctx, path)
}

func (b *Backend) list(ctx context.Context, path string) ([]metav1.PartialObjectMetadata, error) {
	ctx, cancel := context.WithTimeout(ctx, emptyTimeout)
	defer cancel()
	a, err := b.get(ctx, sweeper(), path, "Accept", runtime.ContentTypeJSON)
	if err != nil {
		return nil, err
	}
	if a.code == http.StatusNotFound || a.code == http.StatusMethodNotAllowed {
		return nil, nil
	}
	if a.code != http.StatusOK {
		return nil, fmt.Errorf("bad status from %s%s: %d", b.name, path, a.code)
	}
	var list metav1.PartialObjectMetadataList
	if err := json.Unmarshal(a.body, &list); err != nil {
		return nil, fmt.Errorf("response from %s%s: %w", b.name, path, err)
	}
	return list.Items, nil
}

func (b *Backend) remove(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, emptyTimeout)
	defer cancel()
	a, err := b.do(ctx, sweeper(), http.MethodDelete, path, "Accept", runtime.ContentTypeJSON)
	if err != nil {
		return err
	}
	if a.code >= http.StatusBadRequest && a.code != http.StatusNotFound {
		return fmt.Errorf("bad status from %s%s: %d", b.name, path, a.code)
	}
	return nil
}
