package apiserver

import (
	"encoding/json"
	"maps"
	"net/http"
	"net/http/pprof"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/endpoints/request"
)

// paths are the handlers of everything that is not an API object, by path. A key that ends in a
// slash stands for everything below, the longest first.
type paths struct {
	exact, below map[string]http.Handler
	// extra handlers see requests before authentication.
	extra map[string]http.Handler
}

func (s *Server) newPaths() *paths {
	p := &paths{exact: map[string]http.Handler{}, below: map[string]http.Handler{}, extra: s.cfg.Extra}
	p.add("/", s.handler(s.serveIndex))
	p.add("/version", s.getOnly(s.serveVersion))
	p.add("/metrics", s.metrics.handler())
	p.add("/debug/pprof/", http.HandlerFunc(pprof.Index))
	p.add("/debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	p.add("/debug/pprof/symbol", http.HandlerFunc(pprof.Symbol))
	p.add("/debug/pprof/trace", http.HandlerFunc(pprof.Trace))
	p.add("/debug/pprof/cmdline", http.HandlerFunc(pprof.Cmdline))
	s.addHealth(p)
	s.addDiscovery(p)
	s.addOpenAPI(p)
	if s.fair != nil {
		for path, h := range s.fair.Handlers() {
			p.add(path, h)
		}
	}
	for path, h := range s.cfg.Paths {
		p.add(path, h)
	}
	return p
}

func (p *paths) add(path string, h http.Handler) {
	if strings.HasSuffix(path, "/") && path != "/" {
		p.below[path] = h
		return
	}
	p.exact[path] = h
}

// find returns the handler of a path behind authorization.
func (p *paths) find(path string) (http.Handler, bool) {
	if h, ok := p.exact[path]; ok {
		return h, true
	}
	if h, ok := p.exact[strings.TrimSuffix(path, "/")]; ok {
		return h, true
	}
	return longest(p.below, path)
}

// public returns the handler of a path that checks its callers itself.
func (p *paths) public(path string) (http.Handler, bool) {
	if len(p.extra) == 0 {
		return nil, false
	}
	if h, ok := p.extra[path]; ok {
		return h, true
	}
	return longest(p.extra, path)
}

func longest(below map[string]http.Handler, path string) (http.Handler, bool) {
	best := ""
	for prefix := range below {
		if strings.HasSuffix(prefix, "/") && strings.HasPrefix(path, prefix) && len(prefix) > len(best) {
			best = prefix
		}
	}
	h, ok := below[best]
	return h, ok
}

// dispatch hands a request that may pass to its handler.
func (s *Server) dispatch(w http.ResponseWriter, req *http.Request, c *call) {
	if c.info.IsResourceRequest && strings.HasPrefix(req.URL.Path, "//") {
		http.NotFound(w, req)
		return
	}
	if s.delegate(w, req, c) {
		return
	}
	if c.info.IsResourceRequest {
		s.end(w, req, s.serveResource(w, req, c))
		return
	}
	h, ok := s.paths.find(req.URL.Path)
	if !ok {
		http.NotFound(w, req)
		return
	}
	h.ServeHTTP(w, req)
}

// serveIndex lists the paths.
func (s *Server) serveIndex(w http.ResponseWriter, req *http.Request) error {
	if req.URL.Path != "/" {
		http.NotFound(w, req)
		return nil
	}
	docs, err := s.documents(req.Context())
	if err != nil {
		return err
	}
	list := slices.AppendSeq(docs.Paths(), maps.Keys(s.paths.exact))
	for path := range s.paths.below {
		list = append(list, strings.TrimSuffix(path, "/"))
	}
	list = slices.DeleteFunc(list, func(path string) bool { return path == "/" })
	slices.Sort(list)
	return sendDocument(w, req, map[string][]string{"paths": slices.Compact(list)})
}

// sendDocument writes a value that is not an API object as indented JSON.
func sendDocument(w http.ResponseWriter, req *http.Request, doc any) error {
	b, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return err
	}
	w.Header().Set("Content-Type", "application/json")
	return sendBytes(w, req, http.StatusOK, b)
}

func gvrOf(info *request.RequestInfo) schema.GroupVersionResource {
	return schema.GroupVersionResource{Group: info.APIGroup, Version: info.APIVersion, Resource: info.Resource}
}

// generic is an error that says no more than its HTTP code.
func generic(code int, req *http.Request) error {
	return apierrors.NewGenericServerResponse(code, strings.ToLower(req.Method), schema.GroupResource{}, "", "", 0, false)
}

// handler serves what h answers, and fails with its errors.
func (s *Server) handler(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { s.end(w, req, h(w, req)) })
}

// getOnly is handler for paths that answer 405 to everything but GET.
func (s *Server) getOnly(h func(http.ResponseWriter, *http.Request) error) http.Handler {
	return s.handler(func(w http.ResponseWriter, req *http.Request) error {
		if req.Method != http.MethodGet {
			w.Header().Set("Allow", http.MethodGet)
			return generic(http.StatusMethodNotAllowed, req)
		}
		return h(w, req)
	})
}
