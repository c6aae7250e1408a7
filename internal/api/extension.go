package api

import (
	"context"
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition"
	crdtable "k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// extensionResources are the kinds by which users add kinds of their own.
func extensionResources() []*Resource {
	return define(apiextensions.GroupName,
		definition{resource: "customresourcedefinitions", kind: "CustomResourceDefinition", short: []string{"crd", "crds"},
			categories: []string{"api-extensions"}, cluster: true,
			// kube-apiserver keeps them by their group, unlike the kinds of its own, and
			// in the old version until every definition fits into etcd as v1, too.
			prefix:   apiextensions.GroupName + "/customresourcedefinitions",
			json:     "v1beta1",
			strategy: customresourcedefinition.NewStrategy(Scheme()), status: customresourcedefinition.NewStatusStrategy(Scheme()),
			printer: printDefinitions},
	)
}

// printDefinitions is the Printer of CustomResourceDefinitions.
func printDefinitions(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
	columns := crdtable.New()
	table, err := columns.ConvertToTable(ctx, &apiextensions.CustomResourceDefinitionList{}, options)
	if err != nil {
		return nil, fmt.Errorf("print CustomResourceDefinition: %w", err)
	}
	for _, obj := range objects {
		hub, err := Scheme().ConvertToVersion(obj, apiextensions.SchemeGroupVersion)
		if err != nil {
			return nil, fmt.Errorf("print CustomResourceDefinition: %w", err)
		}
		one, err := columns.ConvertToTable(ctx, hub, options)
		if err != nil {
			return nil, fmt.Errorf("print CustomResourceDefinition: %w", err)
		}
		table.Rows = append(table.Rows, one.Rows...)
	}
	return table, nil
}
