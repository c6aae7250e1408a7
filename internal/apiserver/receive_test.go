package apiserver_test

import (
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"barque.dev/internal/apiserver"
	"barque.dev/internal/pki"
)

// TestAnAnswerThatNobodyReceives: a client that opens no window for what it asked for holds its seat for a while only.
func TestAnAnswerThatNobodyReceives(t *testing.T) {
	c := start(t, func(cfg *apiserver.Config) { cfg.Limits.Receive = 300 * time.Millisecond })
	object := fmt.Sprintf(`{"metadata":{"name":"large"},"data":{"a":%q}}`, strings.Repeat("x", 20<<10))
	const path = "/api/v1/namespaces/default/configmaps"
	if a := do(t, c.admin(t), "POST", c.url+path, strings.NewReader(object), "Content-Type", "application/json"); a.code != 201 {
		t.Fatal(a)
	}
	for _, asked := range []string{path + "/large", path, "/metrics"} {
		if err := askWithoutWindow(t, c, asked); err != nil {
			t.Errorf("GET %s: %v", asked, err)
		}
	}
	eventually(t, "no request is answered any more", func() error {
		// On a busy machine this answer, too, may take longer than the limit.
		metrics, err := try(t, c.admin(t), "GET", c.url+"/metrics", nil)
		if err == nil && !strings.Contains(metrics.body, "apiserver_current_inflight_requests{request_kind=\"readOnly\"} 1\n") {
			err = errors.New("there are others than this one")
		}
		return err
	})
}

// askWithoutWindow sends a GET on a connection of its own, takes nothing but the head of the answer, and returns nil when
// the server has given the answer up.
func askWithoutWindow(t *testing.T, c *cluster, path string) error {
	t.Helper()
	config := c.tlsConfig(t, pki.UserAdmin, pki.GroupMasters)
	config.NextProtos = []string{"h2"}
	address := strings.TrimPrefix(c.url, "https://")
	conn, err := tls.Dial("tcp", address, config)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		return err
	}
	var head bytes.Buffer
	encoder := hpack.NewEncoder(&head)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", address}, {":path", path}} {
		if err := encoder.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}); err != nil {
			return err
		}
	}
	framer := http2.NewFramer(conn, conn)
	_, err = io.WriteString(conn, http2.ClientPreface)
	err = errors.Join(err, framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0}),
		framer.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: head.Bytes(), EndStream: true, EndHeaders: true}))
	for err == nil {
		var frame http2.Frame
		if frame, err = framer.ReadFrame(); err != nil {
			break
		}
		switch f := frame.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = framer.WriteSettingsAck()
			}
		case *http2.RSTStreamFrame:
			return nil
		}
	}
	return fmt.Errorf("the answer waits for its receiver: %w", err)
}
