// Package otlp sends the spans of traces to a collector, over OTLP and gRPC, as a TracingConfiguration of kube-apiserver
// says: where the collector is, and how many of the requests are traced.
package otlp

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracegrpc"
	"go.opentelemetry.io/otel/sdk/resource"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/trace"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apiserver/pkg/apis/apiserver"
	"k8s.io/apiserver/pkg/apis/apiserver/install"
	tracingapi "k8s.io/component-base/tracing/api/v1"

	"barque.dev/internal/tracing"
)

// service is what collectors know the spans' origin by: stock's name, since it is the same service.
const service = "apiserver"

// flushTimeout bounds how long the last spans may take to be sent when the server ends.
const flushTimeout = 5 * time.Second

// Read reads a TracingConfiguration, of any version that stock reads (apiserver.config.k8s.io/v1 is the newest), strictly,
// and checks it.
func Read(file string) (*tracingapi.TracingConfiguration, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	if len(content) == 0 {
		return nil, fmt.Errorf("%s is empty", file)
	}
	scheme := runtime.NewScheme()
	install.Install(scheme)
	codecs := serializer.NewCodecFactory(scheme, serializer.EnableStrict)
	obj, err := runtime.Decode(codecs.UniversalDecoder(), content)
	if err != nil {
		return nil, fmt.Errorf("decode %s: %w", file, err)
	}
	found, ok := obj.(*apiserver.TracingConfiguration)
	if !ok {
		return nil, fmt.Errorf("%s holds a %T, not a TracingConfiguration", file, obj)
	}
	if err := tracingapi.ValidateTracingConfiguration(&found.TracingConfiguration, nil, nil).ToAggregate(); err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return &found.TracingConfiguration, nil
}

// Exporter gathers spans and sends them. It is safe for concurrent use. Without a collector spans are lost, and nothing
// waits for it.
type Exporter struct {
	provider *sdktrace.TracerProvider
	log      *slog.Logger
}

// Open makes an Exporter of the spans of one server, whose name instance is. It has to be run.
func Open(ctx context.Context, cfg *tracingapi.TracingConfiguration, instance string, log *slog.Logger) (*Exporter, error) {
	options := []otlptracegrpc.Option{otlptracegrpc.WithInsecure()}
	if cfg.Endpoint != nil {
		options = append(options, otlptracegrpc.WithEndpoint(*cfg.Endpoint))
	}
	sender, err := otlptracegrpc.New(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("set up the export of traces: %w", err)
	}
	origin := resource.NewSchemaless(attribute.String("service.name", service), attribute.String("service.instance.id", instance))
	return &Exporter{log: log, provider: sdktrace.NewTracerProvider(
		sdktrace.WithSampler(sampler(cfg)), sdktrace.WithBatcher(&loud{SpanExporter: sender, log: log}), sdktrace.WithResource(origin),
	)}, nil
}

// sampler has requests traced whose sender traces them, and so many in a million of the others.
func sampler(cfg *tracingapi.TracingConfiguration) sdktrace.Sampler {
	root := sdktrace.NeverSample()
	if rate := cfg.SamplingRatePerMillion; rate != nil && *rate > 0 {
		root = sdktrace.TraceIDRatioBased(float64(*rate) / 1e6)
	}
	return sdktrace.ParentBased(root)
}

// Tracer begins the spans of requests.
func (e *Exporter) Tracer() trace.Tracer { return e.provider.Tracer(tracing.Scope) }

// Run returns when ctx has ended and all spans have been sent, or could not be, which is told and is no failure.
func (e *Exporter) Run(ctx context.Context) error {
	<-ctx.Done()
	last, cancel := context.WithTimeout(context.WithoutCancel(ctx), flushTimeout)
	defer cancel()
	if err := e.provider.Shutdown(last); err != nil {
		e.log.Warn("the last traces can't be sent", "error", err)
	}
	return nil
}

// loud tells when the collector can't be reached, and when it can again. The spans of the time between are lost.
type loud struct {
	sdktrace.SpanExporter
	log    *slog.Logger
	failed atomic.Bool
}

// ExportSpans implements sdktrace.SpanExporter. Its caller could do no more about an error than print it each time.
func (l *loud) ExportSpans(ctx context.Context, spans []sdktrace.ReadOnlySpan) error {
	err := l.SpanExporter.ExportSpans(ctx, spans)
	switch {
	case err != nil && !l.failed.Swap(true):
		l.log.Warn("traces can't be sent: they are lost", "error", err)
	case err == nil && l.failed.Swap(false):
		l.log.Info("traces can be sent again")
	}
	return nil
}
