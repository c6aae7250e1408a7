package apiserver

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
	"k8s.io/kube-openapi/pkg/validation/spec"

	"barque.dev/internal/api/openapi"
)

// ResolveSchema returns the schema of a kind that is served, as OpenAPI describes it, with what it refers to
// in its place. It implements resolver.SchemaResolver. It unpacks the kind's whole document, so it is for rare use.
func (s *Server) ResolveSchema(gvk schema.GroupVersionKind) (*spec.Schema, error) {
	if s.specs == nil {
		return nil, fmt.Errorf("schema of %s: %w", gvk, openapi.ErrMissing)
	}
	name := "apis/" + gvk.GroupVersion().String()
	if gvk.Group == "" {
		name = "api/" + gvk.Version
	}
	o := &openAPI{server: s, specs: s.specs}
	found, err := o.find(context.Background(), name)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", gvk, err)
	}
	if found.hash == "" {
		return nil, fmt.Errorf("schema of %s: %w", gvk, resolver.ErrSchemaNotFound)
	}
	doc, err := found.in(openapi.JSON)
	if err != nil {
		return nil, fmt.Errorf("schema of %s: %w", gvk, err)
	}
	var buf bytes.Buffer
	if _, err := doc.WriteTo(&buf); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", gvk, err)
	}
	return schemaIn(buf.Bytes(), gvk)
}

// schemaIn finds the schema of a kind in a version 3 document.
func schemaIn(doc []byte, gvk schema.GroupVersionKind) (*spec.Schema, error) {
	var all struct {
		Components struct {
			Schemas map[string]*spec.Schema `json:"schemas"`
		} `json:"components"`
	}
	if err := json.Unmarshal(doc, &all); err != nil {
		return nil, fmt.Errorf("schema of %s: %w", gvk, err)
	}
	const prefix = "#/components/schemas/"
	for name, s := range all.Components.Schemas {
		var kinds []schema.GroupVersionKind
		if s.Extensions.GetObject("x-kubernetes-group-version-kind", &kinds) != nil || !slices.Contains(kinds, gvk) {
			continue
		}
		return resolver.PopulateRefs(func(ref string) (*spec.Schema, bool) {
			s, ok := all.Components.Schemas[strings.TrimPrefix(ref, prefix)]
			return s, ok
		}, name)
	}
	return nil, fmt.Errorf("schema of %s: %w", gvk, resolver.ErrSchemaNotFound)
}
