package custom

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"

	"k8s.io/apiextensions-apiserver/pkg/apis/apiextensions"
	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/validation"
	"k8s.io/apiextensions-apiserver/pkg/crdserverscheme"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource"
	"k8s.io/apiextensions-apiserver/pkg/registry/customresource/tableconvertor"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/util/managedfields"
	apiversion "k8s.io/apimachinery/pkg/version"
	"k8s.io/apiserver/pkg/registry/rest"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"

	"barque.dev/internal/api"
)

// version is one version of a definition.
type version struct {
	*definition
	spec *apiextensionsv1.CustomResourceDefinitionVersion
	// rules and statusRules are those of the resource and of its status.
	rules, statusRules *rules
	columns            func() rest.TableConvertor
}

func newVersion(d *definition, spec *apiextensionsv1.CustomResourceDefinitionVersion) *version {
	v := &version{definition: d, spec: spec}
	both := sync.OnceValue(v.strategies)
	namespaced := d.crd.Spec.Scope == apiextensionsv1.NamespaceScoped
	typer := crdserverscheme.NewUnstructuredObjectTyper()
	v.rules = newRules(typer, namespaced, func() (strategy, error) { s := both(); return s.main, s.err })
	v.statusRules = newRules(typer, namespaced, func() (strategy, error) { s := both(); return s.status, s.err })
	v.columns = sync.OnceValue(func() rest.TableConvertor {
		columns := spec.AdditionalPrinterColumns
		if len(columns) == 0 {
			columns = []apiextensionsv1.CustomResourceColumnDefinition{ageColumn()}
		}
		table, err := tableconvertor.New(columns)
		if err != nil {
			return nil // columns that can't be read are not shown
		}
		return table
	})
	return v
}

func (v *version) gv() schema.GroupVersion {
	return schema.GroupVersion{Group: v.crd.Spec.Group, Version: v.spec.Name}
}

func (v *version) kind() schema.GroupVersionKind {
	return v.gv().WithKind(v.crd.Status.AcceptedNames.Kind)
}

// borrowed are the strategies of the resource and of its status, or why there are none.
type borrowed struct {
	main, status strategy
	err          error
}

// strategies compiles a version's schema and rules.
func (v *version) strategies() borrowed {
	hub, err := internalSchema(v.spec)
	if err != nil {
		return borrowed{err: err}
	}
	validator, _, err := validation.NewSchemaValidator(hub)
	if err != nil {
		return borrowed{err: fmt.Errorf("schema of %s: %w", v.kind(), err)}
	}
	var statusValidator validation.SchemaValidator
	var status *apiextensions.CustomResourceSubresourceStatus
	var scale *apiextensions.CustomResourceSubresourceScale
	if subs := v.spec.Subresources; subs != nil {
		if subs.Status != nil {
			status = &apiextensions.CustomResourceSubresourceStatus{}
			if hub != nil {
				if of, ok := hub.Properties["status"]; ok {
					if statusValidator, _, err = validation.NewSchemaValidator(&of); err != nil {
						return borrowed{err: fmt.Errorf("schema of the status of %s: %w", v.kind(), err)}
					}
				}
			}
		}
		if s := subs.Scale; s != nil {
			scale = &apiextensions.CustomResourceSubresourceScale{
				SpecReplicasPath: s.SpecReplicasPath, StatusReplicasPath: s.StatusReplicasPath, LabelSelectorPath: s.LabelSelectorPath,
			}
		}
	}
	main := customresource.NewStrategy(crdserverscheme.NewUnstructuredObjectTyper(), v.crd.Spec.Scope == apiextensionsv1.NamespaceScoped,
		v.kind(), validator, statusValidator, v.codec.schemas[v.spec.Name], status, scale, v.spec.SelectableFields)
	return borrowed{main: main, status: customresource.NewStatusStrategy(main)}
}

// internalSchema is a version's schema in the form that apiextensions' packages work on; nil if there is none.
func internalSchema(v *apiextensionsv1.CustomResourceDefinitionVersion) (*apiextensions.JSONSchemaProps, error) {
	if v.Schema == nil {
		return nil, nil //nolint:nilnil // a version may have no schema
	}
	out := &apiextensions.CustomResourceValidation{}
	if err := apiextensionsv1.Convert_v1_CustomResourceValidation_To_apiextensions_CustomResourceValidation(v.Schema, out, nil); err != nil {
		return nil, fmt.Errorf("schema of version %s: %w", v.Name, err)
	}
	return out.OpenAPIV3Schema, nil
}

// fields are what field selectors see.
func (v *version) fields(obj runtime.Object) fields.Set {
	own, err := v.codec.Convert(obj, v.gv())
	if err != nil {
		return fields.Set{}
	}
	s, err := v.rules.get()
	if err != nil {
		return fields.Set{}
	}
	_, set, err := s.GetAttrs(own)
	if err != nil {
		return fields.Set{}
	}
	return set
}

// print is the version's api.Printer.
func (v *version) print(ctx context.Context, objects []runtime.Object, options *metav1.TableOptions) (*metav1.Table, error) {
	columns := v.columns()
	if columns == nil {
		return api.PrintPlain(ctx, objects, options)
	}
	list := &unstructured.UnstructuredList{}
	for _, obj := range objects {
		u, ok := obj.(*unstructured.Unstructured)
		if !ok {
			return nil, fmt.Errorf("print %s: it is a %T", v.kind(), obj)
		}
		list.Items = append(list.Items, *u)
	}
	table, err := columns.ConvertToTable(ctx, list, options)
	if err != nil {
		return nil, fmt.Errorf("print %s: %w", v.kind(), err)
	}
	return table, nil
}

// scale tells where a version keeps its number of replicas.
func (v *version) scale() *api.ScalePaths {
	if v.spec.Subresources == nil || v.spec.Subresources.Scale == nil {
		return nil
	}
	s := v.spec.Subresources.Scale
	out := &api.ScalePaths{Replicas: s.SpecReplicasPath, StatusReplicas: s.StatusReplicasPath, Fields: managedfields.ResourcePathMappings{}}
	if s.LabelSelectorPath != nil {
		out.Selector = *s.LabelSelectorPath
	}
	for _, other := range v.crd.Spec.Versions {
		var path fieldpath.Path
		if other.Subresources != nil && other.Subresources.Scale != nil {
			for _, name := range strings.Split(strings.TrimPrefix(other.Subresources.Scale.SpecReplicasPath, "."), ".") {
				path = append(path, fieldpath.PathElement{FieldName: &name})
			}
		}
		out.Fields[schema.GroupVersion{Group: v.crd.Spec.Group, Version: other.Name}.String()] = path
	}
	return out
}

// warning is what a deprecated version's clients are told, the newest version that is not deprecated included.
func (v *version) warning() string {
	if !v.spec.Deprecated {
		return ""
	}
	if v.spec.DeprecationWarning != nil {
		return *v.spec.DeprecationWarning
	}
	kind := v.crd.Spec.Names.Kind
	text := fmt.Sprintf("%s %s is deprecated", v.gv(), kind)
	var better []string
	for _, other := range v.crd.Spec.Versions {
		if other.Served && !other.Deprecated && apiversion.CompareKubeAwareVersionStrings(other.Name, v.spec.Name) > 0 {
			better = append(better, other.Name)
		}
	}
	if len(better) == 0 {
		return text
	}
	best := slices.MaxFunc(better, apiversion.CompareKubeAwareVersionStrings)
	return fmt.Sprintf("%s; use %s/%s %s", text, v.crd.Spec.Group, best, kind)
}
