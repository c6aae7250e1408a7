package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"barque.dev/test/differential/compare"
	"barque.dev/test/differential/stream"
)

// patience bounds how long a request may take, and how long one is repeated until its answer is as wanted.
const (
	patience = 40 * time.Second
	settling = 10 * time.Second
)

// player plays a stream to one side.
type player struct {
	side          *side
	admin, nobody *http.Client

	mu      sync.Mutex
	answers map[int]compare.Answer
}

func newPlayer(s *side) *player {
	client := func(own bool) *http.Client {
		config := s.admin
		if !own {
			config = s.nobody
		}
		transport := s.Transport(config, nil)
		transport.TLSClientConfig.NextProtos, transport.ForceAttemptHTTP2 = []string{"h2"}, true
		return &http.Client{Transport: transport, Timeout: patience, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	}
	return &player{side: s, admin: client(true), nobody: client(false), answers: map[int]compare.Answer{}}
}

func (p *player) close() {
	p.admin.CloseIdleConnections()
	p.nobody.CloseIdleConnections()
}

// play sends one request after the other, those that race at once.
func (p *player) play(ctx context.Context, requests []stream.Request) {
	for i := 0; i < len(requests) && ctx.Err() == nil; {
		last := i + 1
		for last < len(requests) && requests[i].Race != 0 && requests[last].Race == requests[i].Race {
			last++
		}
		var group sync.WaitGroup
		for _, r := range requests[i:last] {
			group.Go(func() { p.note(r.ID, p.patiently(ctx, r)) })
		}
		group.Wait()
		i = last
	}
}

func (p *player) note(id int, a compare.Answer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.answers[id] = a
}

// patiently repeats a request until its answer is as wanted, or for some time.
func (p *player) patiently(ctx context.Context, r stream.Request) compare.Answer {
	deadline := time.Now().Add(settling)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		a := p.send(ctx, r)
		if r.Until == "" || bytes.Contains(a.Body, []byte(r.Until)) || time.Now().After(deadline) || ctx.Err() != nil {
			return a
		}
		<-tick.C
	}
}

func (p *player) send(ctx context.Context, r stream.Request) compare.Answer {
	failed := func(err error) compare.Answer { return compare.Answer{Failed: err.Error()} }
	var body io.Reader
	if r.Body != nil {
		body = strings.NewReader(stream.Fill(string(r.Body), p.known))
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, p.side.url+stream.Fill(r.Path, p.known), body)
	if err != nil {
		return failed(err)
	}
	req.Header.Set("User-Agent", "differential")
	for name, value := range r.Header {
		req.Header.Set(name, stream.Fill(value, p.known))
	}
	client := p.admin
	if _, ok := r.Header["Authorization"]; ok {
		client = p.nobody
	}
	resp, err := client.Do(req)
	if err != nil {
		return failed(err)
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return failed(err)
	}
	return compare.Answer{Status: resp.StatusCode, Header: resp.Header, Body: data}
}

// known is a part of an earlier answer, which is in JSON or YAML.
func (p *player) known(field string, id int) string {
	p.mu.Lock()
	a := p.answers[id]
	p.mu.Unlock()
	var object struct {
		Metadata map[string]any `json:"metadata"`
		Status   map[string]any `json:"status"`
	}
	value, err := compare.Body(a)
	if err != nil {
		return "absent"
	}
	data, err := json.Marshal(value)
	if err != nil {
		return "absent"
	}
	if err := json.Unmarshal(data, &object); err != nil {
		return "absent"
	}
	for _, part := range []map[string]any{object.Metadata, object.Status} {
		if text, ok := part[field].(string); ok {
			return text
		}
	}
	if field == "continue" {
		return "" // that was all
	}
	return "absent"
}

// served learns what a side serves.
func (p *player) served(ctx context.Context) (*stream.Served, error) {
	s := &stream.Served{Documents: map[string]*stream.Document{}}
	ask := func(path, accept string, into any) error {
		a := p.send(ctx, stream.Request{Method: http.MethodGet, Path: path, Header: map[string]string{"Accept": accept}})
		if a.Failed != "" || a.Status != http.StatusOK {
			return fmt.Errorf("GET %s: %d %s %s", path, a.Status, a.Failed, a.Body[:min(len(a.Body), 300)])
		}
		return json.Unmarshal(a.Body, into)
	}
	for _, path := range []string{"/api", "/apis"} {
		var list struct {
			Items []stream.Group `json:"items"`
		}
		if err := ask(path, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", &list); err != nil {
			return nil, err
		}
		s.Groups = append(s.Groups, list.Items...)
	}
	var index struct {
		Paths map[string]any `json:"paths"`
	}
	if err := ask("/openapi/v3", "application/json", &index); err != nil {
		return nil, err
	}
	for path := range index.Paths {
		var doc stream.Document
		if err := ask("/openapi/v3/"+path, "application/json", &doc); err != nil {
			return nil, err
		}
		s.Documents[path] = &doc
	}
	return s, nil
}
