// Package otlptest is a collector of traces for tests.
package otlptest

import (
	"context"
	"encoding/hex"
	"net"
	"sync"
	"testing"

	collector "go.opentelemetry.io/proto/otlp/collector/trace/v1"
	commonv1 "go.opentelemetry.io/proto/otlp/common/v1"
	tracev1 "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/grpc"
)

// Span is a span that arrived.
type Span struct {
	*tracev1.Span
	// Service and Instance are who made it.
	Service, Instance string
}

// ID, ParentID and TraceID are in hexadecimal digits, as headers have them; ParentID is empty for the first of a trace.
func (s Span) ID() string       { return hex.EncodeToString(s.SpanId) }
func (s Span) ParentID() string { return hex.EncodeToString(s.ParentSpanId) }
func (s Span) TraceID() string  { return hex.EncodeToString(s.TraceId) }

// Attribute is the value of an attribute, a number in digits; empty if there is none of the name.
func (s Span) Attribute(name string) string { return value(s.Attributes, name) }

func value(of []*commonv1.KeyValue, name string) string {
	for _, a := range of {
		if a.Key != name {
			continue
		}
		if text, ok := a.Value.Value.(*commonv1.AnyValue_StringValue); ok {
			return text.StringValue
		}
		return a.Value.String()
	}
	return ""
}

// Collector keeps the spans that are sent to it. It is safe for concurrent use.
type Collector struct {
	collector.UnimplementedTraceServiceServer
	// Endpoint is where it listens.
	Endpoint string

	mu    sync.Mutex
	spans []Span
}

// Start starts a collector on a loopback address, which ends with the test.
func Start(t testing.TB) *Collector {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &Collector{Endpoint: listener.Addr().String()}
	server := grpc.NewServer()
	collector.RegisterTraceServiceServer(server, c)
	var served sync.WaitGroup
	served.Go(func() {
		if err := server.Serve(listener); err != nil {
			t.Errorf("collector: %v", err)
		}
	})
	t.Cleanup(func() { server.Stop(); served.Wait() })
	return c
}

// Export implements OTLP's TraceService.
func (c *Collector) Export(_ context.Context, req *collector.ExportTraceServiceRequest) (*collector.ExportTraceServiceResponse, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, from := range req.ResourceSpans {
		who := from.Resource.GetAttributes()
		for _, scope := range from.ScopeSpans {
			for _, s := range scope.Spans {
				c.spans = append(c.spans, Span{s, value(who, "service.name"), value(who, "service.instance.id")})
			}
		}
	}
	return &collector.ExportTraceServiceResponse{}, nil
}

// Trace returns the spans of one trace that have arrived, in no order.
func (c *Collector) Trace(id string) []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Span
	for _, s := range c.spans {
		if s.TraceID() == id {
			out = append(out, s)
		}
	}
	return out
}

// All returns all spans that have arrived.
func (c *Collector) All() []Span {
	c.mu.Lock()
	defer c.mu.Unlock()
	return append([]Span(nil), c.spans...)
}
