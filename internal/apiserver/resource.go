package apiserver

import (
	"net/http"
	"slices"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
)

// operation is one verb on one resource, as a request asks for it.
type operation struct {
	*call
	target registry.Request
	sub    *api.Subresource // nil for the resource itself
	// kind is what goes in and comes out, in the version that the client speaks.
	kind schema.GroupVersionKind
}

// serveResource answers a request for API objects. An error is still to be told to the client.
func (s *Server) serveResource(w http.ResponseWriter, req *http.Request, c *call) error {
	known := c.resource != nil
	if err := s.resolve(req.Context(), c); err != nil {
		return err
	}
	if !known && s.delegate(w, req, c) {
		return nil // another server has just registered it
	}
	if c.resource == nil {
		docs, err := s.documents(req.Context())
		if err != nil {
			return err
		}
		gv := gvrOf(c.info).GroupVersion()
		if _, ok := docs.Resources[gv]; ok && s.builtin(gv.Group) || gv.Group == "" {
			return generic(http.StatusNotFound, req)
		}
		http.NotFound(w, req)
		return nil
	}
	o, code := s.operation(c)
	if proxied := o.sub != nil && o.sub.Name == "proxy"; code == 0 && req.Method == http.MethodHead && !proxied {
		code = http.StatusMethodNotAllowed
	}
	if code == http.StatusNotFound && c.resource.Custom != nil && c.info.Subresource != "" {
		return apierrors.NewNotFound(c.resource.GroupResource, c.info.Name)
	}
	if code != 0 {
		return generic(code, req)
	}
	if err := routable(req, o); err != nil {
		return err
	}
	s.warnDeprecated(req.Context(), o)
	if o.sub != nil && o.sub.Connect {
		return s.connect(w, req, o)
	}
	if c.info.Verb == "watch" {
		return s.watch(w, req, o)
	}
	do := verbOf(c.info.Verb)
	if do == nil {
		return generic(http.StatusMethodNotAllowed, req)
	}
	return s.serve(w, req, o, do)
}

// builtin tells whether a group has resources that no definition made. Below its path errors are Statuses, elsewhere text.
func (s *Server) builtin(group string) bool {
	return slices.ContainsFunc(api.Resources(), func(r *api.Resource) bool { return r.Group == group })
}

// operation works out what a request acts on. The code is 0, or that of the error: 404 for a path that
// leads nowhere, 405 for one that does not take the method.
func (s *Server) operation(c *call) (operation, int) {
	r, info := c.resource, c.info
	o := operation{call: c, kind: r.GVK(info.APIVersion)}
	o.target = registry.Request{Resource: r, Version: info.APIVersion, Subresource: info.Subresource, Name: info.Name}
	if r.Namespaced {
		o.target.Namespace = info.Namespace
	}
	verbs := r.Verbs
	if info.Subresource != "" {
		sub, ok := r.Subresources[info.Subresource]
		if !ok {
			return o, http.StatusNotFound
		}
		o.sub, verbs = sub, sub.Verbs
		if sub.Kind.Version != "" {
			o.kind = sub.Kind
		} else if sub.Kind.Kind != "" && !sub.Connect {
			o.kind.Kind = sub.Kind.Kind
		}
	}
	if !s.pathExists(c, o.sub) {
		return o, http.StatusNotFound
	}
	if o.sub != nil && o.sub.Connect {
		return o, 0 // which methods it takes is between the client and the other end
	}
	if info.Verb == "proxy" || info.Subresource == "" && info.Name != "" && !slices.Contains(verbs, "get") {
		return o, http.StatusNotFound // a path of old, and nothing that is kept and could have a name
	}
	if !slices.Contains(verbs, info.Verb) {
		return o, http.StatusMethodNotAllowed
	}
	switch info.Verb {
	case "create":
		if info.Subresource == "" && info.Name != "" {
			return o, http.StatusMethodNotAllowed
		}
	case "update", "patch":
		if info.Name == "" {
			return o, http.StatusMethodNotAllowed
		}
	}
	if r.Namespaced && info.Namespace == "" && info.Verb != "list" && info.Verb != "watch" {
		// Only reads go over all namespaces: /api/v1/pods exists, but not for POST.
		return o, http.StatusMethodNotAllowed
	}
	return o, 0
}

// pathExists tells whether the path has the shape of one that leads to the resource: a namespace where there is one,
// and nothing behind the last name.
func (s *Server) pathExists(c *call, sub *api.Subresource) bool {
	r, info := c.resource, c.info
	if !r.Namespaced && info.Namespace != "" && !(r.Group == "" && r.Resource == "namespaces") {
		return false
	}
	if r.Namespaced && info.Namespace == "" && len(info.Parts) > 1 {
		return false
	}
	return len(info.Parts) <= 3 || (sub != nil && sub.Connect && sub.Name == "proxy")
}
