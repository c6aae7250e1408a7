package apiserver

import (
	"context"
	"net/http"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/relay"
)

// connect passes a request on to a node, pod or service.
func (s *Server) connect(w http.ResponseWriter, req *http.Request, o operation) error {
	if !passes(req.Method, o.sub.Name) || !slices.Contains(o.sub.Verbs, connectVerb(req.Method)) {
		return generic(http.StatusMethodNotAllowed, req)
	}
	if strings.Contains(req.URL.RawQuery, "dryRun") && req.URL.Query().Has("dryRun") {
		return apierrors.NewBadRequest("dryRun is not supported")
	}
	handler, err := s.connector(req, o)
	if err != nil {
		return err
	}
	handler.ServeHTTP(w, req)
	return nil
}

// passes tells whether a subresource takes a method at all. Proxies pass on what HTTP knows.
func passes(method, sub string) bool {
	switch method {
	case http.MethodHead, http.MethodOptions:
		return sub == "proxy"
	case http.MethodGet, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete:
		return true
	}
	return false
}

// connectVerb is the verb that stands for a method in a list of verbs.
func connectVerb(method string) string {
	switch method {
	case http.MethodPost:
		return "create"
	case http.MethodPut:
		return "update"
	case http.MethodPatch:
		return "patch"
	case http.MethodDelete:
		return "delete"
	}
	return "get" // and HEAD and OPTIONS, which proxies pass on
}

func (s *Server) connector(req *http.Request, o operation) (http.Handler, error) {
	ctx, ns, name := req.Context(), o.target.Namespace, o.target.Name
	fail := relay.Fail(s.fail)
	switch o.resource.Resource + "/" + o.sub.Name {
	case "pods/exec":
		return connectStream(s, req, o, &corev1.PodExecOptions{}, s.relay.Exec)
	case "pods/attach":
		return connectStream(s, req, o, &corev1.PodAttachOptions{}, s.relay.Attach)
	case "pods/portforward":
		return connectStream(s, req, o, &corev1.PodPortForwardOptions{}, s.relay.PortForward)
	case "pods/log":
		opts := &corev1.PodLogOptions{}
		if err := connectOptions(req, opts); err != nil {
			return nil, err
		}
		return s.relay.Logs(ctx, ns, name, opts, fail)
	case "pods/proxy":
		opts := &corev1.PodProxyOptions{Path: proxyPath(o)}
		if err := s.registry.Connect(ctx, o.target, opts); err != nil {
			return nil, err
		}
		return s.relay.Pod(ctx, ns, name, opts.Path, fail)
	case "services/proxy":
		opts := &corev1.ServiceProxyOptions{Path: proxyPath(o)}
		if err := s.registry.Connect(ctx, o.target, opts); err != nil {
			return nil, err
		}
		return s.relay.Service(ctx, ns, name, opts.Path, fail)
	case "nodes/proxy":
		opts := &corev1.NodeProxyOptions{Path: proxyPath(o)}
		if err := s.registry.Connect(ctx, o.target, opts); err != nil {
			return nil, err
		}
		return s.relay.Node(ctx, name, opts.Path, fail)
	}
	return nil, generic(http.StatusNotFound, req)
}

// connectStream makes the handler of a request that becomes a stream to a pod, once admission lets it.
func connectStream[O runtime.Object](s *Server, req *http.Request, o operation, opts O,
	open func(ctx context.Context, namespace, name string, opts O, fail relay.Fail) (http.Handler, error)) (http.Handler, error) {
	if err := s.streamOptions(req, opts); err != nil {
		return nil, err
	}
	if err := s.registry.Connect(req.Context(), o.target, opts); err != nil {
		return nil, err
	}
	return open(req.Context(), o.target.Namespace, o.target.Name, opts, s.fail)
}

// connectOptions reads the query of a request that is passed on.
func connectOptions(req *http.Request, into runtime.Object) error {
	if err := api.ParameterCodec().DecodeParameters(req.URL.Query(), corev1.SchemeGroupVersion, into); err != nil {
		return apierrors.NewBadRequest(err.Error())
	}
	return nil
}

// streamOptions reads the query of a request that becomes a stream, and checks that its user may create one: a
// WebSocket begins with GET, whose verb "get" is given to people who may only look.
func (s *Server) streamOptions(req *http.Request, into runtime.Object) error {
	if err := connectOptions(req, into); err != nil {
		return err
	}
	if req.Method != http.MethodGet {
		return nil
	}
	attributes, err := filters.GetAuthorizerAttributes(req.Context())
	if err != nil {
		return apierrors.NewInternalError(err)
	}
	record := *attributes.(*authorizer.AttributesRecord)
	record.Verb = "create"
	decision, reason, err := s.cfg.Authorizer.Authorize(req.Context(), &record)
	if err != nil && decision != authorizer.DecisionAllow {
		return apierrors.NewInternalError(err)
	}
	if decision != authorizer.DecisionAllow {
		return responsewriters.ForbiddenStatusError(&record, reason)
	}
	return nil
}

// proxyPath is the part of the path that the other end gets to see, its last slash included.
func proxyPath(o operation) string {
	parts := o.info.Parts
	if len(parts) <= 3 {
		if strings.HasSuffix(o.info.Path, "/") {
			return "/"
		}
		return ""
	}
	path := "/" + strings.Join(parts[3:], "/")
	if strings.HasSuffix(o.info.Path, "/") && !strings.HasSuffix(path, "/") {
		path += "/"
	}
	return path
}
