package cli

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
)

// routeKlog guards klog's logger, which is the process's: it is set before anything reads it.
var routeKlog sync.Once

// fromKlog is for what the libraries of Kubernetes, and gRPC through them, say by themselves: they
// call it a warning when a connection has to be made again, which is of interest to those who debug.
type fromKlog struct{ slog.Handler }

func lower(l slog.Level) slog.Level {
	if l >= slog.LevelError {
		return slog.LevelWarn
	}
	return min(l, slog.LevelDebug)
}

// streamRead is what the library of exec, attach and port-forward says when it cannot read from a WebSocket.
const streamRead = "Error on socket receive"

// badQuery is what the library that takes requests apart says, with all of the query, which a stranger may have
// sent: nobody must be able to fill a log. The client gets an answer that says what is wrong.
const badQuery = "Couldn't parse request"

// endOfStream tells whether a record is about the ordinary end of a WebSocket: the library itself closes it when the
// command has ended, while it still reads from it.
func endOfStream(r slog.Record) bool {
	if r.Message != streamRead {
		return false
	}
	ended := false
	r.Attrs(func(a slog.Attr) bool {
		err, ok := a.Value.Any().(error)
		ended = ok && errors.Is(err, net.ErrClosed)
		return !ended
	})
	return ended
}

// Enabled implements slog.Handler.
func (h fromKlog) Enabled(ctx context.Context, l slog.Level) bool {
	return h.Handler.Enabled(ctx, lower(l))
}

// Handle implements slog.Handler.
func (h fromKlog) Handle(ctx context.Context, r slog.Record) error {
	r.Level = lower(r.Level)
	if r.Message == badQuery || endOfStream(r) {
		r.Level = slog.LevelDebug
		if !h.Handler.Enabled(ctx, r.Level) {
			return nil
		}
	}
	return h.Handler.Handle(ctx, r)
}

// WithAttrs implements slog.Handler.
func (h fromKlog) WithAttrs(attrs []slog.Attr) slog.Handler {
	return fromKlog{h.Handler.WithAttrs(attrs)}
}

// WithGroup implements slog.Handler.
func (h fromKlog) WithGroup(name string) slog.Handler { return fromKlog{h.Handler.WithGroup(name)} }
