package apiservice

import (
	"context"
	"fmt"
	"strings"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	barqueclient "barque.dev/internal/client"
	"barque.dev/internal/controllers/kit"
)

type registration struct{ deps kit.Deps }

// NewRegistration makes the controller that registers the versions of CustomResourceDefinitions.
func NewRegistration(deps kit.Deps) kit.Controller {
	r := &registration{deps}
	return kit.Controller{
		Name: "crd-autoregister",
		Watches: []kit.Watch{
			{Kind: &apiextensionsv1.CustomResourceDefinition{}, Requests: versions},
			{Kind: &apiregistrationv1.APIService{}, Requests: registered},
		},
		Reconcile: r.reconcile,
	}
}

// versions asks for the APIServices of all versions that a definition has or had.
func versions(e barqueclient.Event) []reconcile.Request {
	var out []reconcile.Request
	for _, obj := range []any{e.Old, e.New} {
		crd, ok := obj.(*apiextensionsv1.CustomResourceDefinition)
		if !ok || crd == nil {
			continue
		}
		for _, v := range crd.Spec.Versions {
			out = append(out, reconcile.Request{NamespacedName: types.NamespacedName{Name: v.Name + "." + crd.Spec.Group}})
		}
	}
	return out
}

// registered asks for an APIService that is, or was, kept as it should be.
func registered(e barqueclient.Event) []reconcile.Request {
	for _, obj := range []any{e.Old, e.New} {
		if svc, ok := obj.(*apiregistrationv1.APIService); ok && svc != nil && svc.Labels[managedLabel] == always {
			return kit.Self(e)
		}
	}
	return nil
}

func (r *registration) reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	version, group, ok := strings.Cut(req.Name, ".")
	if !ok {
		return reconcile.Result{}, nil
	}
	want, err := r.wanted(ctx, schema.GroupVersion{Group: group, Version: version})
	if err != nil {
		return reconcile.Result{}, err
	}
	have := &apiregistrationv1.APIService{}
	if err := r.deps.Client.Get(ctx, req.NamespacedName, have); apierrors.IsNotFound(err) {
		have = nil
	} else if err != nil {
		return reconcile.Result{}, fmt.Errorf("get APIService %s: %w", req.Name, err)
	}
	do := decide(have, want, func(managed string) bool { return managed == always })
	return reconcile.Result{}, act(ctx, r.deps.Client, do, have, want)
}

// wanted is the APIService of a version that a definition has served; nil if there is none.
func (r *registration) wanted(ctx context.Context, gv schema.GroupVersion) (*apiregistrationv1.APIService, error) {
	var list apiextensionsv1.CustomResourceDefinitionList
	if err := r.deps.Client.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list definitions: %w", err)
	}
	for i := range list.Items {
		spec := &list.Items[i].Spec
		if spec.Group != gv.Group {
			continue
		}
		for _, v := range spec.Versions {
			if v.Name == gv.Version && v.Served {
				return local(gv, always), nil
			}
		}
	}
	return nil, nil
}
