package custom

import (
	"fmt"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	"k8s.io/apimachinery/pkg/util/managedfields"
	"k8s.io/kube-openapi/pkg/spec3"
	"sigs.k8s.io/structured-merge-diff/v6/fieldpath"
)

// newTypes makes what looks at objects of any version by their schemas.
func (d *definition) newTypes() (managedfields.TypeConverter, error) {
	var specs []*spec3.OpenAPI
	for _, v := range d.crd.Spec.Versions {
		s, err := builder.BuildOpenAPIV3(d.crd, v.Name, builder.Options{})
		if err != nil {
			return nil, fmt.Errorf("schema of %s in version %s: %w", d.crd.Name, v.Name, err)
		}
		specs = append(specs, s)
	}
	all, err := builder.MergeSpecsV3(specs...)
	if err != nil {
		return nil, fmt.Errorf("schemas of %s: %w", d.crd.Name, err)
	}
	types, err := managedfields.NewTypeConverter(all.Components.Schemas, d.crd.Spec.PreserveUnknownFields)
	if err != nil {
		return nil, fmt.Errorf("schemas of %s: %w", d.crd.Name, err)
	}
	return types, nil
}

// fieldManagers makes the version's field managers, each at first use.
func (v *version) fieldManagers() func(subresource string) (*managedfields.FieldManager, error) {
	main := sync.OnceValues(func() (*managedfields.FieldManager, error) {
		return v.newFieldManager("", v.rules.GetResetFields())
	})
	status := sync.OnceValues(func() (*managedfields.FieldManager, error) {
		return v.newFieldManager("status", v.resetByStatus())
	})
	return func(subresource string) (*managedfields.FieldManager, error) {
		if subresource == "status" {
			return status()
		}
		return main()
	}
}

func (v *version) newFieldManager(subresource string, reset map[fieldpath.APIVersion]*fieldpath.Set) (*managedfields.FieldManager, error) {
	types, err := v.types()
	if err != nil {
		return nil, err
	}
	m, err := managedfields.NewDefaultCRDFieldManager(types, v.codec.convert, v.codec, creater{}, v.kind(), v.gv(),
		subresource, fieldpath.NewExcludeFilterSetMap(reset))
	if err != nil {
		return nil, fmt.Errorf("field manager of %s: %w", v.kind(), err)
	}
	return m, nil
}

// resetByStatus is what changes of the status never change, in every version that has one.
func (v *version) resetByStatus() map[fieldpath.APIVersion]*fieldpath.Set {
	reset := map[fieldpath.APIVersion]*fieldpath.Set{}
	for _, other := range v.versions {
		if hasStatus(other.spec) {
			for version, set := range other.statusRules.GetResetFields() {
				reset[version] = set
			}
		}
	}
	return reset
}

func hasStatus(v *apiextensionsv1.CustomResourceDefinitionVersion) bool {
	return v.Subresources != nil && v.Subresources.Status != nil
}
