package apiserver

import (
	"errors"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/cel/openapi/resolver"
)

func TestSchemaIn(t *testing.T) {
	doc := []byte(`{"components": {"schemas": {
		"io.example.Thing": {"type": "object", "properties": {"spec": {"$ref": "#/components/schemas/io.example.Spec"}},
			"x-kubernetes-group-version-kind": [{"group": "example.com", "version": "v1", "kind": "Thing"}]},
		"io.example.Spec": {"type": "object", "properties": {"size": {"type": "integer"}}}}}}`)
	s, err := schemaIn(doc, schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Thing"})
	if err != nil {
		t.Fatal(err)
	}
	if got := s.Properties["spec"].Properties["size"].Type; len(got) != 1 || got[0] != "integer" {
		t.Errorf("the size is of type %v", got)
	}
	if _, err := schemaIn(doc, schema.GroupVersionKind{Group: "example.com", Version: "v1", Kind: "Other"}); !errors.Is(err, resolver.ErrSchemaNotFound) {
		t.Errorf("of a kind that it does not describe: %v", err)
	}
	if _, err := schemaIn([]byte("{"), schema.GroupVersionKind{}); err == nil {
		t.Error("half a document is read")
	}
}
