package etcd

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"

	"github.com/soheilhy/cmux"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
)

// slogCore lets etcd's zap logger write to slog. What etcd calls information is of interest to
// those who debug it, so it goes one level down. So do its warnings: connections between members
// break and are made again whenever one starts or stops, and whether the others are well is told by
// the failure detector. Only those that tell of a slow disk or of overload stay.
type slogCore struct {
	log *slog.Logger
}

// tells says whether a warning is one of those that stay.
func tells(message string) bool {
	return begins(message, "slow fdatasync", "sync duration of", "apply request took too long", "request took too long",
		"leader failed to send out heartbeat on time", "database space exceeded")
}

// harmless says whether an error tells of nothing wrong: a new cluster has no term yet.
func harmless(message string) bool { return begins(message, "failed to update storage version") }

func begins(message string, with ...string) bool {
	return slices.ContainsFunc(with, func(s string) bool { return strings.HasPrefix(message, s) })
}

func slogLevel(l zapcore.Level, message string) slog.Level {
	switch {
	case l >= zapcore.ErrorLevel && !harmless(message):
		return slog.LevelError
	case l == zapcore.WarnLevel && tells(message):
		return slog.LevelWarn
	case l >= zapcore.InfoLevel:
		return slog.LevelDebug
	default:
		return slog.LevelDebug - 4
	}
}

// Enabled implements zapcore.Core.
func (c *slogCore) Enabled(l zapcore.Level) bool {
	// The message is not known yet: Check looks again.
	return l >= zapcore.WarnLevel || c.log.Enabled(context.Background(), slogLevel(l, ""))
}

// With implements zapcore.Core.
func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{log: c.log.With(slogArgs(fields)...)}
}

// Check implements zapcore.Core.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.log.Enabled(context.Background(), slogLevel(e.Level, e.Message)) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write implements zapcore.Core.
func (c *slogCore) Write(e zapcore.Entry, fields []zapcore.Field) error {
	level := slogLevel(e.Level, e.Message)
	if slices.ContainsFunc(fields, tellsOfClosing) {
		level = min(level, slog.LevelDebug)
	}
	c.log.Log(context.Background(), level, e.Message, slogArgs(fields)...)
	return nil
}

// tellsOfClosing says whether a field is an error that only says that a listener was closed, which is
// how each of etcd's ends.
func tellsOfClosing(f zapcore.Field) bool {
	err, ok := f.Interface.(error)
	if f.Type != zapcore.ErrorType || !ok {
		return false
	}
	for _, closed := range []error{net.ErrClosed, http.ErrServerClosed, grpc.ErrServerStopped, cmux.ErrListenerClosed, cmux.ErrServerClosed} {
		if errors.Is(err, closed) {
			return true
		}
	}
	return false
}

// Sync implements zapcore.Core.
func (c *slogCore) Sync() error { return nil }

func slogArgs(fields []zapcore.Field) []any {
	enc := zapcore.NewMapObjectEncoder()
	args := make([]any, 0, len(fields))
	for _, f := range fields {
		f.AddTo(enc)
		args = append(args, slog.Any(f.Key, enc.Fields[f.Key]))
	}
	return args
}
