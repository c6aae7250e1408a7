package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
)

const (
	mediaProtobuf = "application/vnd.kubernetes.protobuf"
	mediaJSON     = "application/json"
)

// loader is a set of clients of one plane, each with an HTTP/2 connection of its own, spread over
// its servers.
type loader struct {
	plane   *plane
	clients []*lean
}

// connections carry requests; watches get more of them, see newLoader.
const connections = 8

func newLoader(p *plane, n int) *loader {
	l := &loader{plane: p}
	for i := range n {
		transport := p.transport(nil)
		transport.TLSClientConfig.NextProtos, transport.ForceAttemptHTTP2 = []string{"h2"}, true
		l.clients = append(l.clients, &lean{http: &http.Client{Transport: transport}, url: p.urls[i%len(p.urls)]})
	}
	return l
}

func (l *loader) close() {
	for _, c := range l.clients {
		c.http.CloseIdleConnections()
	}
}

// each runs an operation n times, by so many workers at once, and returns how long each took,
// in ascending order.
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
	slices.Sort(latencies)
	return latencies, errors.Join(errs...)
}

// lean is a client that costs little beside the servers that it shares the cores with: bodies are
// encoded beforehand and answers are not decoded.
type lean struct {
	http *http.Client
	url  string
}

// attempts bounds how often a request is sent again that the server answers with 429, as clients
// are expected to.
const attempts = 20

func (c *lean) send(ctx context.Context, method, path, accept, content string, body []byte, want int) (*http.Response, error) {
	for attempt := 1; ; attempt++ {
		req, err := http.NewRequestWithContext(ctx, method, c.url+path, bytes.NewReader(body))
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
		if resp.StatusCode == want {
			return resp, nil
		}
		answer, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		_ = resp.Body.Close()
		if resp.StatusCode != http.StatusTooManyRequests || attempt == attempts {
			return nil, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, answer)
		}
	}
}

// do sends a request and throws its answer away; it returns the answer's size in bytes.
func (c *lean) do(ctx context.Context, method, path, accept, content string, body []byte, want int) (int64, error) {
	resp, err := c.send(ctx, method, path, accept, content, body, want)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.Copy(io.Discard, resp.Body)
}

// ask decodes the JSON that is at a path.
func (c *lean) ask(ctx context.Context, path string, into any) error {
	data, err := c.read(ctx, path)
	if err != nil {
		return err
	}
	return json.Unmarshal(data, into)
}

// read is the JSON that is at a path.
func (c *lean) read(ctx context.Context, path string) ([]byte, error) {
	resp, err := c.send(ctx, http.MethodGet, path, mediaJSON, "", nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	return io.ReadAll(resp.Body)
}

// acknowledged is an object's name and version as an answer gave them.
type acknowledged struct {
	Metadata struct {
		Name            string `json:"name"`
		ResourceVersion string `json:"resourceVersion"`
	} `json:"metadata"`
}

// acknowledge sends an object in protobuf and reads what the answer says of it.
func (c *lean) acknowledge(ctx context.Context, method, path string, body []byte, want int) (a acknowledged, err error) {
	resp, err := c.send(ctx, method, path, mediaJSON, mediaProtobuf, body, want)
	if err != nil {
		return a, err
	}
	defer func() { _ = resp.Body.Close() }()
	return a, json.NewDecoder(resp.Body).Decode(&a)
}

// metrics reads what a program tells Prometheus.
func (c *lean) metrics(ctx context.Context) (map[string]*dto.MetricFamily, error) {
	resp, err := c.send(ctx, http.MethodGet, "/metrics", "text/plain", "", nil, http.StatusOK)
	if err != nil {
		return nil, err
	}
	defer func() { _ = resp.Body.Close() }()
	parser := expfmt.NewTextParser(model.UTF8Validation)
	families, err := parser.TextToMetricFamilies(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("read %s/metrics: %w", c.url, err)
	}
	return families, nil
}

// listMeta is what lists of all kinds have.
type listMeta struct {
	Metadata struct {
		ResourceVersion    string `json:"resourceVersion"`
		Continue           string `json:"continue"`
		RemainingItemCount int    `json:"remainingItemCount"`
	} `json:"metadata"`
	Items []json.RawMessage `json:"items"`
}
