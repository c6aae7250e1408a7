package node

import (
	"context"
	"fmt"

	"go.opentelemetry.io/otel/trace"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/apiserver/auditlog"
	"barque.dev/internal/run"
	"barque.dev/internal/tracing/otlp"
)

// openAudit comes before the server becomes a member of anything: with a log that can't be written it must not serve.
func (s *Server) openAudit(context.Context) (err error) {
	if s.audit, err = auditlog.Open(s.cfg.Audit, s.cfg.Log); err != nil {
		return fmt.Errorf("open the audit log: %w", err)
	}
	return nil
}

// openTraces reads where traces go to.
func (s *Server) openTraces(ctx context.Context) error {
	if s.cfg.TracingFile == "" {
		return nil
	}
	config, err := otlp.Read(s.cfg.TracingFile)
	if err != nil {
		return fmt.Errorf("--tracing-config-file: %w", err)
	}
	if s.traces, err = otlp.Open(ctx, config, apiserver.LeasePrefix+s.cfg.NodeName, s.cfg.Log); err != nil {
		return fmt.Errorf("--tracing-config-file %s: %w", s.cfg.TracingFile, err)
	}
	return nil
}

// tracer is nil when nothing is traced.
func (s *Server) tracer() trace.Tracer {
	if s.traces == nil {
		return nil
	}
	return s.traces.Tracer()
}

// traceServices send the spans of what is started after them, and stopped before.
func (s *Server) traceServices() []run.Service {
	if s.traces == nil {
		return nil
	}
	return []run.Service{run.Func("traces", s.traces.Run)}
}
