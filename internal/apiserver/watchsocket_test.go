package apiserver_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"

	"barque.dev/internal/pki"
)

// dialWatch opens a WebSocket at the path of a watch. header is name, value, name, value.
func (c *cluster) dialWatch(t *testing.T, path string, header ...string) (*websocket.Conn, error) {
	t.Helper()
	return c.dialWatchIn(t, path, nil, header...)
}

// dialWatchIn offers subprotocols too.
func (c *cluster) dialWatchIn(t *testing.T, path string, protocols []string, header ...string) (*websocket.Conn, error) {
	t.Helper()
	config, err := websocket.NewConfig(strings.Replace(c.url, "https:", "wss:", 1)+path, "http://localhost")
	if err != nil {
		t.Fatal(err)
	}
	config.Protocol = protocols
	config.TlsConfig = c.tlsConfig(t, pki.UserAdmin, pki.GroupMasters)
	for i := 0; i+1 < len(header); i += 2 {
		config.Header.Set(header[i], header[i+1])
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	ws, err := config.DialContext(ctx)
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { ws.Close() })
	if err := ws.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return ws, nil
}

// message is one message of a WebSocket, of a kind that it notes.
type message struct {
	payload []byte
	text    bool
}

func receive(ws *websocket.Conn) (message, error) {
	var m message
	err := websocket.Codec{Unmarshal: func(b []byte, kind byte, _ any) error {
		m = message{payload: append([]byte(nil), b...), text: kind == websocket.TextFrame}
		return nil
	}}.Receive(ws, nil)
	return m, err
}

// Each event is one message: text for JSON, bytes for protobuf, as stock has it.
func TestWatchOverWebSocket(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	client := c.client(t)
	maps := client.CoreV1().ConfigMaps("default")
	for i := range 3 {
		if _, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("c%d", i)}}, metav1.CreateOptions{}); err != nil {
			t.Fatal(err)
		}
	}
	protobuf, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), runtime.ContentTypeProtobuf)
	if !ok {
		t.Fatal("no protobuf")
	}
	for _, test := range []struct {
		accept string
		text   bool
		decode func([]byte) (metav1.WatchEvent, error)
	}{
		{"application/json", true, func(b []byte) (event metav1.WatchEvent, err error) {
			return event, json.Unmarshal(b, &event)
		}},
		{"application/vnd.kubernetes.protobuf;stream=watch", false, func(b []byte) (event metav1.WatchEvent, err error) {
			_, _, err = protobuf.StreamSerializer.Decode(b, nil, &event)
			return event, err
		}},
	} {
		t.Run(test.accept, func(t *testing.T) {
			ws, err := c.dialWatch(t, "/api/v1/namespaces/default/configmaps?watch=1&labelSelector=!new", "Accept", test.accept)
			if err != nil {
				t.Fatal(err)
			}
			next := func() (string, *corev1.ConfigMap) {
				t.Helper()
				m, err := receive(ws)
				if err != nil {
					t.Fatal(err)
				}
				if m.text != test.text {
					t.Errorf("the message is text: %v", m.text)
				}
				event, err := test.decode(m.payload)
				if err != nil {
					t.Fatalf("%v: %q", err, m.payload)
				}
				obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(event.Object.Raw, nil, nil)
				if err != nil {
					t.Fatalf("%v: %q", err, event.Object.Raw)
				}
				return event.Type, obj.(*corev1.ConfigMap)
			}
			for i := range 3 {
				if kind, got := next(); kind != "ADDED" || got.Name != fmt.Sprintf("c%d", i) || got.ResourceVersion == "" {
					t.Errorf("%s %s", kind, got.Name)
				}
			}
			name := "late" + map[bool]string{true: "-json", false: "-protobuf"}[test.text]
			made, err := maps.Create(t.Context(), &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: name}}, metav1.CreateOptions{})
			if err != nil {
				t.Fatal(err)
			}
			if kind, got := next(); kind != "ADDED" || got.UID != made.UID {
				t.Errorf("%s %s", kind, got.Name)
			}
			if err := maps.Delete(t.Context(), name, metav1.DeleteOptions{}); err != nil {
				t.Fatal(err)
			}
			if kind, got := next(); kind != "DELETED" || got.Name != name {
				t.Errorf("%s %s", kind, got.Name)
			}
		})
	}
}

// A watch ends with its time, with its client and with its server, each in order.
func TestWatchOverWebSocketEnds(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	running := func() string {
		a := do(t, c.admin(t), "GET", c.url+"/metrics", nil)
		for _, line := range strings.Split(a.body, "\n") {
			if strings.HasPrefix(line, "apiserver_longrunning_requests{") && strings.Contains(line, `resource="configmaps"`) {
				return line[strings.LastIndexByte(line, ' ')+1:]
			}
		}
		return "0"
	}
	const path = "/api/v1/namespaces/default/configmaps?watch=1"
	gone, err := c.dialWatch(t, path)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the watch runs", func() error {
		if n := running(); n != "1" {
			return fmt.Errorf("%s watches run", n)
		}
		return nil
	})
	gone.Close()
	eventually(t, "the watch ends with its client", func() error {
		if n := running(); n != "0" {
			return fmt.Errorf("%s watches run", n)
		}
		return nil
	})
	short, err := c.dialWatch(t, path+"&timeoutSeconds=1")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := receive(short); !errors.Is(err, io.EOF) {
		t.Errorf("after its time: %v %q", err, m.payload)
	}
	fresh, err := c.dialWatch(t, path+"&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true")
	if err != nil {
		t.Fatal(err)
	}
	if m, err := receive(fresh); err != nil || !strings.Contains(string(m.payload), `"k8s.io/initial-events-end":"true"`) {
		t.Errorf("initial events: %v %q", err, m.payload)
	}
	long, err := c.dialWatch(t, path)
	if err != nil {
		t.Fatal(err)
	}
	c.stop()
	if m, err := receive(long); !errors.Is(err, io.EOF) {
		t.Errorf("at shutdown: %v %q", err, m.payload)
	}
}

// What is wrong with the request is said before it becomes a stream; what a browser's token comes in stays with us.
func TestWatchOverWebSocketHandshake(t *testing.T) {
	c := start(t, nil)
	c.wait(t)
	if _, err := c.dialWatch(t, "/api/v1/namespaces/default/configmaps?watch=1&labelSelector=%2C%2C"); err == nil {
		t.Error("a bad selector is no obstacle")
	}
	headers := []string{"Connection", "Upgrade", "Upgrade", "websocket", "Sec-WebSocket-Version", "13", "Sec-WebSocket-Key", "AAAAAAAAAAAAAAAAAAAAAA=="}
	a := do(t, c.admin(t), "GET", c.url+"/api/v1/namespaces/default/configmaps?watch=1&labelSelector=%2C%2C", nil, headers...)
	if s := status(t, a); a.code != 400 || s.Reason != metav1.StatusReasonBadRequest {
		t.Errorf("a bad selector: %d %s", a.code, a.body)
	}
	ws, err := c.dialWatchIn(t, "/api/v1/namespaces/default/configmaps?watch=1", []string{"first", "second"})
	if err != nil {
		t.Fatalf("two protocols: %v", err)
	}
	if got := ws.Config().Protocol; len(got) != 1 || got[0] != "first" {
		t.Errorf("the protocol is %q", got)
	}
}
