package apiserver

import (
	"context"
	"io"
	"net/http"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/streaming/pkg/httpstream/wsstream"

	"barque.dev/internal/apiserver/registry"
	"barque.dev/internal/apiserver/wire"
)

// isWebSocket tells whether a request wants its connection to become a WebSocket, which only those of HTTP/1.1 can.
func isWebSocket(req *http.Request) bool {
	return req.ProtoMajor == 1 && wsstream.IsWebSocketRequest(req)
}

// socket is the outlet that is a WebSocket (RFC 6455): a message an event, text for JSON, bytes for protobuf.
type socket struct {
	*websocket.Conn
	encoding wire.Encoding
}

// Write sends a frame as a message, which needs no length of its own.
func (s socket) Write(frame []byte) (int, error) {
	var err error
	if s.encoding == wire.JSON {
		err = websocket.Message.Send(s.Conn, string(frame))
	} else {
		err = websocket.Message.Send(s.Conn, frame[wire.FramePrefix:])
	}
	if err != nil {
		return 0, err
	}
	return len(frame), nil
}

// Flush has nothing to do: messages are sent at once.
func (socket) Flush() error { return nil }

// runOnSocket is run with events as messages of a WebSocket. It returns once the connection is closed.
func (st *stream) runOnSocket(ctx context.Context, w http.ResponseWriter, req *http.Request, source *registry.Watch, deadline time.Time) error {
	var err error
	websocket.Server{
		// Any origin will do, as with the streams to pods: only some clients have one.
		Handshake: func(config *websocket.Config, _ *http.Request) error {
			config.Header = w.Header()
			config.Protocol = config.Protocol[:min(len(config.Protocol), 1)]
			return nil
		},
		Handler: func(ws *websocket.Conn) {
			ctx, cancel := context.WithCancel(ctx)
			closed := make(chan struct{})
			go func() {
				defer close(closed)
				defer cancel()
				// The client has nothing to say but that it goes.
				_, _ = io.Copy(io.Discard, ws)
			}()
			defer func() { _ = ws.Close(); <-closed }()
			if err = ws.SetWriteDeadline(deadline); err != nil {
				return
			}
			st.out, st.framed = socket{ws, st.m.encoding}, true
			err = st.run(ctx, source)
		},
	}.ServeHTTP(w, req)
	return err
}
