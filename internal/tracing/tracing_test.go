package tracing_test

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"

	"barque.dev/internal/tracing"
)

// recorded is a context with a span, and where it and those below are seen.
func recorded(t *testing.T, sampler sdktrace.Sampler) (context.Context, *tracetest.SpanRecorder) {
	t.Helper()
	seen := tracetest.NewSpanRecorder()
	provider := sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(seen), sdktrace.WithSampler(sampler))
	ctx, span := provider.Tracer("test").Start(t.Context(), "root")
	t.Cleanup(func() { span.End() })
	return ctx, seen
}

func TestSpansStandInEachOther(t *testing.T) {
	ctx, seen := recorded(t, sdktrace.AlwaysSample())
	ctx, outer := tracing.Start(ctx, "outer")
	_, inner := tracing.Start(ctx, "inner")
	if !inner.On() {
		t.Fatal("nobody sees it")
	}
	inner.Set(attribute.String("a", "1"))
	inner.End(errors.New("no such thing"))
	outer.Rename("other")
	outer.Fail("broken")
	outer.End(nil)
	ended := seen.Ended()
	if len(ended) != 2 || ended[0].Name() != "inner" || ended[1].Name() != "other" || ended[0].Parent().SpanID() != ended[1].SpanContext().SpanID() {
		t.Fatalf("%v", ended)
	}
	if events := ended[0].Events(); len(events) != 1 || events[0].Name != "exception" || ended[0].Status().Code != codes.Unset {
		t.Errorf("an error is told, and is no failure: %v %v", events, ended[0].Status())
	}
	if len(ended[0].Attributes()) != 1 || ended[1].Status().Code != codes.Error || ended[1].Status().Description != "broken" {
		t.Errorf("%v %v", ended[0].Attributes(), ended[1].Status())
	}
}

// TestWhatIsNotTracedCostsNothing holds whether tracing is off, or the request is none of those that are traced.
func TestWhatIsNotTracedCostsNothing(t *testing.T) {
	unsampled, seen := recorded(t, sdktrace.NeverSample())
	cause := errors.New("no such thing")
	for name, ctx := range map[string]context.Context{"off": t.Context(), "not sampled": unsampled} {
		n := testing.AllocsPerRun(100, func() {
			ctx, span := tracing.Start(ctx, "a")
			_, inner := tracing.Start(ctx, "b")
			if inner.On() {
				t.Fatal("somebody sees it")
			}
			inner.Rename("c")
			inner.Fail("d")
			inner.End(cause)
			span.End(nil)
		})
		if n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
	if len(seen.Started()) > 0 {
		t.Error("it is traced")
	}
}

// trip keeps the request that it gets.
type trip struct {
	req  *http.Request
	code int
	err  error
}

func (r *trip) RoundTrip(req *http.Request) (*http.Response, error) {
	r.req = req
	if r.err != nil {
		return nil, r.err
	}
	return &http.Response{StatusCode: r.code, Status: http.StatusText(r.code), Body: http.NoBody}, nil
}

func TestTransport(t *testing.T) {
	sampled, seen := recorded(t, sdktrace.AlwaysSample())
	unsampled, _ := recorded(t, sdktrace.NeverSample())
	request := func(ctx context.Context) *http.Request {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://user:secret@hook.example.org/path", nil)
		if err != nil {
			t.Fatal(err)
		}
		return req
	}
	send := func(next *trip, req *http.Request) {
		t.Helper()
		if resp, err := tracing.Transport(next).RoundTrip(req); err != nil && next.err == nil || err == nil && resp.StatusCode != next.code {
			t.Fatalf("%v %v", resp, err)
		}
	}
	next := &trip{code: 200}
	req := request(t.Context())
	if send(next, req); next.req != req || next.req.Header.Get("Traceparent") != "" {
		t.Errorf("it is no part of a trace, and has %v", next.req.Header)
	}
	if send(next, request(unsampled)); !strings.HasSuffix(next.req.Header.Get("Traceparent"), "-00") {
		t.Errorf("a trace that is not sampled is passed on as that: %v", next.req.Header)
	}
	for _, next := range []*trip{{code: 200}, {code: 503}, {err: errors.New("no route")}} {
		req := request(sampled)
		send(next, req)
		ended := seen.Ended()
		span := ended[len(ended)-1]
		want := "00-" + span.SpanContext().TraceID().String() + "-" + span.SpanContext().SpanID().String() + "-01"
		if next.req.Header.Get("Traceparent") != want || req.Header.Get("Traceparent") != "" {
			t.Errorf("%v, want %s, and the request that was given unchanged: %v", next.req.Header, want, req.Header)
		}
		if span.Name() != "HTTP POST" || span.SpanKind() != trace.SpanKindClient || (span.Status().Code == codes.Error) != (next.code != 200) {
			t.Errorf("%d: %s %v", next.code, span.Name(), span.Status())
		}
		for _, a := range span.Attributes() {
			if strings.Contains(a.Value.String(), "secret") {
				t.Errorf("%s tells a password", a.Key)
			}
		}
	}
}

// BenchmarkStart is what a span costs that nobody sees.
func BenchmarkStart(b *testing.B) {
	type key int
	ctx := b.Context()
	for i := range 10 { // as many values as the context of a request has
		ctx = context.WithValue(ctx, key(i), i)
	}
	b.ReportAllocs()
	for b.Loop() {
		_, span := tracing.Start(ctx, "a")
		span.End(nil)
	}
}
