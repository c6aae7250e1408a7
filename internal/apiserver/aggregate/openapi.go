package aggregate

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"reflect"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/kube-openapi/pkg/openapiconv"
	"k8s.io/kube-openapi/pkg/validation/spec"
)

// A Document is one that a server sent, kept compressed. It is immutable.
type Document struct {
	gzip []byte
	sum  string
}

// Hash changes with the document.
func (d *Document) Hash() string { return d.sum }

func (d *Document) hash() string {
	if d == nil {
		return ""
	}
	return d.sum
}

// Bytes is the document in JSON.
func (d *Document) Bytes() ([]byte, error) {
	z, err := gzip.NewReader(bytes.NewReader(d.gzip))
	if err != nil {
		return nil, fmt.Errorf("unpack a document: %w", err)
	}
	return io.ReadAll(z)
}

// newDocument makes a document of a value.
func newDocument(v any) (*Document, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return compress(b)
}

// compress makes a document of JSON.
func compress(doc []byte) (*Document, error) {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(doc); err != nil {
		return nil, err
	}
	if err := z.Close(); err != nil {
		return nil, err
	}
	return &Document{gzip: bytes.Clone(buf.Bytes()), sum: fmt.Sprintf("%X", sha512.Sum512(doc))}, nil
}

// Parts are what a server's OpenAPI document, version 2, says of one version of a group: its paths, and the definitions
// that they need.
type Parts struct {
	Paths       map[string]any `json:"paths"`
	Definitions map[string]any `json:"definitions"`
}

// Merge makes of remotes, which are Parts, what is to be added to a version 2 document: what is there already is not said
// twice, and names that mean something else there are changed. Earlier remotes count as being there.
func Merge(doc []byte, remotes []*Document) ([]Parts, error) {
	var there struct {
		Paths       map[string]json.RawMessage `json:"paths"`
		Definitions map[string]json.RawMessage `json:"definitions"`
	}
	if err := json.Unmarshal(doc, &there); err != nil {
		return nil, fmt.Errorf("merge OpenAPI documents: %w", err)
	}
	added := Parts{Paths: map[string]any{}, Definitions: map[string]any{}}
	path := func(key string) bool { return there.Paths[key] != nil || added.Paths[key] != nil }
	definition := func(name string) (any, bool) {
		if d, ok := added.Definitions[name]; ok {
			return d, true
		}
		raw, ok := there.Definitions[name]
		if !ok {
			return nil, false
		}
		var d any
		_ = decode(raw, &d) // it is part of what was decoded
		return d, true
	}
	var out []Parts
	for _, remote := range remotes {
		raw, err := remote.Bytes()
		if err != nil {
			return nil, err
		}
		var p Parts
		if err := decode(raw, &p); err != nil {
			return nil, fmt.Errorf("merge OpenAPI documents: %w", err)
		}
		p = p.avoid(path, definition)
		maps.Copy(added.Paths, p.Paths)
		maps.Copy(added.Definitions, p.Definitions)
		out = append(out, p)
	}
	return out, nil
}

// decode reads JSON without making floating-point numbers of large integers.
func decode(doc []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(doc))
	d.UseNumber()
	return d.Decode(into)
}

// partsOf takes what concerns a version out of a document. Parameters that the document names are put in their place.
func partsOf(doc []byte, gv schema.GroupVersion) (Parts, error) {
	var all struct {
		Parts
		Parameters map[string]any `json:"parameters"`
	}
	if err := decode(doc, &all); err != nil {
		return Parts{}, err
	}
	p := Parts{Paths: map[string]any{}, Definitions: map[string]any{}}
	prefix := "/apis/" + gv.String() + "/"
	for path, item := range all.Paths {
		if strings.HasPrefix(path, prefix) {
			p.Paths[path] = placed(item, all.Parameters)
		}
	}
	p.need(p.Paths, all.Definitions)
	return p, nil
}

const (
	definitionRef = "#/definitions/"
	parameterRef  = "#/parameters/"
)

// placed is a value with what its references to parameters mean in their place. Parameters refer to no others.
func placed(v any, parameters map[string]any) any {
	switch v := v.(type) {
	case map[string]any:
		if name, ok := refOf(v, parameterRef); ok && parameters[name] != nil {
			return parameters[name]
		}
		out := make(map[string]any, len(v))
		for key, child := range v {
			out[key] = placed(child, parameters)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, child := range v {
			out[i] = placed(child, parameters)
		}
		return out
	}
	return v
}

// refOf is the name of what an object stands for.
func refOf(object map[string]any, prefix string) (string, bool) {
	ref, _ := object["$ref"].(string)
	return strings.CutPrefix(ref, prefix)
}

// refs calls f with the name of each definition that a value refers to.
func refs(v any, f func(name string)) {
	switch v := v.(type) {
	case map[string]any:
		if name, ok := refOf(v, definitionRef); ok {
			f(name)
		}
		for _, child := range v {
			refs(child, f)
		}
	case []any:
		for _, child := range v {
			refs(child, f)
		}
	}
}

// need takes over the definitions that a value refers to, and those that they refer to.
func (p Parts) need(v any, definitions map[string]any) {
	refs(v, func(name string) {
		d, ok := definitions[name]
		if _, has := p.Definitions[name]; has || !ok {
			return
		}
		p.Definitions[name] = d
		p.need(d, definitions)
	})
}

// avoid makes parts that can stand in one document with others: paths and definitions that are there already are left
// out, and definitions whose names mean something else there get other names. What is there is asked for by name.
func (p Parts) avoid(path func(string) bool, definition func(name string) (any, bool)) Parts {
	other := p.others(definition)
	names := map[string]string{}
	for name := range other {
		for n := 2; ; n++ {
			free := name + "_v" + strconv.Itoa(n)
			_, taken := definition(free)
			if _, own := p.Definitions[free]; !taken && !own {
				names[name] = free
				break
			}
		}
	}
	out := Parts{Paths: map[string]any{}, Definitions: map[string]any{}}
	for key, item := range p.Paths {
		if !path(key) {
			out.Paths[key] = renamed(item, names)
		}
	}
	for name, d := range p.Definitions {
		if to, ok := names[name]; ok {
			out.Definitions[to] = renamed(d, names)
		} else if _, taken := definition(name); !taken {
			out.Definitions[name] = renamed(d, names)
		}
	}
	return out
}

// others are the definitions whose names mean something else: their own words differ, or those that they refer to.
func (p Parts) others(definition func(name string) (any, bool)) map[string]bool {
	other := map[string]bool{}
	for name, d := range p.Definitions {
		if there, taken := definition(name); taken && !reflect.DeepEqual(d, there) {
			other[name] = true
		}
	}
	for grown := len(other) > 0; grown; {
		grown = false
		for name, d := range p.Definitions {
			if _, taken := definition(name); !taken || other[name] {
				continue
			}
			refs(d, func(to string) {
				if other[to] && !other[name] {
					other[name], grown = true, true
				}
			})
		}
	}
	return other
}

// renamed is a value whose references use other names.
func renamed(v any, names map[string]string) any {
	switch v := v.(type) {
	case map[string]any:
		out := make(map[string]any, len(v))
		for key, child := range v {
			out[key] = renamed(child, names)
		}
		if name, ok := refOf(v, definitionRef); ok && names[name] != "" {
			out["$ref"] = definitionRef + names[name]
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, child := range v {
			out[i] = renamed(child, names)
		}
		return out
	}
	return v
}

// convertedV3 is a version 3 document of a server that only has version 2; nil without that. Something is lost on
// the way, as in kube-aggregator.
func convertedV3(v2 *Document) (*Document, error) {
	if v2 == nil {
		return nil, nil
	}
	doc, err := v2.Bytes()
	if err != nil {
		return nil, err
	}
	swagger := &spec.Swagger{}
	if err := json.Unmarshal(doc, swagger); err != nil {
		return nil, fmt.Errorf("convert an OpenAPI document: %w", err)
	}
	if swagger.Info == nil {
		swagger.Info = &spec.Info{}
	}
	return newDocument(openapiconv.ConvertV2ToV3(swagger))
}
