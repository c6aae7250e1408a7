package apiserver

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	apiextensionsv1 "k8s.io/apiextensions-apiserver/pkg/apis/apiextensions/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/api/openapi"
	"barque.dev/internal/apiserver/custom"
	"barque.dev/internal/apiserver/discovery"
)

// A catalog is what the documents of discovery and OpenAPI say at one moment. It is immutable; what it holds is made
// when somebody asks for it, and taken over by the next catalog as far as it still holds.
type catalog struct {
	// documents are those of discovery.
	documents func() (*discovery.Documents, error)
	// custom are the version 3 documents of groups that only custom resources have, by name.
	custom map[string]*customDocument
	// merged is the version 2 document with custom resources; nil while there are none.
	merged *mergedDocument
}

// customDocument is the version 3 document of one version of a group of custom resources.
type customDocument struct {
	of   string // the definitions that it describes, and in which state
	load func() (packedDocument, error)
}

// packedDocument is a document that is kept compressed: it is asked for seldom and lasts.
type packedDocument struct {
	hash string // hexadecimal SHA-512 of the document in JSON
	gzip []byte
	size int64 // of the document
}

// pack compresses a document. hash is that of its JSON; "" computes it.
func pack(doc []byte, hash string) (packedDocument, error) {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(doc); err != nil {
		return packedDocument{}, err
	}
	if err := z.Close(); err != nil {
		return packedDocument{}, err
	}
	if hash == "" {
		hash = fmt.Sprintf("%X", sha512.Sum512(doc))
	}
	return packedDocument{hash: hash, gzip: slices.Clip(buf.Bytes()), size: int64(len(doc))}, nil
}

func (d packedDocument) Hash() string    { return d.hash }
func (d packedDocument) Size() int64     { return d.size }
func (d packedDocument) GzipSize() int64 { return int64(len(d.gzip)) }

func (d packedDocument) WriteGzip(w io.Writer) error {
	_, err := w.Write(d.gzip)
	return err
}

func (d packedDocument) WriteTo(w io.Writer) (int64, error) {
	z, err := gzip.NewReader(bytes.NewReader(d.gzip))
	if err != nil {
		return 0, fmt.Errorf("unpack OpenAPI document: %w", err)
	}
	return io.Copy(w, z)
}

// in is a version 3 document in a format.
func (d packedDocument) in(format openapi.Format) (described, error) {
	if format == openapi.JSON {
		return d, nil
	}
	var doc bytes.Buffer
	if _, err := d.WriteTo(&doc); err != nil {
		return nil, err
	}
	encoded, err := protobufV3(doc.Bytes())
	if err != nil {
		return nil, err
	}
	return pack(encoded, d.hash)
}

// newCatalog describes resources, those of crds among them. was is the last catalog; it may be nil.
func newCatalog(resources []*api.Resource, crds []*apiextensionsv1.CustomResourceDefinition, specs *openapi.Specs, was *catalog) *catalog {
	c := &catalog{
		documents: sync.OnceValues(func() (*discovery.Documents, error) { return discovery.New(resources) }),
		custom:    map[string]*customDocument{},
	}
	byVersion := map[schema.GroupVersion][]*apiextensionsv1.CustomResourceDefinition{}
	for _, crd := range crds {
		for _, v := range crd.Spec.Versions {
			if v.Served {
				gv := schema.GroupVersion{Group: crd.Spec.Group, Version: v.Name}
				byVersion[gv] = append(byVersion[gv], crd)
			}
		}
	}
	for gv, of := range byVersion {
		name := "apis/" + gv.String()
		if was != nil && was.custom[name] != nil && was.custom[name].of == identity(of) {
			c.custom[name] = was.custom[name]
			continue
		}
		c.custom[name] = &customDocument{of: identity(of), load: sync.OnceValues(func() (packedDocument, error) {
			doc, err := custom.DocumentV3(of, gv.Version)
			if err != nil {
				return packedDocument{}, err
			}
			return pack(doc, "")
		})}
	}
	if len(crds) > 0 && specs != nil {
		c.merged = newMerged(crds, specs)
	}
	return c
}

// identity names definitions and their state, as far as OpenAPI is concerned.
func identity(crds []*apiextensionsv1.CustomResourceDefinition) string {
	var b strings.Builder
	for _, crd := range crds {
		fmt.Fprintf(&b, "%s %s %d %+v\n", crd.Name, crd.UID, crd.Generation, crd.Status.AcceptedNames)
	}
	return b.String()
}

// mergedDocument is the version 2 document of everything.
type mergedDocument struct {
	crds []*apiextensionsv1.CustomResourceDefinition
	json func() (packedDocument, error)
}

func newMerged(crds []*apiextensionsv1.CustomResourceDefinition, specs *openapi.Specs) *mergedDocument {
	return &mergedDocument{crds: crds, json: sync.OnceValues(func() (packedDocument, error) {
		parts, err := custom.DocumentV2(crds)
		if err != nil {
			return packedDocument{}, err
		}
		builtin, err := unpacked(specs, openapi.JSON)
		if err != nil {
			return packedDocument{}, err
		}
		whole, err := splice(builtin, parts)
		if err != nil {
			return packedDocument{}, err
		}
		return pack(whole, "")
	})}
}

// unpacked is the version 2 document of the built-in kinds.
func unpacked(specs *openapi.Specs, format openapi.Format) ([]byte, error) {
	doc, ok := specs.Document(openapi.V2, format)
	if !ok {
		return nil, fmt.Errorf("OpenAPI document %s is not packed as %s", openapi.V2, format)
	}
	buf := bytes.NewBuffer(make([]byte, 0, doc.Size()))
	_, err := doc.WriteTo(buf)
	return buf.Bytes(), err
}

// document is the document in a format. In protobuf, messages that stand one behind the other are merged by whoever reads
// them.
func (m *mergedDocument) document(specs *openapi.Specs, format openapi.Format) (described, error) {
	whole, err := m.json()
	if err != nil || format == openapi.JSON {
		return whole, err
	}
	parts, err := custom.DocumentV2(m.crds)
	if err != nil {
		return nil, err
	}
	added, err := protobufV2(parts)
	if err != nil {
		return nil, err
	}
	builtin, err := unpacked(specs, format)
	if err != nil {
		return nil, err
	}
	return pack(append(builtin, added...), whole.hash)
}

// splice adds paths and schemas to a version 2 document.
func splice(doc []byte, parts custom.PartsV2) ([]byte, error) {
	var err error
	for key, value := range map[string]any{"paths": parts.Paths, "definitions": parts.Definitions} {
		raw, merr := json.Marshal(value)
		if merr != nil {
			return nil, fmt.Errorf("encode OpenAPI %s: %w", key, merr)
		}
		if doc, err = spliceInto(doc, key, raw); err != nil {
			return nil, err
		}
	}
	return doc, nil
}

// spliceInto puts the members of a JSON object in front of those of the object that stands under a key of doc.
func spliceInto(doc []byte, key string, members []byte) ([]byte, error) {
	at := memberStart(doc, key)
	if at < 0 {
		return nil, fmt.Errorf("OpenAPI document has no %s", key)
	}
	members = bytes.TrimSpace(members)
	members = members[1 : len(members)-1]
	if len(members) == 0 {
		return doc, nil
	}
	out := make([]byte, 0, len(doc)+len(members)+1)
	out = append(out, doc[:at]...)
	out = append(out, members...)
	if rest := bytes.TrimLeft(doc[at:], " \n\r\t"); rest[0] != '}' {
		out = append(out, ',')
	}
	return append(out, doc[at:]...), nil
}

// memberStart finds, in a JSON object, where the members of the object begin that stands under a key; -1 if there
// is none. It reads no more than it must: the document is megabytes.
func memberStart(doc []byte, key string) int {
	want := []byte(`"` + key + `"`)
	depth, quoted := 0, false
	for i := 0; i < len(doc); i++ {
		switch b := doc[i]; {
		case quoted && b == '\\':
			i++
		case b == '"':
			if !quoted && depth == 1 && bytes.HasPrefix(doc[i:], want) {
				rest := bytes.TrimLeft(doc[i+len(want):], " \n\r\t")
				if len(rest) > 0 && rest[0] == ':' {
					rest = bytes.TrimLeft(rest[1:], " \n\r\t")
					if len(rest) > 0 && rest[0] == '{' {
						return len(doc) - len(rest) + 1
					}
				}
			}
			quoted = !quoted
		case quoted:
		case b == '{' || b == '[':
			depth++
		case b == '}' || b == ']':
			depth--
		}
	}
	return -1
}
