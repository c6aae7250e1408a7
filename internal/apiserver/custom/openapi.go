package custom

import (
	"encoding/json"
	"fmt"
	"maps"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// DocumentV3 is the OpenAPI document, version 3, of one version of the definitions' group, in JSON.
func DocumentV3(crds []*apiextensionsv1.CustomResourceDefinition, version string) ([]byte, error) {
	var specs []*spec3.OpenAPI
	for _, crd := range crds {
		s, err := builder.BuildOpenAPIV3(crd, version, builder.Options{IncludeSelectableFields: true})
		if err != nil {
			return nil, fmt.Errorf("OpenAPI of %s in version %s: %w", crd.Name, version, err)
		}
		specs = append(specs, s)
	}
	all, err := builder.MergeSpecsV3(specs...)
	if err != nil {
		return nil, fmt.Errorf("OpenAPI of version %s: %w", version, err)
	}
	return json.Marshal(all)
}

// PartsV2 is what definitions add to the OpenAPI document, version 2: their paths and schemas.
type PartsV2 struct {
	Paths       map[string]spec.PathItem `json:"paths"`
	Definitions spec.Definitions         `json:"definitions"`
}

// DocumentV2 collects the parts of all served versions. What schemas refer to beside each other, such as metadata, is
// in the built-in kinds' document.
func DocumentV2(crds []*apiextensionsv1.CustomResourceDefinition) (PartsV2, error) {
	out := PartsV2{Paths: map[string]spec.PathItem{}, Definitions: spec.Definitions{}}
	for _, crd := range crds {
		for _, v := range crd.Spec.Versions {
			if !v.Served {
				continue
			}
			s, err := builder.BuildOpenAPIV2(crd, v.Name, builder.Options{V2: true, IncludeSelectableFields: true})
			if err != nil {
				return out, fmt.Errorf("OpenAPI of %s in version %s: %w", crd.Name, v.Name, err)
			}
			maps.Copy(out.Paths, s.Paths.Paths)
			for name, schema := range s.Definitions {
				if describes(schema, crd.Spec.Group) {
					out.Definitions[name] = schema
				}
			}
		}
	}
	return out, nil
}

// describes tells whether a schema is that of a kind of the group alone.
func describes(s spec.Schema, group string) bool {
	raw, err := json.Marshal(s.Extensions["x-kubernetes-group-version-kind"])
	if err != nil {
		return false
	}
	var kinds []metav1.GroupVersionKind
	return json.Unmarshal(raw, &kinds) == nil && len(kinds) == 1 && kinds[0].Group == group
}
