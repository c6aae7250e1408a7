package etcd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/soheilhy/cmux"
	"go.uber.org/zap"
	"google.golang.org/grpc"
)

// What etcd says of ordinary events is for those who debug it; what tells of trouble is not hidden.
func TestLogLevels(t *testing.T) {
	broken := errors.New("too many open files")
	for name, tt := range map[string]struct {
		say  func(*zap.Logger)
		want slog.Level
	}{
		"information": {func(l *zap.Logger) { l.Info("compacted") }, slog.LevelDebug},
		"a peer that ends": {func(l *zap.Logger) {
			l.Warn("lost TCP streaming connection with remote peer", zap.Error(errors.New("EOF")))
		}, slog.LevelDebug},
		"a slow disk": {func(l *zap.Logger) { l.Warn("slow fdatasync") }, slog.LevelWarn},
		"a stop": {func(l *zap.Logger) {
			l.Error("setting up serving from embedded etcd failed.", zap.Error(&net.OpError{Op: "accept", Err: net.ErrClosed}))
		}, slog.LevelDebug},
		"a stop of HTTP":       {func(l *zap.Logger) { l.Error("serving failed", zap.Error(http.ErrServerClosed)) }, slog.LevelDebug},
		"a stop of gRPC":       {func(l *zap.Logger) { l.Error("serving failed", zap.Error(grpc.ErrServerStopped)) }, slog.LevelDebug},
		"a stop of both":       {func(l *zap.Logger) { l.Error("serving failed", zap.Error(fmt.Errorf("mux: %w", cmux.ErrServerClosed))) }, slog.LevelDebug},
		"a listener that ends": {func(l *zap.Logger) { l.Error("serving failed", zap.Error(broken)) }, slog.LevelError},
		"a new cluster":        {func(l *zap.Logger) { l.Error("failed to update storage version") }, slog.LevelDebug},
	} {
		var out bytes.Buffer
		tt.say(zap.New(&slogCore{log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))}))
		if !strings.Contains(out.String(), " level="+tt.want.String()+" ") {
			t.Errorf("%s: %q, want %v", name, out.String(), tt.want)
		}
		out.Reset()
		tt.say(zap.New(&slogCore{log: slog.New(slog.NewTextHandler(&out, nil))}))
		if got := out.Len() > 0; got != (tt.want >= slog.LevelInfo) {
			t.Errorf("%s: an ordinary log says %q", name, out.String())
		}
	}
}

// A lone member starts and stops without a word above information.
func TestQuietLife(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelWarn}))
	m, err := Start(context.Background(), Config{Name: "a", DataDir: t.TempDir(), PeerURL: freeURL(t), ClientListen: freeURL(t), UnsafeNoSync: true, Log: log})
	if err != nil {
		t.Fatal(err)
	}
	<-m.Ready()
	m.Close()
	for line := range strings.Lines(out.String()) {
		if !strings.Contains(line, "took too long") { // a busy machine
			t.Error(line)
		}
	}
}

func freeURL(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return "http://" + l.Addr().String()
}
