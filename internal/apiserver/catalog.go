package apiserver

import (
	"bytes"
	"compress/gzip"
	"crypto/sha512"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
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
	merged *lazyDocument
}

// customDocument is the version 3 document of one version of a group of custom resources.
type customDocument struct {
	of string // the definitions that it describes, and in which state
	*lazyDocument
}

// lazyDocument is a document of custom resources. Each of its forms is made when somebody wants it, and then kept.
type lazyDocument struct {
	json     func() (jsonDocument, error)
	protobuf func() (packedDocument, error)
}

// jsonDocument is a document in JSON.
type jsonDocument struct {
	packedDocument
	hash string // hexadecimal SHA-512 of the document
}

// newLazy is the document that build makes in JSON, and which encode brings into protobuf.
func newLazy(build func() ([]byte, error), encode func(doc []byte) ([]byte, error)) *lazyDocument {
	d := &lazyDocument{}
	d.json = sync.OnceValues(func() (jsonDocument, error) {
		doc, err := build()
		if err != nil {
			return jsonDocument{}, err
		}
		packed, err := pack(doc)
		return jsonDocument{packedDocument: packed, hash: fmt.Sprintf("%X", sha512.Sum512(doc))}, err
	})
	d.protobuf = sync.OnceValues(func() (packedDocument, error) {
		packed, err := d.json()
		if err != nil {
			return packedDocument{}, err
		}
		var doc bytes.Buffer
		if _, err := packed.WriteTo(&doc); err != nil {
			return packedDocument{}, err
		}
		encoded, err := encode(doc.Bytes())
		if err != nil {
			return packedDocument{}, err
		}
		return pack(encoded)
	})
	return d
}

// in is the document in a format.
func (d *lazyDocument) in(format openapi.Format) (described, error) {
	if format == openapi.JSON {
		return d.json()
	}
	return d.protobuf()
}

// find is the document as it is offered.
func (d *lazyDocument) find() (found, error) {
	packed, err := d.json()
	if err != nil {
		return found{}, err
	}
	return found{hash: packed.hash, in: d.in}, nil
}

// packedDocument is a document that is kept compressed: it is asked for seldom and lasts.
type packedDocument struct {
	gzip []byte
	size int64 // of the document
}

// pack compresses a document.
func pack(doc []byte) (packedDocument, error) {
	var buf bytes.Buffer
	z := gzip.NewWriter(&buf)
	if _, err := z.Write(doc); err != nil {
		return packedDocument{}, err
	}
	if err := z.Close(); err != nil {
		return packedDocument{}, err
	}
	return packedDocument{gzip: slices.Clip(buf.Bytes()), size: int64(len(doc))}, nil
}

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

// newCatalog describes resources, those of crds among them. was is the last catalog; it may be nil.
func newCatalog(resources []*api.Resource, crds []*apiextensionsv1.CustomResourceDefinition, specs *openapi.Specs, was *catalog, log *slog.Logger) *catalog {
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
		c.custom[name] = &customDocument{of: identity(of), lazyDocument: newLazy(func() ([]byte, error) {
			doc, err := custom.DocumentV3(of, gv.Version, log)
			if err != nil {
				log.Error("an OpenAPI document is left out", "document", name, "error", err)
			}
			return doc, err
		}, protobufV3)}
	}
	if len(crds) > 0 && specs != nil {
		c.merged = newMerged(crds, specs, log)
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

// newMerged is the version 2 document of everything.
func newMerged(crds []*apiextensionsv1.CustomResourceDefinition, specs *openapi.Specs, log *slog.Logger) *lazyDocument {
	return newLazy(func() ([]byte, error) {
		builtin, err := unpacked(specs, openapi.JSON)
		if err != nil {
			return nil, err
		}
		return splice(builtin, custom.DocumentV2(crds, log))
	}, func([]byte) ([]byte, error) {
		added, err := protobufV2(custom.DocumentV2(crds, log))
		if err != nil {
			return nil, err
		}
		// Messages that stand one behind the other are merged by whoever reads them.
		builtin, err := unpacked(specs, openapi.Protobuf)
		return append(builtin, added...), err
	})
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
