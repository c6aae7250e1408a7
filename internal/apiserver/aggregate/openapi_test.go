package aggregate

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"pgregory.net/rapid"
)

var wardle = schema.GroupVersion{Group: "wardle.example.com", Version: "v1alpha1"}

const flunderSwagger = `{
  "swagger": "2.0", "info": {"title": "wardle", "version": "v1"},
  "paths": {
    "/apis/": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/APIGroupList"}}}}},
    "/apis/wardle.example.com/v1beta1/flunders": {"get": {"responses": {"200": {"schema": {"$ref": "#/definitions/Beta"}}}}},
    "/apis/wardle.example.com/v1alpha1/flunders": {
      "get": {"parameters": [{"$ref": "#/parameters/limit"}], "responses": {"200": {"schema": {"$ref": "#/definitions/FlunderList"}}}}}
  },
  "parameters": {"limit": {"in": "query", "name": "limit", "type": "integer", "maximum": 9007199254740993}},
  "definitions": {
    "APIGroupList": {"type": "object"}, "Beta": {"type": "object"},
    "FlunderList": {"type": "object", "properties": {"items": {"items": {"$ref": "#/definitions/Flunder"}}, "metadata": {"$ref": "#/definitions/ListMeta"}}},
    "Flunder": {"type": "object", "properties": {"metadata": {"$ref": "#/definitions/ObjectMeta"}}},
    "ListMeta": {"type": "object", "description": "as everywhere"},
    "ObjectMeta": {"type": "object", "properties": {"time": {"$ref": "#/definitions/Time"}}},
    "Time": {"type": "string", "description": "of an older release"}
  }
}`

func flunderDocument(t *testing.T) *Document {
	t.Helper()
	parts, err := partsOf([]byte(flunderSwagger), wardle)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := newDocument(parts)
	if err != nil {
		t.Fatal(err)
	}
	return doc
}

// TestPartsOfAVersion: its paths and what they need, and nothing else.
func TestPartsOfAVersion(t *testing.T) {
	parts, err := partsOf([]byte(flunderSwagger), wardle)
	if err != nil {
		t.Fatal(err)
	}
	if len(parts.Paths) != 1 || len(parts.Definitions) != 5 || parts.Definitions["Beta"] != nil {
		t.Errorf("paths %v, definitions %v", parts.Paths, parts.Definitions)
	}
	b, err := json.Marshal(parts.Paths)
	if err != nil || !strings.Contains(string(b), `"parameters":[{"in":"query","maximum":9007199254740993,"name":"limit"`) {
		t.Errorf("parameters are not in their place, or changed: %s, %v", b, err)
	}
}

// TestMerge: what means the same is said once, what does not gets a name of its own, and so does what refers to it.
func TestMerge(t *testing.T) {
	doc := []byte(`{"paths": {}, "definitions": {
		"ListMeta": {"type": "object", "description": "as everywhere"},
		"ObjectMeta": {"type": "object", "properties": {"time": {"$ref": "#/definitions/Time"}}},
		"Time": {"type": "string", "description": "of this release"}, "Time_v2": {"type": "string"}}}`)
	remote := flunderDocument(t)
	parts, err := Merge(doc, []*Document{remote, remote})
	if err != nil {
		t.Fatal(err)
	}
	d := parts[0].Definitions
	if d["ListMeta"] != nil || d["ObjectMeta"] != nil || d["Time"] != nil || d["Flunder"] == nil {
		t.Errorf("names that are taken: %v", d)
	}
	if d["Time_v3"] == nil || d["ObjectMeta_v2"] == nil {
		t.Fatalf("names of their own: %v", d)
	}
	ref := func(definition any, property string) any {
		return definition.(map[string]any)["properties"].(map[string]any)[property].(map[string]any)["$ref"]
	}
	if got := ref(d["Flunder"], "metadata"); got != "#/definitions/ObjectMeta_v2" {
		t.Errorf("a flunder's metadata is %v", got)
	}
	if got := ref(d["ObjectMeta_v2"], "time"); got != "#/definitions/Time_v3" {
		t.Errorf("its metadata's time is %v", got)
	}
	if len(parts[0].Paths) != 1 || len(parts[1].Paths) != 0 {
		t.Errorf("paths are %v and %v", parts[0].Paths, parts[1].Paths)
	}
}

// TestMergedTwice: a document that has been merged needs nothing more of the same server but what had to be renamed.
func TestMergedTwice(t *testing.T) {
	remote := flunderDocument(t)
	raw, err := remote.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	parts, err := Merge(raw, []*Document{remote})
	if err != nil || !reflect.DeepEqual(parts, []Parts{{Paths: map[string]any{}, Definitions: map[string]any{}}}) {
		t.Errorf("added %v, %v", parts, err)
	}
}

func TestConvertedV3(t *testing.T) {
	doc, err := convertedV3(flunderDocument(t))
	if err != nil {
		t.Fatal(err)
	}
	raw, err := doc.Bytes()
	if err != nil || !strings.Contains(string(raw), `"#/components/schemas/Flunder"`) || !strings.Contains(string(raw), `"/apis/wardle.example.com/v1alpha1/flunders"`) {
		t.Errorf("%s, %v", raw, err)
	}
	if doc, err := convertedV3(nil); doc != nil || err != nil {
		t.Errorf("of nothing: %v, %v", doc, err)
	}
}

// TestMergedReferencesMeanTheSame: whatever names two documents share, each path of the second still leads to what it led
// to there, word for word.
func TestMergedReferencesMeanTheSame(t *testing.T) {
	names := []string{"A", "B", "C", "D", "A_v2"}
	rapid.Check(t, func(t *rapid.T) {
		document := func(path string) Parts {
			p := Parts{Paths: map[string]any{}, Definitions: map[string]any{}}
			for _, name := range names {
				d := map[string]any{"description": rapid.SampledFrom([]string{"x", "y"}).Draw(t, "description")}
				for _, ref := range rapid.SliceOfNDistinct(rapid.SampledFrom(names), 0, 2, rapid.ID[string]).Draw(t, "refs") {
					d[ref] = map[string]any{"$ref": definitionRef + ref}
				}
				p.Definitions[name] = d
			}
			p.Paths[path] = map[string]any{"$ref": definitionRef + rapid.SampledFrom(names).Draw(t, "of the path")}
			return p
		}
		there, remote := document("/there"), document("/remote")
		raw, err := json.Marshal(there)
		if err != nil {
			t.Fatal(err)
		}
		doc, err := newDocument(remote)
		if err != nil {
			t.Fatal(err)
		}
		parts, err := Merge(raw, []*Document{doc})
		if err != nil {
			t.Fatal(err)
		}
		all := Parts{Paths: map[string]any{}, Definitions: map[string]any{}}
		for _, p := range []Parts{there, parts[0]} {
			maps.Copy(all.Paths, p.Paths)
			maps.Copy(all.Definitions, p.Definitions)
		}
		if got, want := unfolded(all, all.Paths["/remote"], 6), unfolded(remote, remote.Paths["/remote"], 6); got != want {
			t.Errorf("it means %s\nand meant %s", got, want)
		}
		if got, want := unfolded(all, all.Paths["/there"], 6), unfolded(there, there.Paths["/there"], 6); got != want {
			t.Errorf("what was there means %s\nand meant %s", got, want)
		}
	})
}

// unfolded is what a value means, without names, down to a depth.
func unfolded(p Parts, v any, depth int) string {
	object, ok := v.(map[string]any)
	if depth == 0 {
		return "…"
	}
	if !ok {
		return fmt.Sprint(v)
	}
	if name, ok := refOf(object, definitionRef); ok {
		return unfolded(p, p.Definitions[name], depth-1)
	}
	var out []string
	for _, key := range slices.Sorted(maps.Keys(object)) {
		out = append(out, key+":"+unfolded(p, object[key], depth))
	}
	return "{" + strings.Join(out, " ") + "}"
}
