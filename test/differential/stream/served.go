package stream

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
)

// Served is what a server says that it serves.
type Served struct {
	// Groups are the items of aggregated discovery, of /api and /apis.
	Groups []Group
	// Documents are those of OpenAPI version 3, by their path below /openapi/v3/.
	Documents map[string]*Document
}

// Group is an API group in aggregated discovery.
type Group struct {
	Metadata struct {
		Name string `json:"name"`
	} `json:"metadata"`
	Versions []Version `json:"versions"`
}

// Version is one of a group's.
type Version struct {
	Version   string     `json:"version"`
	Resources []Resource `json:"resources"`
}

// Resource is one of a version's.
type Resource struct {
	Resource     string        `json:"resource"`
	ResponseKind Kind          `json:"responseKind"`
	Scope        string        `json:"scope"`
	Verbs        []string      `json:"verbs"`
	Subresources []Subresource `json:"subresources"`
}

// Subresource is a part of a resource.
type Subresource struct {
	Subresource  string   `json:"subresource"`
	ResponseKind Kind     `json:"responseKind"`
	Verbs        []string `json:"verbs"`
}

// Kind is what a resource's objects are.
type Kind struct {
	Group   string `json:"group"`
	Version string `json:"version"`
	Kind    string `json:"kind"`
}

// Document is one of OpenAPI version 3.
type Document struct {
	Components struct {
		Schemas map[string]*Schema `json:"schemas"`
	} `json:"components"`
}

// Schema is the part of a schema that requests are made from.
type Schema struct {
	Ref        string             `json:"$ref"`
	AllOf      []*Schema          `json:"allOf"`
	Type       string             `json:"type"`
	Format     string             `json:"format"`
	Properties map[string]*Schema `json:"properties"`
	Items      *Schema            `json:"items"`
	Required   []string           `json:"required"`
	Default    any                `json:"default"`
	// Additional is a schema or a boolean.
	Additional json.RawMessage `json:"additionalProperties"`
	Kinds      []Kind          `json:"x-kubernetes-group-version-kind"`
}

// root is the path of a group's version.
func root(group, version string) string {
	if group == "" {
		return "/api/" + version
	}
	return "/apis/" + group + "/" + version
}

// schema finds that of a kind.
func (s *Served) schema(of Kind) (*Document, *Schema, error) {
	path := strings.TrimPrefix(root(of.Group, of.Version), "/")
	doc, ok := s.Documents[path]
	if !ok {
		return nil, nil, fmt.Errorf("there is no OpenAPI document %s", path)
	}
	for _, schema := range doc.Components.Schemas {
		if slices.Contains(schema.Kinds, of) {
			return doc, schema, nil
		}
	}
	return nil, nil, fmt.Errorf("OpenAPI document %s has no schema of %s", path, of.Kind)
}

// resolve follows a reference.
func (d *Document) resolve(s *Schema) *Schema {
	for range 5 {
		switch {
		case s == nil:
			return &Schema{}
		case s.Ref != "":
			s = d.Components.Schemas[s.Ref[strings.LastIndexByte(s.Ref, '/')+1:]]
		case s.Type == "" && len(s.AllOf) == 1:
			s = s.AllOf[0]
		default:
			return s
		}
	}
	return &Schema{}
}

// values is the schema of a map's values; nil for what is no map.
func (s *Schema) values() *Schema {
	if len(s.Additional) == 0 || s.Additional[0] != '{' {
		return nil
	}
	var of Schema
	if err := json.Unmarshal(s.Additional, &of); err != nil {
		return nil
	}
	return &of
}
