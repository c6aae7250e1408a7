package otlp_test

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	tracingapi "k8s.io/component-base/tracing/api/v1"

	"barque.dev/internal/tracing"
	"barque.dev/internal/tracing/otlp"
	"barque.dev/internal/tracing/otlp/otlptest"
)

func TestRead(t *testing.T) {
	for name, tc := range map[string]struct{ text, err string }{
		"v1":      {text: "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: 127.0.0.1:4317\nsamplingRatePerMillion: 100\n"},
		"v1beta1": {text: "apiVersion: apiserver.config.k8s.io/v1beta1\nkind: TracingConfiguration\nendpoint: 127.0.0.1:4317\nsamplingRatePerMillion: 100\n"},
		"JSON":    {text: `{"apiVersion":"apiserver.config.k8s.io/v1alpha1","kind":"TracingConfiguration","endpoint":"127.0.0.1:4317","samplingRatePerMillion":100}`},
		"empty":   {err: "is empty"},
		"other":   {text: "apiVersion: apiserver.config.k8s.io/v1\nkind: AuthorizationConfiguration\nauthorizers: []\n", err: "not a TracingConfiguration"},
		"unknown": {text: "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nrate: 1\n", err: "rate"},
		"version": {text: "apiVersion: apiserver.config.k8s.io/v9\nkind: TracingConfiguration\n", err: "v9"},
		"rate":    {text: "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nsamplingRatePerMillion: 1000001\n", err: "samplingRatePerMillion"},
		"scheme":  {text: "apiVersion: apiserver.config.k8s.io/v1\nkind: TracingConfiguration\nendpoint: http://127.0.0.1:4317\n", err: "endpoint"},
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "tracing.yaml")
			if err := os.WriteFile(file, []byte(tc.text), 0o600); err != nil {
				t.Fatal(err)
			}
			cfg, err := otlp.Read(file)
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("%v, want one of %q", err, tc.err)
				}
				return
			}
			if err != nil || *cfg.Endpoint != "127.0.0.1:4317" || *cfg.SamplingRatePerMillion != 100 {
				t.Errorf("%+v %v", cfg, err)
			}
		})
	}
	if _, err := otlp.Read("/nonexistent/tracing.yaml"); err == nil || !strings.Contains(err.Error(), "/nonexistent/tracing.yaml") {
		t.Errorf("%v", err)
	}
}

// configured is a configuration that has all requests traced.
func configured(endpoint string, rate int32) *tracingapi.TracingConfiguration {
	return &tracingapi.TracingConfiguration{Endpoint: &endpoint, SamplingRatePerMillion: &rate}
}

// run runs an exporter until the returned function is called, which returns once it has ended.
func run(t *testing.T, e *otlp.Exporter) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// TestSpansAreSent sends more than one batch, the last of it when the server ends.
func TestSpansAreSent(t *testing.T) {
	const requests = 1000
	c := otlptest.Start(t)
	e, err := otlp.Open(t.Context(), configured(c.Endpoint, 1000000), "one", slog.Default())
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, e)
	for i := range requests {
		ctx, root := e.Tracer().Start(t.Context(), fmt.Sprint("request ", i))
		_, child := tracing.Start(ctx, "verb")
		child.End(nil)
		root.End()
	}
	stop()
	all := c.All()
	if len(all) != 2*requests {
		t.Fatalf("%d spans arrived", len(all))
	}
	for _, s := range all {
		if s.Service != "apiserver" || s.Instance != "one" {
			t.Fatalf("%+v", s)
		}
		if family := c.Trace(s.TraceID()); len(family) != 2 || family[0].ParentID() != family[1].ID() && family[1].ParentID() != family[0].ID() {
			t.Fatalf("%+v", family)
		}
	}
}

func TestSamples(t *testing.T) {
	c := otlptest.Start(t)
	for rate, within := range map[int32][2]int{0: {0, 0}, 100000: {50, 150}, 1000000: {1000, 1000}} {
		e, err := otlp.Open(t.Context(), configured(c.Endpoint, rate), "one", slog.Default())
		if err != nil {
			t.Fatal(err)
		}
		sampled := 0
		for range 1000 {
			if _, span := e.Tracer().Start(t.Context(), "request"); span.IsRecording() {
				sampled++
			}
		}
		run(t, e)()
		if sampled < within[0] || sampled > within[1] {
			t.Errorf("of 1000 requests, at a rate of %d in a million, %d are traced", rate, sampled)
		}
	}
}

// TestNobodyListens loses spans, says so once, and ends in time.
func TestNobodyListens(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	endpoint := listener.Addr().String()
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	e, err := otlp.Open(t.Context(), configured(endpoint, 1000000), "one", slog.New(slog.NewTextHandler(&log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	stop := run(t, e)
	began := time.Now()
	for range 5000 {
		_, span := e.Tracer().Start(t.Context(), "request")
		span.End()
	}
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("requests wait for the collector: %v", took)
	}
	stop()
	if took := time.Since(began); took > time.Minute {
		t.Errorf("the server does not end: %v", took)
	}
	if strings.Count(log.String(), "traces can't be sent") > 1 || !strings.Contains(log.String(), "can't be sent") {
		t.Errorf("it is told once: %s", &log)
	}
}
