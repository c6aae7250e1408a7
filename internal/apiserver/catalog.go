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
	"barque.dev/internal/apiserver/aggregate"
	"barque.dev/internal/apiserver/custom"
	"barque.dev/internal/apiserver/discovery"
)

// A catalog is what the documents of discovery and OpenAPI say at one moment. It is immutable; what it holds is made
// when somebody asks for it, and taken over by the next catalog as far as it still holds.
type catalog struct {
	// documents are those of discovery.
	documents func() (*discovery.Documents, error)
	// custom are the version 3 documents of groups that only custom resources have, by name, and remote those of versions
	// that other servers serve.
	custom, remote map[string]*addedDocument
	// merged is the version 2 document with what is not built in; nil while there is nothing.
	merged *lazyDocument
}

// contents are what a catalog is about.
type contents struct {
	resources []*api.Resource
	// crds are the definitions of the custom resources among them.
	crds []*apiextensionsv1.CustomResourceDefinition
	// remotes are the versions that other servers serve.
	remotes []remote
	// priorities are those that APIServices say.
	priorities map[schema.GroupVersion]api.Priority
}

// remote is a version of a group that another server serves, and what that says of it.
type remote struct {
	schema.GroupVersion
	aggregate.Description
}

// addedDocument is the version 3 document of one version of a group that is not built in.
type addedDocument struct {
	of string // what it describes, and in which state
	*lazyDocument
}

// lazyDocument is a document of what is not built in. Each of its forms is made when somebody wants it, and then kept.
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

// newCatalog describes what is served. was is the last catalog; it may be nil.
func newCatalog(of contents, specs *openapi.Specs, was *catalog, log *slog.Logger) *catalog {
	if was == nil {
		was = &catalog{}
	}
	c := &catalog{
		documents: sync.OnceValues(func() (*discovery.Documents, error) { return discovery.New(of.served()) }),
		custom:    map[string]*addedDocument{}, remote: map[string]*addedDocument{},
	}
	for gv, crds := range of.definitions() {
		name := "apis/" + gv.String()
		c.custom[name] = kept(was.custom[name], identity(crds), func() ([]byte, error) {
			doc, err := custom.DocumentV3(crds, gv.Version, log)
			if err != nil {
				log.Error("an OpenAPI document is left out", "document", name, "error", err)
			}
			return doc, err
		})
	}
	for _, r := range of.remotes {
		if r.V3 != nil {
			name := "apis/" + r.GroupVersion.String()
			c.remote[name] = kept(was.remote[name], r.V3.Hash(), r.V3.Bytes)
		}
	}
	if specs != nil && (len(of.crds) > 0 || len(of.documentsV2()) > 0) {
		c.merged = newMerged(of, specs, log)
	}
	return c
}

// kept is the version 3 document that build makes of something, or the last one if it is of the same.
func kept(was *addedDocument, of string, build func() ([]byte, error)) *addedDocument {
	if was != nil && was.of == of {
		return was
	}
	return &addedDocument{of: of, lazyDocument: newLazy(build, protobufV3)}
}

// served is what discovery tells.
func (c contents) served() discovery.Served {
	out := discovery.Served{Resources: c.resources, Priority: func(gv schema.GroupVersion) api.Priority {
		if p, ok := c.priorities[gv]; ok {
			return p
		}
		return api.PriorityOf(gv)
	}}
	for _, r := range c.remotes {
		out.Remotes = append(out.Remotes, discovery.Remote{GroupVersion: r.GroupVersion, Resources: r.Resources, Stale: r.Stale})
	}
	return out
}

// definitions are those of each version that is served.
func (c contents) definitions() map[schema.GroupVersion][]*apiextensionsv1.CustomResourceDefinition {
	out := map[schema.GroupVersion][]*apiextensionsv1.CustomResourceDefinition{}
	for _, crd := range c.crds {
		for _, v := range crd.Spec.Versions {
			if v.Served {
				gv := schema.GroupVersion{Group: crd.Spec.Group, Version: v.Name}
				out[gv] = append(out[gv], crd)
			}
		}
	}
	return out
}

// documentsV2 are what other servers add to the version 2 document.
func (c contents) documentsV2() []*aggregate.Document {
	var out []*aggregate.Document
	for _, r := range c.remotes {
		if r.V2 != nil {
			out = append(out, r.V2)
		}
	}
	return out
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
func newMerged(of contents, specs *openapi.Specs, log *slog.Logger) *lazyDocument {
	// own is the document of what this server serves, and parts what others add to it.
	own := func() ([]byte, error) {
		builtin, err := unpacked(specs, openapi.JSON)
		if err != nil {
			return nil, err
		}
		added := custom.DocumentV2(of.crds, log)
		return splice(builtin, added.Paths, added.Definitions)
	}
	merge := func(doc []byte) ([]aggregate.Parts, error) {
		remotes := of.documentsV2()
		if len(remotes) == 0 {
			return nil, nil
		}
		return aggregate.Merge(doc, remotes)
	}
	return newLazy(func() ([]byte, error) {
		doc, err := own()
		if err != nil {
			return nil, err
		}
		parts, err := merge(doc)
		for _, p := range parts {
			if doc, err = splice(doc, p.Paths, p.Definitions); err != nil {
				return nil, err
			}
		}
		return doc, err
	}, func([]byte) ([]byte, error) {
		// Messages that stand one behind the other are merged by whoever reads them.
		doc, err := unpacked(specs, openapi.Protobuf)
		if err != nil {
			return nil, err
		}
		added := custom.DocumentV2(of.crds, log)
		more, err := protobufV2(added.Paths, added.Definitions)
		if err != nil {
			return nil, err
		}
		doc = append(doc, more...)
		json, err := own()
		if err != nil {
			return nil, err
		}
		parts, err := merge(json)
		for _, p := range parts {
			if more, err = protobufV2(p.Paths, p.Definitions); err != nil {
				return nil, err
			}
			doc = append(doc, more...)
		}
		return doc, err
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

// splice adds paths and schemas, by name, to a version 2 document.
func splice(doc []byte, paths, definitions any) ([]byte, error) {
	var err error
	for key, value := range map[string]any{"paths": paths, "definitions": definitions} {
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
