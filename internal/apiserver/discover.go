package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"

	apidiscoveryv2 "k8s.io/api/apidiscovery/v2"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/apiserver/discovery"
	"barque.dev/internal/apiserver/wire"
)

// plainObjects is an endpoint that turns objects into nothing else.
type plainObjects struct{ objects }

func (plainObjects) AllowsMediaTypeTransform(_, _ string, target *schema.GroupVersionKind) bool {
	return target == nil
}

// roots is an endpoint that offers the aggregated documents too.
type roots struct{ objects }

func (roots) AllowsMediaTypeTransform(_, _ string, target *schema.GroupVersionKind) bool {
	return target == nil || *target == apidiscoveryv2.SchemeGroupVersion.WithKind("APIGroupDiscoveryList")
}

// addDiscovery serves the discovery documents. What is asked for most is asked by every kubectl.
func (s *Server) addDiscovery(p *paths) {
	p.add("/api", s.getOnly(s.serveCore))
	p.add("/apis", s.getOnly(s.serveGroups))
	p.add("/api/", s.getOnly(s.serveGroup))
	p.add("/apis/", s.getOnly(s.serveGroup))
}

// documents are the discovery documents of what is served now, as far as this server knows.
func (s *Server) documents(ctx context.Context) (*discovery.Documents, error) {
	if err := s.described(ctx); err != nil {
		return nil, err
	}
	return s.catalog.Load().documents()
}

func (s *Server) serveCore(w http.ResponseWriter, req *http.Request) error {
	if err := acceptable(req, objectTypes); err != nil {
		return err
	}
	docs, err := s.documents(req.Context())
	if err != nil {
		return err
	}
	core := *docs.Core
	core.ServerAddressByClientCIDRs = []metav1.ServerAddressByClientCIDR{}
	if id := s.cfg.Identity; id.Address != "" {
		core.ServerAddressByClientCIDRs = append(core.ServerAddressByClientCIDRs,
			metav1.ServerAddressByClientCIDR{ClientCIDR: "0.0.0.0/0", ServerAddress: net.JoinHostPort(id.Address, strconv.Itoa(id.Port))})
	}
	return root(&core, docs.AggregatedCore, docs.CoreETag)(w, req)
}

func (s *Server) serveGroups(w http.ResponseWriter, req *http.Request) error {
	docs, err := s.documents(req.Context())
	if err != nil {
		return err
	}
	return root(docs.Groups, docs.Aggregated, docs.ETag)(w, req)
}

// serveGroup serves the document of a group or of one of its versions.
func (s *Server) serveGroup(w http.ResponseWriter, req *http.Request) error {
	path := strings.Trim(req.URL.Path, "/")
	doc, kind, err := s.groupDocument(req.Context(), path)
	if err == nil && doc == nil {
		// Another server may have just made it.
		if err = s.settle(req.Context()); err == nil {
			if s.delegate(w, req, callOf(req.Context())) {
				return nil
			}
			doc, kind, err = s.groupDocument(req.Context(), path)
		}
	}
	if err != nil {
		return err
	}
	if parts := strings.Split(path, "/"); doc == nil && (parts[0] == "api" || len(parts) > 2 && s.builtin(parts[1])) {
		return generic(http.StatusNotFound, req)
	}
	if doc == nil {
		http.NotFound(w, req)
		return nil
	}
	return document(doc, kind)(w, req)
}

// groupDocument finds the document of a path such as apis/apps or apis/apps/v1; nil if there is none.
func (s *Server) groupDocument(ctx context.Context, path string) (doc runtime.Object, kind string, err error) {
	docs, err := s.documents(ctx)
	if err != nil {
		return nil, "", err
	}
	switch parts := strings.Split(path, "/"); {
	case len(parts) == 2 && parts[0] == "apis":
		if group := docs.Group(parts[1]); group != nil {
			return group, "APIGroup", nil
		}
	case len(parts) == 2 && parts[0] == "api":
		if list := docs.Resources[schema.GroupVersion{Version: parts[1]}]; list != nil {
			return list, "APIResourceList", nil
		}
	case len(parts) == 3 && parts[0] == "apis":
		if list := docs.Resources[schema.GroupVersion{Group: parts[1], Version: parts[2]}]; list != nil {
			return list, "APIResourceList", nil
		}
	}
	return nil, "", nil
}

// document serves one discovery document.
func document(doc runtime.Object, kind string) func(http.ResponseWriter, *http.Request) error {
	return func(w http.ResponseWriter, req *http.Request) error {
		m, err := negotiate(req, plainObjects{})
		if err != nil {
			return err
		}
		return sendDiscovery(w, req, m, doc, kind)
	}
}

func sendDiscovery(w http.ResponseWriter, req *http.Request, m media, doc runtime.Object, kind string) error {
	gvk := schema.GroupVersionKind{Version: "v1", Kind: kind}
	if m.encoding == wire.JSON {
		// The oldest of these documents leave their version out, and some clients compare.
		gvk = doc.GetObjectKind().GroupVersionKind()
	}
	return sendObject(w, req, http.StatusOK, m, doc, gvk)
}

// root serves /api or /apis: the classic document, or the aggregated one to who prefers it.
func root(classic runtime.Object, aggregated *apidiscoveryv2.APIGroupDiscoveryList, etag string) func(http.ResponseWriter, *http.Request) error {
	etag = strconv.Quote(etag)
	return func(w http.ResponseWriter, req *http.Request) error {
		m, err := negotiate(req, roots{})
		if err != nil {
			return err
		}
		w.Header().Set("Vary", "Accept")
		if m.as == nil {
			return sendDiscovery(w, req, m, classic, classic.GetObjectKind().GroupVersionKind().Kind)
		}
		w.Header().Set("ETag", etag)
		w.Header().Set("Cache-Control", "public")
		if req.Header.Get("If-None-Match") == etag {
			w.WriteHeader(http.StatusNotModified)
			return nil
		}
		m.suffix = fmt.Sprintf(";g=%s;v=%s;as=%s", m.as.Group, m.as.Version, m.as.Kind)
		return sendObject(w, req, http.StatusOK, m, aggregated, aggregated.GroupVersionKind())
	}
}
