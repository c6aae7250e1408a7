package api

import (
	"context"
	"fmt"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition"
	crdtable "k8s.io/apiextensions-apiserver/pkg/registry/customresourcedefinition/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/registry/rest"
	"k8s.io/kube-aggregator/pkg/apis/apiregistration"
	"k8s.io/kube-aggregator/pkg/registry/apiservice"
	apiservices "k8s.io/kube-aggregator/pkg/registry/apiservice/etcd"
)

// extensionResources are the kinds by which users add kinds of their own.
func extensionResources() []*Resource {
	definitions := define(apiextensions.GroupName,
		definition{resource: "customresourcedefinitions", kind: "CustomResourceDefinition", short: []string{"crd", "crds"},
			categories: []string{"api-extensions"}, cluster: true,
			// kube-apiserver keeps them by their group, unlike the kinds of its own, and
			// in the old version until every definition fits into etcd as v1, too.
			prefix:   apiextensions.GroupName + "/customresourcedefinitions",
			json:     "v1beta1",
			strategy: customresourcedefinition.NewStrategy(Scheme()), status: customresourcedefinition.NewStatusStrategy(Scheme()),
			printer: printedBy(crdtable.New(), apiextensions.SchemeGroupVersion, &apiextensions.CustomResourceDefinitionList{}),
		},
	)
	return append(definitions, define(apiregistration.GroupName,
		definition{resource: "apiservices", kind: "APIService", categories: []string{"api-extensions"}, cluster: true,
			// kube-aggregator, too, keeps its kind by its group and as JSON.
			prefix:   apiregistration.GroupName + "/apiservices",
			json:     "v1",
			strategy: apiservice.NewStrategy(Scheme()), status: apiservice.NewStatusStrategy(Scheme()),
			printer: printedBy(&apiservices.REST{}, apiregistration.SchemeGroupVersion, &apiregistration.APIServiceList{}),
		},
	)...)
}

// printedBy is the Printer of a kind whose columns come from a converter of the hub version. empty is a list
// without objects.
func printedBy(columns rest.TableConvertor, hub schema.GroupVersion, empty runtime.Object) Printer {
	return func(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
		table, err := columns.ConvertToTable(ctx, empty, options)
		if err != nil {
			return nil, fmt.Errorf("print %T: %w", empty, err)
		}
		if options != nil && options.NoHeaders {
			table.ColumnDefinitions = nil
		}
		for _, obj := range objects {
			converted, err := Scheme().ConvertToVersion(obj, hub)
			if err != nil {
				return nil, fmt.Errorf("print %T: %w", obj, err)
			}
			one, err := columns.ConvertToTable(ctx, converted, options)
			if err != nil {
				return nil, fmt.Errorf("print %T: %w", obj, err)
			}
			table.Rows = append(table.Rows, one.Rows...)
		}
		return table, nil
	}
}
