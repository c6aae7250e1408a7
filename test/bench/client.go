package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
)

const (
	mediaProtobuf = "application/vnd.kubernetes.protobuf"
	mediaJSON     = "application/json"
)

// loader is a set of clients of one server, each with a connection of its own.
type loader struct {
	server   *server
	clients  []*lean
	watchers []*lean
	stop     []func()
}

// connections carry the load's streams; watches have others, of at most 50 streams each.
const (
	connections      = 8
	watchConnections = 20
)

func newLoader(s *server) (*loader, error) {
	config, err := s.config()
	if err != nil {
		return nil, err
	}
	l := &loader{server: s}
	for i := range connections + watchConnections {
		// client-go shares connections between equal configurations, so each gets a dialer of its own.
		own := rest.CopyConfig(config)
		own.TLSClientConfig.NextProtos = []string{"h2"}
		tls, err := rest.TLSConfigFor(own)
		if err != nil {
			return nil, err
		}
		transport := &http.Transport{TLSClientConfig: tls, ForceAttemptHTTP2: true, DisableCompression: true}
		client := &lean{http: &http.Client{Transport: transport}, base: s.url + "/api/v1/namespaces/" + loadNamespace + "/pods"}
		if i < connections {
			l.clients = append(l.clients, client)
		} else {
			l.watchers = append(l.watchers, client)
		}
		l.stop = append(l.stop, transport.CloseIdleConnections)
	}
	return l, nil
}

func (l *loader) close() {
	for _, stop := range l.stop {
		stop()
	}
}

func (l *loader) watchClient(i int) *lean { return l.watchers[i%len(l.watchers)] }

// each runs an operation n times, by so many workers at once, and returns how long each took.
func (l *loader) each(workers, n int, op func(*lean, int) error) ([]time.Duration, error) {
	latencies := make([]time.Duration, n)
	errs := make([]error, workers)
	var next atomic.Int64
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= n {
					return
				}
				started := time.Now()
				if err := op(l.clients[w%len(l.clients)], i); err != nil {
					errs[w] = err
					return
				}
				latencies[i] = time.Since(started)
			}
		})
	}
	group.Wait()
	return latencies, errors.Join(errs...)
}

// lean is a client that costs little beside the server that it shares the cores with: bodies are
// encoded once and answers are not decoded.
type lean struct {
	http *http.Client
	base string
}

func (c *lean) do(ctx context.Context, method, url, accept, content string, body []byte, want int) (int64, error) {
	resp, err := c.send(ctx, method, url, accept, content, body, want)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.Copy(io.Discard, resp.Body)
}

func (c *lean) send(ctx context.Context, method, url, accept, content string, body []byte, want int) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept", accept)
	if content != "" {
		req.Header.Set("Content-Type", content)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != want {
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		_ = resp.Body.Close()
		return nil, fmt.Errorf("%s %s: %s: %s", method, url, resp.Status, answer)
	}
	return resp, nil
}

func (c *lean) pod(i int) string { return fmt.Sprintf("%s/pod-%05d", c.base, i) }

func (c *lean) create(ctx context.Context, i int) error {
	body, err := encodePod(fmt.Sprintf("pod-%05d", i))
	if err != nil {
		return err
	}
	_, err = c.do(ctx, http.MethodPost, c.base, mediaProtobuf, mediaProtobuf, body, http.StatusCreated)
	return err
}

func (c *lean) get(ctx context.Context, i int) error {
	_, err := c.do(ctx, http.MethodGet, c.pod(i), mediaProtobuf, "", nil, http.StatusOK)
	return err
}

func (c *lean) list(ctx context.Context, accept string) (int64, error) {
	return c.do(ctx, http.MethodGet, c.base, accept, "", nil, http.StatusOK)
}

func (c *lean) patch(ctx context.Context, i, value int) error {
	body := fmt.Appendf(nil, `{"metadata":{"labels":{"round":"r%d-%d"}}}`, value, i)
	_, err := c.do(ctx, http.MethodPatch, c.pod(i), mediaProtobuf, "application/strategic-merge-patch+json", body, http.StatusOK)
	return err
}

func (c *lean) remove(ctx context.Context, i int) error {
	_, err := c.do(ctx, http.MethodDelete, c.pod(i), mediaProtobuf, "", nil, http.StatusOK)
	return err
}

// revision is the list's, to watch from.
func (c *lean) revision(ctx context.Context) (string, error) {
	resp, err := c.send(ctx, http.MethodGet, c.base+"?limit=1", mediaJSON, "", nil, http.StatusOK)
	if err != nil {
		return "", err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return "", err
	}
	obj, err := runtime.Decode(scheme.Codecs.UniversalDeserializer(), data)
	if err != nil {
		return "", err
	}
	list, ok := obj.(*corev1.PodList)
	if !ok {
		return "", fmt.Errorf("a list of pods is a %T", obj)
	}
	return list.ResourceVersion, nil
}

// watch counts so many events, by their frames: four bytes of length, then the event.
func (c *lean) watch(ctx context.Context, revision string, events int, open func()) error {
	url := c.base + "?watch=true&resourceVersion=" + revision
	resp, err := c.send(ctx, http.MethodGet, url, mediaProtobuf+";stream=watch", "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	open()
	var header [4]byte
	for range events {
		if _, err := io.ReadFull(resp.Body, header[:]); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, int64(binary.BigEndian.Uint32(header[:]))); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
	}
	return nil
}

// encodePod is an ordinary pod in protobuf, of a scheduler that does not exist.
func encodePod(name string) ([]byte, error) {
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"app": "load", "pod-template-hash": "5d4f8c"}},
		Spec: corev1.PodSpec{
			SchedulerName: "nobody",
			Containers: []corev1.Container{{
				Name: "main", Image: "example.org/load:v1", Args: []string{"--serve", "--port=8080"},
				Ports:     []corev1.ContainerPort{{ContainerPort: 8080}},
				Env:       []corev1.EnvVar{{Name: "A", Value: "1"}, {Name: "B", Value: "2"}},
				Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"cpu": resource.MustParse("10m"), "memory": resource.MustParse("32Mi")}},
			}},
		},
	}
	info, ok := runtime.SerializerInfoForMediaType(scheme.Codecs.SupportedMediaTypes(), mediaProtobuf)
	if !ok {
		return nil, errors.New("client-go speaks no protobuf")
	}
	return runtime.Encode(scheme.Codecs.EncoderForVersion(info.Serializer, corev1.SchemeGroupVersion), pod)
}
