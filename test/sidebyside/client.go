package main

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"
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
		config := p.tls.Clone()
		config.NextProtos = []string{"h2"}
		l.clients = append(l.clients, &lean{
			http: &http.Client{Transport: &http.Transport{TLSClientConfig: config, ForceAttemptHTTP2: true, DisableCompression: true}},
			url:  p.urls[i%len(p.urls)],
		})
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
	resp, err := c.send(ctx, http.MethodGet, path, mediaJSON, "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	return json.NewDecoder(resp.Body).Decode(into)
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

// watch reads so many events in protobuf, and calls seen with each one's number.
func (c *lean) watch(ctx context.Context, path, revision string, events int, open func(), seen func(int)) error {
	resp, err := c.send(ctx, http.MethodGet, path+"?watch=true&resourceVersion="+revision, mediaProtobuf+";stream=watch", "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	open()
	var header [4]byte
	for i := range events {
		if _, err := io.ReadFull(resp.Body, header[:]); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, int64(binary.BigEndian.Uint32(header[:]))); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		seen(i)
	}
	return nil
}
