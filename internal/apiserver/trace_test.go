package apiserver_test

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apiserver/pkg/authentication/user"

	"barque.dev/internal/apiserver"
)

// spans are those that a server has ended.
type spans struct{ *tracetest.SpanRecorder }

// traced is a control plane that has requests traced whose sender does, and others as root says.
func traced(t *testing.T, root sdktrace.Sampler) (*cluster, spans) {
	t.Helper()
	seen := spans{tracetest.NewSpanRecorder()}
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(seen), sdktrace.WithSampler(sdktrace.ParentBased(root)))
	c := start(t, func(cfg *apiserver.Config) {
		cfg.Tracer = provider.Tracer("test")
		cfg.Paths = map[string]http.Handler{"/panic": http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("oh") })}
	})
	c.wait(t)
	return c, seen
}

// of waits for the span of a request, by its Audit-ID, and returns it with those below it.
func (s spans) of(t *testing.T, a answer) (sdktrace.ReadOnlySpan, []sdktrace.ReadOnlySpan) {
	t.Helper()
	var found sdktrace.ReadOnlySpan
	eventually(t, "the request's span", func() error {
		for _, span := range s.Ended() {
			if attributeOf(span, "audit-id") == a.header.Get("Audit-Id") {
				found = span
				return nil
			}
		}
		return context.DeadlineExceeded
	})
	var below []sdktrace.ReadOnlySpan
	for _, span := range s.Ended() {
		if span.SpanContext().TraceID() == found.SpanContext().TraceID() && span.SpanContext().SpanID() != found.SpanContext().SpanID() {
			below = append(below, span)
		}
	}
	return found, below
}

func attributeOf(span sdktrace.ReadOnlySpan, name string) string {
	for _, a := range span.Attributes() {
		if string(a.Key) == name {
			return a.Value.String()
		}
	}
	return ""
}

// way is how a span's ancestors are called, the oldest first, as far as they are below a request.
func way(span sdktrace.ReadOnlySpan, among []sdktrace.ReadOnlySpan) string {
	for _, other := range among {
		if span.Parent().SpanID() == other.SpanContext().SpanID() {
			return way(other, among) + " / " + span.Name()
		}
	}
	return span.Name()
}

// spansOf are the ways of all spans of a request, without those that are everywhere.
func spansOf(below []sdktrace.ReadOnlySpan) []string {
	var ways []string
	for _, span := range below {
		if span.Name() != "authorization" && span.Name() != "priorityandfairness" {
			ways = append(ways, way(span, below))
		}
	}
	slices.Sort(ways)
	return ways
}

func TestTracesOfVerbs(t *testing.T) {
	c, seen := traced(t, sdktrace.AlwaysSample())
	const path = "/api/v1/namespaces/default/configmaps"
	for _, tc := range []struct {
		method, path, body, content string
		name                        string
		ways                        []string
	}{
		{"POST", path, `{"metadata":{"name":"c"}}`, "application/json", "POST /api/v1/namespaces/{:namespace}/configmaps",
			[]string{"Create", "Create / Create etcd", "Create / Create etcd / Await image", "Create / Create etcd / Txn", "Create / SerializeObject"}},
		{"GET", path + "/c", "", "", "GET /api/v1/namespaces/{:namespace}/configmaps/{:name}", []string{"Get", "Get / ReadIndex etcd", "Get / SerializeObject"}},
		{"GET", path + "/c?resourceVersion=0", "", "", "GET /api/v1/namespaces/{:namespace}/configmaps/{:name}", []string{"Get", "Get / SerializeObject"}},
		{"GET", path, "", "", "GET /api/v1/namespaces/{:namespace}/configmaps", []string{"List", "List / ReadIndex etcd", "List / SerializeObject"}},
		{"PATCH", path + "/c", `{"data":{"a":"1"}}`, "application/merge-patch+json", "PATCH /api/v1/namespaces/{:namespace}/configmaps/{:name}",
			[]string{"Patch", "Patch / SerializeObject", "Patch / Update etcd", "Patch / Update etcd / Await image", "Patch / Update etcd / Txn"}},
		{"DELETE", path + "/c", "", "", "DELETE /api/v1/namespaces/{:namespace}/configmaps/{:name}",
			[]string{"Delete", "Delete / Delete etcd", "Delete / Delete etcd / Await image", "Delete / Delete etcd / Txn", "Delete / SerializeObject"}},
		{"GET", path + "/c", "", "", "GET /api/v1/namespaces/{:namespace}/configmaps/{:name}", []string{"Get", "Get / ReadIndex etcd"}},
		{"GET", "/apis/apps/v1", "", "", "GET", nil},
	} {
		a := do(t, c.admin(t), tc.method, c.url+tc.path, strings.NewReader(tc.body), "Content-Type", tc.content)
		span, below := seen.of(t, a)
		ways := slices.DeleteFunc(spansOf(below), func(w string) bool { return strings.HasSuffix(w, "ReadIndex etcd") && tc.method != "GET" })
		if span.Name() != tc.name || span.SpanKind() != trace.SpanKindServer || !slices.Equal(ways, tc.ways) {
			t.Errorf("%s %s: %s %v, want %s %v", tc.method, tc.path, span.Name(), ways, tc.name, tc.ways)
		}
		if attributeOf(span, "http.target") != tc.path || attributeOf(span, "http.request.method") != tc.method || attributeOf(span, "client.address") != "127.0.0.1" || span.Parent().IsValid() {
			t.Errorf("%v", span.Attributes())
		}
		for _, inner := range below {
			if inner.StartTime().Before(span.StartTime()) || inner.EndTime().After(span.EndTime()) {
				t.Errorf("%s %s: %s is not within the request", tc.method, tc.path, inner.Name())
			}
			if inner.Name() == "Create etcd" && (attributeOf(inner, "name") != "c" || !strings.Contains(attributeOf(inner, "prefix"), "configmaps")) {
				t.Errorf("%v", inner.Attributes())
			}
		}
	}
}

// TestWhoDecidesOnTraces sends the headers of a trace that is sampled, where nothing is traced that nobody asks for.
func TestWhoDecidesOnTraces(t *testing.T) {
	const id, parent = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	path := "/api/v1/namespaces/default/configmaps"
	ask := func(c *cluster, client *http.Client, flags string) answer {
		return do(t, client, "GET", c.url+path, nil, "Traceparent", "00-"+id+"-"+parent+"-"+flags)
	}
	quiet, seen := traced(t, sdktrace.NeverSample())
	for _, group := range []string{user.SystemPrivilegedGroup, user.MonitoringGroup} {
		span, below := seen.of(t, ask(quiet, quiet.http(t, "ann", group), "01"))
		if span.SpanContext().TraceID().String() != id || span.Parent().SpanID().String() != parent || len(below) == 0 {
			t.Errorf("%s: %v below %v", group, span.SpanContext().TraceID(), span.Parent().SpanID())
		}
	}
	before := len(seen.Ended())
	ask(quiet, quiet.http(t, "ann", "dev"), "01")
	ask(quiet, quiet.admin(t), "00")
	do(t, quiet.admin(t), "GET", quiet.url+path, nil, "Traceparent", "nonsense")
	do(t, quiet.http(t, ""), "GET", quiet.url+path, nil, "Traceparent", "00-"+id+"-"+parent+"-01")
	seen.of(t, ask(quiet, quiet.admin(t), "01")) // what came before has ended, too
	if n := len(slices.DeleteFunc(seen.Ended()[before:], func(s sdktrace.ReadOnlySpan) bool { return s.SpanKind() != trace.SpanKindServer })); n != 1 {
		t.Errorf("%d requests are traced, and one was to be", n)
	}

	loud, seen := traced(t, sdktrace.AlwaysSample())
	span, _ := seen.of(t, ask(loud, loud.http(t, "ann", "dev"), "01"))
	if span.SpanContext().TraceID().String() == id || span.Parent().IsValid() || len(span.Links()) != 1 || span.Links()[0].SpanContext.TraceID().String() != id {
		t.Errorf("a user without rights is part of another's trace: %v, links %v", span.Parent(), span.Links())
	}
}

func TestTracesOfFailures(t *testing.T) {
	c, seen := traced(t, sdktrace.AlwaysSample())
	for path, want := range map[string]codes.Code{"/panic": codes.Error, "/api/v1/namespaces/default/configmaps/none": codes.Unset, "/version": codes.Unset} {
		span, _ := seen.of(t, do(t, c.admin(t), "GET", c.url+path, nil))
		if span.Status().Code != want || attributeOf(span, "http.response.status_code") == "" {
			t.Errorf("%s: %v %v", path, span.Status(), span.Attributes())
		}
	}
	span, below := seen.of(t, do(t, c.http(t, "jane"), "GET", c.url+"/api/v1/secrets", nil))
	if attributeOf(span, "http.response.status_code") != "403" || len(spansOf(below)) > 0 {
		t.Errorf("%v %v", span.Attributes(), spansOf(below))
	}
}

// BenchmarkTraces measures requests without traces, with traces of which the request is none, and traced requests.
func BenchmarkTraces(b *testing.B) {
	for name, sampler := range map[string]sdktrace.Sampler{"off": nil, "unsampled": sdktrace.NeverSample(), "sampled": sdktrace.AlwaysSample()} {
		b.Run(name, func(b *testing.B) {
			c := start(b, func(cfg *apiserver.Config) {
				if sampler != nil {
					cfg.Tracer = sdktrace.NewTracerProvider(sdktrace.WithSampler(sampler), sdktrace.WithSpanProcessor(nowhere{})).Tracer("test")
				}
			})
			c.wait(b)
			c.measure(b)
		})
	}
}

// nowhere sends no spans, so that what is measured is what requests wait for.
type nowhere struct{}

func (nowhere) OnStart(context.Context, sdktrace.ReadWriteSpan) {}
func (nowhere) OnEnd(sdktrace.ReadOnlySpan)                     {}
func (nowhere) Shutdown(context.Context) error                  { return nil }
func (nowhere) ForceFlush(context.Context) error                { return nil }
