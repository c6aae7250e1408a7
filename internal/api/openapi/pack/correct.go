package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"barque.dev/internal/api"
)

// What the module publishes is made with every feature gate switched on or off at will; servers describe themselves a
// little differently. correct brings a document into the form that they serve.

// correct adds enumerations and the version, and removes the encoding that is not served.
func correct(data []byte, version string, known map[string]*described) ([]byte, error) {
	var doc map[string]any
	if err := json.Unmarshal(data, &doc); err != nil {
		return nil, err
	}
	info, ok := doc["info"].(map[string]any)
	if !ok {
		return nil, fmt.Errorf("it has no info")
	}
	info["version"] = version
	schemas, _ := doc["definitions"].(map[string]any)
	if components, ok := doc["components"].(map[string]any); ok {
		schemas, _ = components["schemas"].(map[string]any)
	}
	for name, schema := range schemas {
		enumerate(schema, known[name])
	}
	withoutCBOR(doc["paths"])
	if _, all := doc["swagger"]; all {
		prune(doc, schemas)
	}
	return json.Marshal(doc)
}

// enumerate tells the values that a field may have, and what they mean.
func enumerate(published any, known *described) {
	schema, ok := published.(map[string]any)
	if !ok || known == nil {
		return
	}
	if len(known.enum) > 0 {
		schema["enum"] = known.enum
		if known.description != "" {
			schema["description"] = known.description
		}
	}
	if properties, ok := schema["properties"].(map[string]any); ok {
		for name, property := range known.properties {
			enumerate(properties[name], property)
		}
	}
	enumerate(schema["items"], known.items)
	enumerate(schema["additionalProperties"], known.additional)
}

// prune removes from the document of all what is published and not served, such as alpha versions, and the schemas that
// nothing else needs.
func prune(doc, schemas map[string]any) {
	served := map[string]bool{}
	for _, r := range api.Resources() {
		for _, version := range r.Served {
			served[r.Group+"/"+version] = true
		}
	}
	paths, _ := doc["paths"].(map[string]any)
	groups := map[string]bool{}
	for version := range served {
		groups[version[:strings.IndexByte(version, '/')]] = true
	}
	for path := range paths {
		parts := strings.Split(strings.Trim(path, "/"), "/")
		if parts[0] == "apis" && len(parts) > 2 && !served[parts[1]+"/"+parts[2]] || parts[0] == "apis" && len(parts) == 2 && !groups[parts[1]] {
			delete(paths, path)
		}
	}
	// Logs of the server's machine are not served, nor are they by stock unless somebody asks for it.
	parameters, _ := doc["parameters"].(map[string]any)
	for path := range paths {
		if strings.HasPrefix(path, "/logs/") {
			delete(paths, path)
		}
	}
	for name := range parameters {
		if strings.HasPrefix(name, "logpath-") {
			delete(parameters, name)
		}
	}
	needed := map[string]bool{}
	follow(paths, schemas, needed)
	follow(parameters, schemas, needed)
	for name := range schemas {
		if !needed[name] {
			delete(schemas, name)
		}
	}
}

// follow notes the schemas that a value refers to, and those that they refer to.
func follow(v any, schemas map[string]any, needed map[string]bool) {
	switch v := v.(type) {
	case map[string]any:
		for _, value := range v {
			follow(value, schemas, needed)
		}
	case []any:
		for _, value := range v {
			follow(value, schemas, needed)
		}
	case string:
		name, ok := strings.CutPrefix(v, "#/definitions/")
		if ok && !needed[name] {
			needed[name] = true
			follow(schemas[name], schemas, needed)
		}
	}
}

// withoutCBOR removes what names that encoding, whose gate is off: contents of version 3, and lists of version 2.
func withoutCBOR(v any) {
	switch v := v.(type) {
	case map[string]any:
		for key, value := range v {
			if isCBOR(key) {
				delete(v, key)
				continue
			}
			if list, ok := value.([]any); ok && (key == "produces" || key == "consumes") {
				v[key] = keep(list)
				continue
			}
			withoutCBOR(value)
		}
	case []any:
		for _, value := range v {
			withoutCBOR(value)
		}
	}
}

func keep(types []any) []any {
	kept := []any{}
	for _, t := range types {
		if name, ok := t.(string); !ok || !isCBOR(name) {
			kept = append(kept, t)
		}
	}
	return kept
}

func isCBOR(media string) bool {
	return strings.HasPrefix(media, "application/cbor") || media == "application/apply-patch+cbor"
}
