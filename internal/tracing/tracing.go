// Package tracing marks where requests spend their time, as spans of OpenTelemetry traces (KEP-647).
//
// A request that is sampled carries its span in its context; [Start] begins a span within that. Whoever does something
// worth a span says so wherever it is done, whether anybody listens or not: without a span in the context, which is so for
// all requests when tracing is not configured, Start and all that follows cost a look into the context, and allocate
// nothing. Where spans are sent is package otlp's business, and which requests are sampled, the API server's.
package tracing

import (
	"context"
	"net/http"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
)

// Scope is what made the spans, as OpenTelemetry calls it.
const Scope = "barque.dev/internal/tracing"

// Span is one operation in a trace. The zero value is that of an operation that is not traced: it may be used like any
// other, and does nothing. A Span is safe for concurrent use.
type Span struct{ span trace.Span }

// Start begins a span within that of ctx, and returns the context for what is done in it. It has to be ended.
func Start(ctx context.Context, name string) (context.Context, Span) {
	return start(ctx, name, trace.SpanKindInternal)
}

func start(ctx context.Context, name string, kind trace.SpanKind) (context.Context, Span) {
	parent := trace.SpanFromContext(ctx)
	if !parent.IsRecording() {
		return ctx, Span{}
	}
	ctx, span := parent.TracerProvider().Tracer(Scope).Start(ctx, name, trace.WithSpanKind(kind))
	return ctx, Span{span}
}

// Of makes a Span of one that was begun elsewhere; of one that is not recorded it is the zero value.
func Of(span trace.Span) Span {
	if !span.IsRecording() {
		return Span{}
	}
	return Span{span}
}

// On tells whether somebody will see the span: if not, its attributes need not be made.
func (s Span) On() bool { return s.span != nil }

// Set adds attributes. They are made even if the span is not On, so ask that first.
func (s Span) Set(attributes ...attribute.KeyValue) {
	if s.span != nil {
		s.span.SetAttributes(attributes...)
	}
}

// Rename changes the span's name.
func (s Span) Rename(name string) {
	if s.span != nil {
		s.span.SetName(name)
	}
}

// Fail marks the span as one that failed, and says why.
func (s Span) Fail(why string) {
	if s.span != nil {
		s.span.SetStatus(codes.Error, why)
	}
}

// End ends the span. An error becomes an event of it; by itself it is no failure, for many errors are ordinary answers.
func (s Span) End(err error) {
	if s.span == nil {
		return
	}
	if err != nil {
		s.span.RecordError(err)
	}
	s.span.End()
}

// Propagator reads and writes the headers that carry traces from one program to the next: those of the W3C's
// recommendations Trace Context and Baggage.
func Propagator() propagation.TextMapPropagator {
	return propagation.NewCompositeTextMapPropagator(propagation.TraceContext{}, propagation.Baggage{})
}

// Transport has requests that are part of a trace say so to their receivers, each in a span of its own, which ends with the
// response's header.
func Transport(next http.RoundTripper) http.RoundTripper { return transport{next} }

type transport struct{ next http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (t transport) RoundTrip(req *http.Request) (*http.Response, error) {
	if !trace.SpanContextFromContext(req.Context()).IsValid() {
		return t.next.RoundTrip(req)
	}
	ctx, span := start(req.Context(), "HTTP "+req.Method, trace.SpanKindClient)
	req = req.Clone(ctx) // whose it is must find it unchanged
	Propagator().Inject(ctx, propagation.HeaderCarrier(req.Header))
	if span.On() {
		span.Set(attribute.String("http.request.method", req.Method), attribute.String("server.address", req.URL.Hostname()),
			attribute.String("url.full", req.URL.Redacted()))
	}
	resp, err := t.next.RoundTrip(req)
	switch {
	case err != nil:
		span.Fail(err.Error())
	case span.On():
		span.Set(attribute.Int("http.response.status_code", resp.StatusCode))
		if resp.StatusCode >= http.StatusBadRequest {
			span.Fail(resp.Status)
		}
	}
	span.End(err)
	return resp, err
}

// WrappedRoundTripper lets client-go find the connection below.
func (t transport) WrappedRoundTripper() http.RoundTripper { return t.next }
