package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/munnerz/goautoneg"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"barque.dev/internal/api/openapi"
)

// openAPI serves the OpenAPI documents of what the server serves: packed ones of built-in kinds, and those of custom
// resources from the catalog.
type openAPI struct {
	server *Server
	specs  *openapi.Specs
}

// described is a document that can be sent. openapi.Document is one.
type described interface {
	// Hash changes with the document, and is the same in each of its formats.
	Hash() string
	// Size and GzipSize are the lengths of what WriteTo and WriteGzip write.
	Size() int64
	GzipSize() int64
	WriteTo(io.Writer) (int64, error)
	WriteGzip(io.Writer) error
}

// openSpecs reads the directory of the packed documents, which a binary may have been built without.
func (s *Server) openSpecs() error {
	specs, err := openapi.Open()
	if errors.Is(err, openapi.ErrMissing) {
		s.log.Error("OpenAPI is not served", "error", err)
		return nil
	}
	s.specs = specs
	return err
}

// addOpenAPI serves /openapi. A binary without documents runs, and says so to who asks for them.
func (s *Server) addOpenAPI(p *paths) {
	if s.specs == nil {
		p.add("/openapi/", s.getOnly(func(http.ResponseWriter, *http.Request) error {
			return apierrors.NewServiceUnavailable(openapi.ErrMissing.Error())
		}))
		return
	}
	o := &openAPI{server: s, specs: s.specs}
	p.add("/openapi/v2", s.getOnly(o.serveV2))
	p.add("/openapi/v3", s.getOnly(o.serveIndex))
	p.add("/openapi/v3/", s.getOnly(o.serveV3))
}

// offered are the media types of an OpenAPI document. Both spellings of protobuf are in use; the one without
// the @, which media types may not have, is what we answer.
func offered(version, subType string) (openapi.Format, string, bool) {
	switch subType {
	case "json", "*":
		return openapi.JSON, "application/json", true
	case "com.github.proto-openapi.spec." + version + ".v1.0+protobuf", "com.github.proto-openapi.spec." + version + "@v1.0+protobuf":
		return openapi.Protobuf, "application/com.github.proto-openapi.spec." + version + ".v1.0+protobuf", true
	}
	return "", "", false
}

func negotiateOpenAPI(req *http.Request, version string) (openapi.Format, string, bool) {
	accept := req.Header.Get("Accept")
	if accept == "" {
		accept = "*/*"
	}
	for _, clause := range goautoneg.ParseAccept(accept) {
		if clause.Type != "application" && clause.Type != "*" {
			continue
		}
		if format, contentType, ok := offered(version, clause.SubType); ok {
			return format, contentType, true
		}
	}
	return "", "", false
}

func (o *openAPI) serveV2(w http.ResponseWriter, req *http.Request) error {
	if err := o.server.custom.AwaitAll(req.Context()); err != nil {
		return err
	}
	return o.serve(w, req, "v2", func(format openapi.Format) (described, error) {
		if merged := o.server.catalog.Load().merged; merged != nil {
			return merged.document(o.specs, format)
		}
		return o.packed(openapi.V2, format)
	})
}

func (o *openAPI) packed(name string, format openapi.Format) (described, error) {
	doc, ok := o.specs.Document(name, format)
	if !ok {
		return nil, fmt.Errorf("OpenAPI document %s is not packed as %s", name, format)
	}
	return doc, nil
}

// serveIndex lists the version 3 documents of what is served, each with the hash by which clients may
// keep it.
func (o *openAPI) serveIndex(w http.ResponseWriter, req *http.Request) error {
	type entry struct {
		URL string `json:"serverRelativeURL"`
	}
	list := struct {
		Paths map[string]entry `json:"paths"`
	}{map[string]entry{}}
	docs, err := o.server.documents(req.Context())
	if err != nil {
		return err
	}
	served := docs.Paths()
	for _, name := range o.specs.Names() {
		if _, ok := o.server.paths.exact["/"+name]; ok || slices.Contains(served, "/"+name) {
			list.Paths[name] = entry{documentURL(name, o.specs.Hash(name))}
		}
	}
	for name, doc := range o.server.catalog.Load().custom {
		if _, ok := list.Paths[name]; ok {
			continue
		}
		packed, err := doc.load()
		if err != nil {
			return err
		}
		list.Paths[name] = entry{documentURL(name, packed.hash)}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return sendBytes(w, req, http.StatusOK, b)
}

func documentURL(name, hash string) string {
	u := url.URL{Path: "/openapi/v3/" + name, RawQuery: url.Values{"hash": {hash}}.Encode()}
	return u.String()
}

// find returns the hash of a version 3 document, "" when there is none, and the document.
func (o *openAPI) find(ctx context.Context, name string) (hash string, load func(openapi.Format) (described, error), err error) {
	docs, err := o.server.documents(ctx)
	if err != nil {
		return "", nil, err
	}
	_, exact := o.server.paths.exact["/"+name]
	if hash := o.specs.Hash(name); hash != "" && (exact || slices.Contains(docs.Paths(), "/"+name)) {
		return hash, func(f openapi.Format) (described, error) { return o.packed(name, f) }, nil
	}
	doc := o.server.catalog.Load().custom[name]
	if doc == nil {
		return "", nil, nil
	}
	packed, err := doc.load()
	if err != nil {
		return "", nil, err
	}
	return packed.hash, packed.in, nil
}

func (o *openAPI) serveV3(w http.ResponseWriter, req *http.Request) error {
	name := strings.TrimPrefix(req.URL.Path, "/openapi/v3/")
	known, load, err := o.find(req.Context(), name)
	if err != nil {
		return err
	}
	if known == "" {
		http.NotFound(w, req)
		return nil
	}
	if hash := req.URL.Query().Get("hash"); hash != "" {
		if hash != known {
			http.Redirect(w, req, documentURL(name, known), http.StatusMovedPermanently)
			return nil
		}
		// The address holds the hash of the content, so the answer is good for ever.
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	return o.serve(w, req, "v3", load)
}

// serve writes a document in the format that the client wants, as it lies packed where the client takes gzip.
func (o *openAPI) serve(w http.ResponseWriter, req *http.Request, version string, load func(openapi.Format) (described, error)) error {
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	format, contentType, ok := negotiateOpenAPI(req, version)
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return nil
	}
	doc, err := load(format)
	if err != nil {
		return err
	}
	etag := strconv.Quote(doc.Hash())
	h := w.Header()
	h.Set("Etag", etag)
	if req.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	h.Set("Content-Type", contentType)
	if acceptsGzip(req) {
		h.Set("Content-Encoding", "gzip")
		h.Set("Content-Length", strconv.FormatInt(doc.GzipSize(), 10))
		w.WriteHeader(http.StatusOK)
		return doc.WriteGzip(w)
	}
	h.Set("Content-Length", strconv.FormatInt(doc.Size(), 10))
	w.WriteHeader(http.StatusOK)
	_, err = doc.WriteTo(w)
	return err
}
