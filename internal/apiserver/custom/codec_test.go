package custom

import (
	"fmt"
	"strings"
	"testing"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apiextensions-apiserver/pkg/apiserver/conversion"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"barque.dev/internal/api"
)

const shipDefinition = `
metadata: {name: ships.example.com}
spec:
  group: example.com
  scope: Namespaced
  names: {plural: ships, singular: ship, kind: Ship, listKind: Fleet}
  conversion: {strategy: None}
  versions:
  - {name: v1alpha1, served: true, deprecated: true, schema: {openAPIV3Schema: {type: object, properties: {spec: {type: object, properties: {rig: {type: string}}}}}}}
  - name: v1
    served: true
    storage: true
    subresources: {status: {}}
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              masts: {type: integer, default: 3}
              rig: {type: string, nullable: true}
              load: {x-kubernetes-int-or-string: true}
              boat: {type: object, x-kubernetes-embedded-resource: true, x-kubernetes-preserve-unknown-fields: true}
  - {name: v0, served: false, schema: {openAPIV3Schema: {type: object}}}
status:
  acceptedNames: {plural: ships, singular: ship, kind: Ship, listKind: Fleet}
`

func ships(t *testing.T) *api.Resource {
	t.Helper()
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(shipDefinition), crd); err != nil {
		t.Fatal(err)
	}
	factory, err := conversion.NewCRConverterFactory(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	r, err := New(crd, factory)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

var v1 = schema.GroupVersion{Group: "example.com", Version: "v1"}

func TestResource(t *testing.T) {
	r := ships(t)
	if r.Prefix != "example.com/ships" || r.ListKind != "Fleet" || strings.Join(r.Served, " ") != "v1 v1alpha1" || r.Kept != v1 {
		t.Errorf("resource is %+v", r)
	}
	if r.In("v1").Subresources["status"] == nil || r.In("v1alpha1").Subresources["status"] != nil {
		t.Error("each version has subresources of its own")
	}
	if got := r.In("v1alpha1").Custom.Warning; got != "example.com/v1alpha1 Ship is deprecated; use example.com/v1 Ship" {
		t.Errorf("warning: %s", got)
	}
}

// TestStoredForm: objects stand in etcd as kube-apiserver writes them, whatever version they come in, and what is stored
// gets the defaults of today.
func TestStoredForm(t *testing.T) {
	c := ships(t).Codec()
	old := &unstructured.Unstructured{Object: map[string]any{
		"apiVersion": "example.com/v1alpha1", "kind": "Ship", "spec": map[string]any{"rig": "bark"},
		"metadata": map[string]any{"name": "pamir", "resourceVersion": "8"},
	}}
	value, err := c.Encode(old)
	if want := `{"apiVersion":"example.com/v1","kind":"Ship","metadata":{"name":"pamir"},"spec":{"masts":3,"rig":"bark"}}` + "\n"; err != nil || string(value) != want {
		t.Errorf("stored %s, %v", value, err)
	}
	if old.GetAPIVersion() != "example.com/v1alpha1" || old.GetResourceVersion() != "8" {
		t.Errorf("the object became %v", old)
	}
	stored := `{"apiVersion":"example.com/v1alpha1","kind":"Ship","metadata":{"name":"pamir","labels":{"bad":1}},"spec":{"rig":"bark","gone":true}}`
	obj, err := c.Decode([]byte(stored), 9)
	if err != nil {
		t.Fatal(err)
	}
	u := obj.(*unstructured.Unstructured)
	if u.GetAPIVersion() != "example.com/v1alpha1" || u.GetResourceVersion() != "9" || u.GetGeneration() != 1 {
		t.Errorf("decoded %v", u)
	}
	if spec := u.Object["spec"].(map[string]any); len(spec) != 1 {
		t.Errorf("spec is %v", spec)
	}
	now, err := c.Convert(obj, v1)
	if err != nil || now.(*unstructured.Unstructured).Object["spec"].(map[string]any)["masts"] != int64(3) {
		t.Errorf("converted %v, %v", now, err)
	}
}

func TestDecodeStrictly(t *testing.T) {
	c := ships(t).Codec()
	for _, tt := range []struct{ about, spec, strict, fails string }{
		{"as it should be", `{"masts":4,"load":"5"}`, "", ""},
		{"an unknown field", `{"sail":1}`, `unknown field "spec.sail"`, ""},
		{"a repeated field", `{"masts":1,"masts":2}`, `duplicate field "spec.masts"`, ""},
		{"unknown in embedded metadata", `{"boat":{"apiVersion":"v1","kind":"Pod","metadata":{"x":1}}}`, `unknown field "spec.boat.metadata.x"`, ""},
		{"embedded metadata of another type", `{"boat":{"apiVersion":"v1","kind":"Pod","metadata":{"labels":7}}}`, "", "labels"},
	} {
		data := []byte(`{"apiVersion":"example.com/v1","kind":"Ship","metadata":{"name":"x"},"spec":` + tt.spec + `}`)
		_, err := c.DecodeJSON(data, v1, true)
		strict, ok := runtime.AsStrictDecodingError(err)
		switch {
		case tt.fails != "":
			if err == nil || ok || !strings.Contains(err.Error(), tt.fails) {
				t.Errorf("%s: %v", tt.about, err)
			}
			continue
		case tt.strict == "" && err != nil, tt.strict != "" && (!ok || strict.Errors()[0].Error() != tt.strict):
			t.Errorf("%s: %v", tt.about, err)
		}
		if obj, err := c.DecodeJSON(data, v1, false); err != nil || obj == nil {
			t.Errorf("%s, leniently: %v", tt.about, err)
		}
	}
	if _, err := c.DecodeJSON([]byte(`{"apiVersion":"example.com/v1","kind":"Boat"}`), v1, false); err == nil {
		t.Error("another kind was decoded")
	}
}

// Whatever stands in etcd does no more than fail to decode.
func TestDecodeStrange(t *testing.T) {
	for stored, decodes := range map[string]bool{
		`{"apiVersion":"example.com/v1","kind":"Ship"}`:                        true,
		`{"apiVersion":"example.com/v1","kind":"Ship","metadata":null}`:        true,
		`{"apiVersion":"example.com/v1","kind":"Ship","metadata":{"name":[]}}`: true,
		`{"apiVersion":"example.com/v1","kind":"Ship","metadata":[]}`:          false,
		`{"apiVersion":"a/b/c","kind":"Ship","metadata":{}}`:                   false,
		`{"apiVersion":"example.com/v1","kind":"Ship","items":[]}`:             false,
		`{"apiVersion":"other/v1","kind":"Ship"}`:                              true,
		`null`: false,
		``:     false,
	} {
		if obj, err := ships(t).Codec().Decode([]byte(stored), 1); (err == nil) != decodes {
			t.Errorf("%s: %v, %v", stored, obj, err)
		}
	}
}

// However many fields are unknown, some of them say enough.
func TestDecodeTellsSome(t *testing.T) {
	var spec strings.Builder
	for i := range 10 * maxComplaints {
		fmt.Fprintf(&spec, `"sail%04d":1,`, i)
	}
	data := []byte(`{"apiVersion":"example.com/v1","kind":"Ship","metadata":{"name":"x"},"spec":{` + spec.String() + `"masts":4}}`)
	_, err := ships(t).Codec().DecodeJSON(data, v1, true)
	strict, ok := runtime.AsStrictDecodingError(err)
	if !ok || len(strict.Errors()) != maxComplaints || strict.Errors()[0].Error() != `unknown field "spec.sail0000"` {
		t.Errorf("%.300v", err)
	}
}

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"apiVersion":"example.com/v1","kind":"Ship","metadata":{"name":"x"},"spec":{"masts":4,"boat":{"metadata":{}}}}`))
	f.Add([]byte(`{"apiVersion":7,"kind":{},"metadata":[]}`))
	f.Add([]byte(`{"apiVersion":"example.com/v1","kind":"Ship","metadata":{"managedFields":[{"fieldsV1":3}]},"spec":null}`))
	crd := &apiextensionsv1.CustomResourceDefinition{}
	if err := yaml.UnmarshalStrict([]byte(shipDefinition), crd); err != nil {
		f.Fatal(err)
	}
	factory, err := conversion.NewCRConverterFactory(nil, nil)
	if err != nil {
		f.Fatal(err)
	}
	r, err := New(crd, factory)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, strict := range []bool{true, false} {
			_, _ = r.Codec().DecodeJSON(data, v1, strict)
		}
		obj, err := r.Codec().Decode(data, 1)
		if err != nil {
			return
		}
		_, _ = r.Codec().Encode(obj)
	})
}
