package apiserver

import (
	"context"
	"net/http"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metainternalversion "k8s.io/apimachinery/pkg/apis/meta/internalversion"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	"k8s.io/apiserver/pkg/endpoints/filters"
	"k8s.io/apiserver/pkg/endpoints/handlers/responsewriters"

	"barque.dev/internal/api"
	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/relay"
)

// connect passes a request on to a node, pod or service.
func (s *Server) connect(w http.ResponseWriter, req *http.Request, o operation) error {
	if !slices.Contains(o.sub.Verbs, connectVerb(req.Method)) {
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
		return s.relay.Pod(ctx, ns, name, proxyPath(o), fail)
	case "services/proxy":
		return s.relay.Service(ctx, ns, name, proxyPath(o), fail)
	case "nodes/proxy":
		return s.relay.Node(ctx, name, proxyPath(o), fail)
	}
	return nil, generic(http.StatusNotFound, req)
}

// connectStream makes the handler of a request that becomes a stream to a pod.
func connectStream[O runtime.Object](s *Server, req *http.Request, o operation, opts O,
	open func(ctx context.Context, namespace, name string, opts O, fail relay.Fail) (http.Handler, error)) (http.Handler, error) {
	if err := s.streamOptions(req, opts); err != nil {
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

// objectReader reads for the relay.
type objectReader struct{ registry *registry.Registry }

// read returns an object of the storage version, no older than whatever the client has seen from this server.
func read[T runtime.Object](ctx context.Context, r objectReader, gr schema.GroupResource, namespace, name string) (T, error) {
	var none T
	resource, ok := r.registry.Lookup(gr.WithVersion(""))
	if !ok {
		return none, apierrors.NewNotFound(gr, name)
	}
	result, err := r.registry.Get(ctx, registry.Request{Resource: resource, Namespace: namespace, Name: name}, &metav1.GetOptions{ResourceVersion: "0"})
	if err != nil {
		return none, err
	}
	obj, err := result.Get()
	if err != nil {
		return none, err
	}
	return obj.(T), nil
}

func (r objectReader) Node(ctx context.Context, name string) (*corev1.Node, error) {
	return read[*corev1.Node](ctx, r, corev1.Resource("nodes"), "", name)
}

func (r objectReader) Pod(ctx context.Context, namespace, name string) (*corev1.Pod, error) {
	return read[*corev1.Pod](ctx, r, corev1.Resource("pods"), namespace, name)
}

func (r objectReader) Service(ctx context.Context, namespace, name string) (*corev1.Service, error) {
	return read[*corev1.Service](ctx, r, corev1.Resource("services"), namespace, name)
}

func (r objectReader) EndpointSlices(ctx context.Context, namespace, service string) ([]*discoveryv1.EndpointSlice, error) {
	gr := schema.GroupResource{Group: discoveryv1.GroupName, Resource: "endpointslices"}
	resource, ok := r.registry.Lookup(gr.WithVersion(""))
	if !ok {
		return nil, apierrors.NewNotFound(gr, "")
	}
	list, err := r.registry.List(ctx, registry.Request{Resource: resource, Namespace: namespace}, &metainternalversion.ListOptions{
		ResourceVersion: "0", LabelSelector: labels.SelectorFromSet(labels.Set{discoveryv1.LabelServiceName: service}),
	})
	if err != nil {
		return nil, err
	}
	out := make([]*discoveryv1.EndpointSlice, 0, len(list.Entries))
	for _, entry := range list.Entries {
		obj, err := entry.Object()
		if err != nil {
			return nil, err
		}
		out = append(out, obj.(*discoveryv1.EndpointSlice))
	}
	return out, nil
}
