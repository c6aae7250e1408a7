package cli

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"net"
	"strings"
	"testing"

	"k8s.io/klog/v2"
)

// TestKlogLevels: the ordinary end of an exec and a client's bad query are nobody's concern, a stream that broke is.
func TestKlogLevels(t *testing.T) {
	defer klog.CaptureState().Restore()
	client, server := net.Pipe()
	defer client.Close()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	listener.Close()
	_, closed := listener.Accept() // as the network says it, wrapped
	server.Close()
	_, piped := client.Read(make([]byte, 1))

	for _, test := range []struct {
		name string
		log  func(klog.Logger)
		want string // the level, "" for nothing
	}{
		{"the end of a stream", func(l klog.Logger) { l.Error(closed, streamRead) }, ""},
		{"a stream that broke", func(l klog.Logger) { l.Error(io.ErrUnexpectedEOF, streamRead) }, "WARN"},
		{"another end of a pipe", func(l klog.Logger) { l.Error(piped, streamRead) }, "WARN"},
		{"another message", func(l klog.Logger) { l.Error(closed, "Unable to write frame") }, "WARN"},
		{"a stream without a reason", func(l klog.Logger) { l.Error(nil, streamRead) }, "WARN"},
		{"an error", func(l klog.Logger) { l.Error(errors.New("x"), "y", "z", 1) }, "WARN"},
		{"a client's mistake", func(l klog.Logger) { l.Error(errors.New("x"), badQuery, "request", "y") }, ""},
		{"a note", func(l klog.Logger) { l.Info("y") }, ""},
	} {
		var out bytes.Buffer
		klog.SetSlogLogger(slog.New(fromKlog{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelInfo})}))
		test.log(klog.Background())
		if got := out.String(); (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: logged %q, want level %q", test.name, got, test.want)
		}
	}
	var out bytes.Buffer
	klog.SetSlogLogger(slog.New(fromKlog{slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug})}))
	klog.Background().Error(closed, streamRead)
	if !strings.Contains(out.String(), "level=DEBUG") {
		t.Errorf("who debugs sees %q", out.String())
	}
}
