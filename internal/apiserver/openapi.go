package apiserver

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/munnerz/goautoneg"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"barque.dev/internal/api/openapi"
)

// openAPI serves the packed OpenAPI documents of what the server serves.
type openAPI struct {
	server *Server
	specs  *openapi.Specs
}

// addOpenAPI serves /openapi. A binary without documents runs, and says so to who asks for them.
func (s *Server) addOpenAPI(p *paths) error {
	specs, err := openapi.Open()
	if errors.Is(err, openapi.ErrMissing) {
		s.log.Error("OpenAPI is not served", "error", err)
		missing := s.getOnly(func(http.ResponseWriter, *http.Request) error {
			return apierrors.NewServiceUnavailable(err.Error())
		})
		p.add("/openapi/", missing)
		return nil
	}
	if err != nil {
		return err
	}
	o := &openAPI{server: s, specs: specs}
	p.add("/openapi/v2", s.getOnly(o.serveV2))
	p.add("/openapi/v3", s.getOnly(o.serveIndex))
	p.add("/openapi/v3/", s.getOnly(o.serveV3))
	return nil
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
	return o.serve(w, req, openapi.V2, "v2")
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
	for _, name := range o.specs.Names() {
		if o.served(name) {
			list.Paths[name] = entry{o.documentURL(name)}
		}
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return sendBytes(w, req, http.StatusOK, b)
}

// served tells whether the paths that a document describes exist here.
func (o *openAPI) served(name string) bool {
	_, ok := o.server.paths.exact["/"+name]
	return ok
}

func (o *openAPI) documentURL(name string) string {
	u := url.URL{Path: "/openapi/v3/" + name, RawQuery: url.Values{"hash": {o.specs.Hash(name)}}.Encode()}
	return u.String()
}

func (o *openAPI) serveV3(w http.ResponseWriter, req *http.Request) error {
	name := strings.TrimPrefix(req.URL.Path, "/openapi/v3/")
	if o.specs.Hash(name) == "" || !o.served(name) {
		http.NotFound(w, req)
		return nil
	}
	if hash := req.URL.Query().Get("hash"); hash != "" {
		if hash != o.specs.Hash(name) {
			http.Redirect(w, req, o.documentURL(name), http.StatusMovedPermanently)
			return nil
		}
		// The address holds the hash of the content, so the answer is good for ever.
		w.Header().Set("Cache-Control", "public, immutable")
		w.Header().Set("Expires", time.Now().AddDate(1, 0, 0).UTC().Format(http.TimeFormat))
	}
	return o.serve(w, req, name, "v3")
}

// serve writes a document in the format that the client wants, as it lies packed where the client takes gzip.
func (o *openAPI) serve(w http.ResponseWriter, req *http.Request, name, version string) error {
	w.Header().Set("Vary", "Accept, Accept-Encoding")
	format, contentType, ok := negotiateOpenAPI(req, version)
	if !ok {
		w.WriteHeader(http.StatusNotAcceptable)
		return nil
	}
	doc, ok := o.specs.Document(name, format)
	if !ok {
		return fmt.Errorf("OpenAPI document %s is not packed as %s", name, format)
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
	_, err := io.WriterTo(doc).WriteTo(w)
	return err
}
