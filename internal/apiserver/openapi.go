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
	if err := o.server.described(req.Context()); err != nil {
		return err
	}
	doc := o.packed(openapi.V2)
	if merged := o.server.catalog.Load().merged; merged != nil {
		var err error
		if doc, err = merged.find(); err != nil {
			return err
		}
	}
	return o.serve(w, req, "v2", doc)
}

// found is a document that can be had in either format; making it may be work, telling whether it has changed is not.
type found struct {
	hash string // changes with the document, and is the same in both formats; "" if there is no such document
	in   func(openapi.Format) (described, error)
}

// packed finds a document of built-in kinds.
func (o *openAPI) packed(name string) found {
	return found{hash: o.specs.Hash(name), in: func(format openapi.Format) (described, error) {
		doc, ok := o.specs.Document(name, format)
		if !ok {
			return nil, fmt.Errorf("OpenAPI document %s is not packed as %s", name, format)
		}
		return doc, nil
	}}
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
	served, catalog := docs.Paths(), o.server.catalog.Load()
	add := func(documents map[string]*addedDocument) {
		for name, doc := range documents {
			if _, ok := list.Paths[name]; ok {
				continue
			}
			if found, err := doc.find(); err == nil { // what can't be described must not hide the others
				list.Paths[name] = entry{documentURL(name, found.hash)}
			}
		}
	}
	add(catalog.remote)
	for _, name := range o.specs.Names() {
		if _, ok := list.Paths[name]; ok {
			continue
		}
		if _, ok := o.server.paths.exact["/"+name]; ok || slices.Contains(served, "/"+name) {
			list.Paths[name] = entry{documentURL(name, o.specs.Hash(name))}
		}
	}
	add(catalog.custom)
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

// find finds a version 3 document among those that the index lists.
func (o *openAPI) find(ctx context.Context, name string) (found, error) {
	docs, err := o.server.documents(ctx)
	if err != nil {
		return found{}, err
	}
	catalog := o.server.catalog.Load()
	if doc := catalog.remote[name]; doc != nil {
		if found, err := doc.find(); err == nil {
			return found, nil
		}
	}
	_, exact := o.server.paths.exact["/"+name]
	if packed := o.packed(name); packed.hash != "" && (exact || slices.Contains(docs.Paths(), "/"+name)) {
		return packed, nil
	}
	if doc := catalog.custom[name]; doc != nil {
		if found, err := doc.find(); err == nil {
			return found, nil
		}
	}
	return found{}, nil
}

func (o *openAPI) serveV3(w http.ResponseWriter, req *http.Request) error {
	name := strings.TrimPrefix(req.URL.Path, "/openapi/v3/")
	doc, err := o.find(req.Context(), name)
	if err != nil {
		return err
	}
	if doc.hash == "" {
		http.NotFound(w, req)
		return nil
	}
	if hash := req.URL.Query().Get("hash"); hash != "" {
		if hash != doc.hash {
			http.Redirect(w, req, documentURL(name, doc.hash), http.StatusMovedPermanently)
			return nil
		}
		// The address holds the hash of the content, so the answer is good for ever.
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	return o.serve(w, req, "v3", doc)
}

// serve writes a document in the format that the client wants, as it lies packed where the client takes gzip.
func (o *openAPI) serve(w http.ResponseWriter, req *http.Request, version string, of found) error {
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	format, contentType, ok := negotiateOpenAPI(req, version)
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return nil
	}
	etag := strconv.Quote(of.hash)
	h := w.Header()
	h.Set("Etag", etag)
	if req.Header.Get("If-None-Match") == etag {
		w.WriteHeader(http.StatusNotModified)
		return nil
	}
	doc, err := of.in(format)
	if err != nil {
		return err
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
