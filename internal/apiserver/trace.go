package apiserver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/endpoints/request"

	"barque.dev/internal/tracing"
)

// traced begins the span of a request whose user is known, and returns the request with it. Administrators and monitoring
// decide by their headers whether a request is traced, and as a part of what; of others the trace that they say they are part
// of is only noted, since whoever asks must not decide how much is written about it (KEP-647). It must not be called without
// a tracer.
func (s *Server) traced(req *http.Request, c *call, who user.Info) *http.Request {
	ctx := req.Context()
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindServer)}
	if received, ok := request.ReceivedTimestampFrom(ctx); ok {
		options = append(options, trace.WithTimestamp(received))
	}
	headers := propagation.HeaderCarrier(req.Header)
	if decidesOnTraces(who) {
		ctx = tracing.Propagator().Extract(ctx, headers)
	} else if remote := trace.SpanContextFromContext(propagation.TraceContext{}.Extract(ctx, headers)); remote.IsValid() {
		options = append(options, trace.WithNewRoot(), trace.WithLinks(trace.Link{SpanContext: remote}))
	}
	ctx, span := s.cfg.Tracer.Start(ctx, req.Method, options...)
	if c.span = tracing.Of(span); c.span.On() {
		c.span.Rename(spanName(req.Method, c.info))
		c.span.Set(requestAttributes(req)...)
	}
	return req.WithContext(ctx)
}

// decidesOnTraces tells whether a user may.
func decidesOnTraces(who user.Info) bool {
	for _, group := range who.GetGroups() {
		if group == user.SystemPrivilegedGroup || group == user.MonitoringGroup {
			return true
		}
	}
	return false
}

// spanName is what all requests of one form have in common.
func spanName(method string, info *request.RequestInfo) string {
	if !info.IsResourceRequest {
		return method
	}
	parts := []string{method + " ", info.APIPrefix}
	if info.APIGroup != "" {
		parts = append(parts, info.APIGroup)
	}
	parts = append(parts, info.APIVersion)
	if info.Namespace != "" {
		parts = append(parts, "namespaces", "{:namespace}")
	}
	parts = append(parts, info.Resource)
	if info.Name != "" {
		parts = append(parts, "{:name}")
	}
	if info.Subresource != "" {
		parts = append(parts, info.Subresource)
	}
	return strings.Join(parts, "/")
}

// requestAttributes describe a request, by OpenTelemetry's names, and by stock's where that has some of its own.
func requestAttributes(req *http.Request) []attribute.KeyValue {
	client, _, err := net.SplitHostPort(req.RemoteAddr)
	if err != nil {
		client = req.RemoteAddr
	}
	return []attribute.KeyValue{
		attribute.String("http.request.method", req.Method),
		attribute.String("http.target", req.URL.RequestURI()),
		attribute.String("url.path", req.URL.Path),
		attribute.String("url.scheme", "https"),
		attribute.String("server.address", req.Host),
		attribute.String("client.address", client),
		attribute.String("network.protocol.version", fmt.Sprintf("%d.%d", req.ProtoMajor, req.ProtoMinor)),
		attribute.String("user_agent.original", req.UserAgent()),
	}
}

// begin begins a span within that of the request; without one it need not look for one in the context.
func (c *call) begin(ctx context.Context, name string) (context.Context, tracing.Span) {
	if !c.span.On() {
		return ctx, tracing.Span{}
	}
	return tracing.Start(ctx, name)
}

// endSpan ends the span of a request: with a panic, whose value fault is, or else with the answer that w gave.
func (c *call) endSpan(w *response, fault any) {
	if !c.span.On() {
		return
	}
	c.span.Set(attribute.String("audit-id", w.Header().Get("Audit-Id")), attribute.Int("http.response.status_code", w.code),
		attribute.Int64("http.response.body.size", w.bytes))
	switch {
	case fault != nil:
		c.span.Fail(fmt.Sprintf("panic: %v", fault))
	case w.code >= http.StatusInternalServerError:
		c.span.Fail(http.StatusText(w.code))
	}
	c.span.End(nil)
}

// verbAttributes describe what is done, as stock does.
func verbAttributes(req *http.Request, o operation) []attribute.KeyValue {
	scope := "cluster"
	switch {
	case o.info.Name != "":
		scope = "resource"
	case o.info.Namespace != "":
		scope = "namespace"
	}
	return []attribute.KeyValue{
		attribute.String("verb", o.info.Verb),
		attribute.String("api-group", o.info.APIGroup), attribute.String("api-version", o.info.APIVersion),
		attribute.String("resource", o.info.Resource), attribute.String("subresource", o.info.Subresource),
		attribute.String("namespace", o.info.Namespace), attribute.String("name", o.info.Name), attribute.String("scope", scope),
		attribute.String("accept", req.Header.Get("Accept")),
	}
}

// verbSpan is what the span of a verb is called, by stock's names.
func verbSpan(verb string) string {
	switch verb {
	case "get":
		return "Get"
	case "list":
		return "List"
	case "create":
		return "Create"
	case "update":
		return "Update"
	case "patch":
		return "Patch"
	case "delete", "deletecollection":
		return "Delete"
	}
	return verb
}
