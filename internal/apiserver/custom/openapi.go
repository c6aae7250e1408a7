package custom

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/controller/openapi/builder"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/kube-openapi/pkg/spec3"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// DocumentV3 is the OpenAPI document, version 3, of one version of the definitions' group, in JSON. A definition that can't be
// described is left out; it is an error if there is no other.
func DocumentV3(crds []*apiextensionsv1.CustomResourceDefinition, version string, log *slog.Logger) ([]byte, error) {
	var all *spec3.OpenAPI
	for _, crd := range crds {
		s, err := builder.BuildOpenAPIV3(accepted(crd), version, builder.Options{IncludeSelectableFields: true})
		if err == nil && all != nil {
			s, err = builder.MergeSpecsV3(all, s)
		}
		if err != nil {
			leftOut(log, crd, version, err)
			continue
		}
		all = s
	}
	if all == nil {
		return nil, fmt.Errorf("OpenAPI of version %s: there is nothing that can be described", version)
	}
	return json.Marshal(all)
}

// accepted is a definition by the names that it is served by, which are not always those that it asks for.
func accepted(crd *apiextensionsv1.CustomResourceDefinition) *apiextensionsv1.CustomResourceDefinition {
	out := *crd
	out.Spec.Names = crd.Status.AcceptedNames
	return &out
}

func leftOut(log *slog.Logger, crd *apiextensionsv1.CustomResourceDefinition, version string, err error) {
	log.Error("a custom resource is left out of the OpenAPI documents", "definition", crd.Name, "version", version, "error", err)
}

// PartsV2 is what definitions add to the OpenAPI document, version 2: their paths and schemas.
type PartsV2 struct {
	Paths       map[string]spec.PathItem `json:"paths"`
	Definitions spec.Definitions         `json:"definitions"`
}

// DocumentV2 collects the parts of all served versions. What schemas refer to beside each other, such as metadata, is
// in the built-in kinds' document. A definition that can't be described is left out.
func DocumentV2(crds []*apiextensionsv1.CustomResourceDefinition, log *slog.Logger) PartsV2 {
	out := PartsV2{Paths: map[string]spec.PathItem{}, Definitions: spec.Definitions{}}
	for _, crd := range crds {
		for _, v := range crd.Spec.Versions {
			if !v.Served {
				continue
			}
			s, err := builder.BuildOpenAPIV2(accepted(crd), v.Name, builder.Options{V2: true, IncludeSelectableFields: true})
			if err != nil {
				leftOut(log, crd, v.Name, err)
				continue
			}
			maps.Copy(out.Paths, s.Paths.Paths)
			for name, schema := range s.Definitions {
				if describes(schema, crd.Spec.Group) {
					out.Definitions[name] = schema
				}
			}
		}
	}
	return out
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
