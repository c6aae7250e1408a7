package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"
)

// generated is what the definitions of two types look like in Kubernetes' source.
const generated = `package openapi

func schema_k8sio_api_core_v1_ServicePort(ref common.ReferenceCallback) common.OpenAPIDefinition {
	return common.OpenAPIDefinition{
		Schema: spec.Schema{
			SchemaProps: spec.SchemaProps{
				Description: "A port.",
				Properties: map[string]spec.Schema{
					"protocol": {
						SchemaProps: spec.SchemaProps{
							Description: "new\n\nwith values",
							Type:        []string{"string"},
							Enum:        []interface{}{"SCTP", "TCP", "UDP"},
						},
					},
					"port": {SchemaProps: spec.SchemaProps{Description: "not taken"}},
				},
			},
		},
		Dependencies: []string{"x"},
	}
}

func schema_k8sio_api_certificates_v1_Request(ref common.ReferenceCallback) common.OpenAPIDefinition {
	return common.OpenAPIDefinition{
		Schema: spec.Schema{
			SchemaProps: spec.SchemaProps{
				Properties: map[string]spec.Schema{
					"usages": {
						SchemaProps: spec.SchemaProps{
							Items: &spec.SchemaOrArray{
								Schema: &spec.Schema{SchemaProps: spec.SchemaProps{Enum: []interface{}{"any", "signing"}}},
							},
						},
					},
					"by": {
						SchemaProps: spec.SchemaProps{
							AdditionalProperties: &spec.SchemaOrBool{
								Schema: &spec.Schema{SchemaProps: spec.SchemaProps{Enum: []interface{}{"key"}}},
							},
						},
					},
				},
			},
		},
	}
}
`

func source(t *testing.T, text string) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "generated.go")
	if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

// Version 2 has one document, which tells of what is served and what that needs.
func TestPrune(t *testing.T) {
	const published = `{"swagger":"2.0","info":{"version":"unversioned"},"definitions":{"A":{"properties":{"b":{"$ref":"#/definitions/B"}}},"B":{"items":{"$ref":"#/definitions/A"}},"Alpha":{},"Patch":{}},"parameters":{"body-x":{"schema":{"$ref":"#/definitions/Patch"}},"logpath-x":{}},` +
		`"paths":{"/apis/apps/v1/deployments":{"get":{"schema":{"$ref":"#/definitions/A"}}},"/apis/apps/v1alpha9/x":{"get":{"schema":{"$ref":"#/definitions/Alpha"}}},"/apis/apps/":{},"/apis/nothing.example.com/":{},"/api/v1/pods":{},"/version/":{},"/logs/{logpath}":{}}}`
	out, err := correct([]byte(published), "1.2", nil)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct{ Definitions, Parameters, Paths map[string]any }
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	if got, want := slices.Sorted(maps.Keys(doc.Definitions)), []string{"A", "B", "Patch"}; len(doc.Parameters) != 1 || !slices.Equal(got, want) {
		t.Errorf("definitions %v, want %v", got, want)
	}
	if got, want := slices.Sorted(maps.Keys(doc.Paths)), []string{"/api/v1/pods", "/apis/apps/", "/apis/apps/v1/deployments", "/version/"}; !slices.Equal(got, want) {
		t.Errorf("paths %v, want %v", got, want)
	}
}

func TestUnreadableSource(t *testing.T) {
	for _, text := range []string{"", "package openapi", "package openapi; func schema_k8sio_api_x() { panic(1) }"} {
		if found, err := definitions(source(t, text)); err == nil {
			t.Errorf("%q has definitions: %v", text, found)
		}
	}
}

func TestCorrect(t *testing.T) {
	known, err := definitions(source(t, generated))
	if err != nil {
		t.Fatal(err)
	}
	const published = `{"info":{"title":"Kubernetes","version":"unversioned"},"components":{"schemas":{"io.k8s.api.core.v1.ServicePort":{"properties":{"protocol":{"description":"old","type":"string"},"port":{"type":"integer"}}},` +
		`"io.k8s.api.certificates.v1.Request":{"properties":{"usages":{"items":{"type":"string"},"type":"array"},"by":{"additionalProperties":{}}}},"unknown":{"properties":{"x":{}}}}},` +
		`"paths":{"/x":{"get":{"responses":{"200":{"content":{"application/json":{},"application/cbor":{},"application/cbor-seq":{}}}},"produces":["application/json","application/cbor"]},"patch":{"consumes":["application/apply-patch+cbor","application/apply-patch+yaml"]}}}}`
	out, err := correct([]byte(published), "1.2", known)
	if err != nil {
		t.Fatal(err)
	}
	var doc struct {
		Info       map[string]string
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct {
					Description string
					Enum        []string
					Items       struct{ Enum []string }
					Additional  struct{ Enum []string } `json:"additionalProperties"`
				}
			}
		}
		Paths map[string]map[string]any
	}
	if err := json.Unmarshal(out, &doc); err != nil {
		t.Fatal(err)
	}
	if doc.Info["version"] != "1.2" || doc.Info["title"] != "Kubernetes" {
		t.Errorf("info: %v", doc.Info)
	}
	port := doc.Components.Schemas["io.k8s.api.core.v1.ServicePort"].Properties
	if !reflect.DeepEqual(port["protocol"].Enum, []string{"SCTP", "TCP", "UDP"}) || port["protocol"].Description != "new\n\nwith values" || port["port"].Description != "" || port["port"].Enum != nil {
		t.Errorf("a service's port: %+v", port)
	}
	request := doc.Components.Schemas["io.k8s.api.certificates.v1.Request"].Properties
	if !reflect.DeepEqual(request["usages"].Items.Enum, []string{"any", "signing"}) || !reflect.DeepEqual(request["by"].Additional.Enum, []string{"key"}) {
		t.Errorf("a request: %+v", request)
	}
	want := map[string]any{
		"get":   map[string]any{"responses": map[string]any{"200": map[string]any{"content": map[string]any{"application/json": map[string]any{}}}}, "produces": []any{"application/json"}},
		"patch": map[string]any{"consumes": []any{"application/apply-patch+yaml"}},
	}
	if !reflect.DeepEqual(doc.Paths["/x"], want) {
		t.Errorf("paths: %v, want %v", doc.Paths["/x"], want)
	}
	for _, broken := range []string{"", "[]", "{}"} {
		if _, err := correct([]byte(broken), "1", nil); err == nil {
			t.Errorf("%q is taken for a document", broken)
		}
	}
}
