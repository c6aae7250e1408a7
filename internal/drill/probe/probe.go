// Package probe is a careful client of a control plane of which a part is about to fail, and tells
// how long that stopped it.
package probe

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

const (
	hedgeAfter  = 40 * time.Millisecond  // without an answer: another attempt beside it
	retryAfter  = 5 * time.Millisecond   // after an error
	dialTimeout = 200 * time.Millisecond // below the kernel's 1 s for a SYN that is lost
	attemptTime = time.Second
	maxAttempts = 8 // at once
	giveUpAfter = time.Minute
)

// Prober knows one or several addresses of the API. An attempt that is not answered soon gets another
// beside it, on a connection of its own and at the next address; the first answer counts. It is
// safe for concurrent use.
type Prober struct {
	urls []string
	tls  *tls.Config

	mu      sync.Mutex
	current *Endpoint
	next    int // of urls
}

// Endpoint is a connection to one address.
type Endpoint struct {
	client *http.Client
	url    string
}

// New makes a prober of the API that all the URLs lead to.
func New(config *tls.Config, urls ...string) *Prober {
	own := config.Clone()
	own.NextProtos = []string{"h2"}
	p := &Prober{urls: urls, tls: own}
	p.current = p.fresh()
	return p
}

func (p *Prober) fresh() *Endpoint {
	p.mu.Lock()
	defer p.mu.Unlock()
	dialer := &net.Dialer{Timeout: dialTimeout}
	e := &Endpoint{url: p.urls[p.next%len(p.urls)], client: &http.Client{Timeout: attemptTime, Transport: &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: p.tls.Clone(), ForceAttemptHTTP2: true, TLSHandshakeTimeout: attemptTime,
	}}}
	p.next++
	return e
}

// permanent is an error that another attempt does not mend.
type permanent struct{ error }

func (p permanent) Unwrap() error { return p.error }

// Hedge calls attempt, which must be safe to repeat, until one call succeeds.
func (p *Prober) Hedge(ctx context.Context, attempt func(context.Context, *Endpoint) error) error {
	ctx, cancel := context.WithTimeout(ctx, giveUpAfter)
	defer cancel()
	type outcome struct {
		from *Endpoint
		err  error
	}
	outcomes := make(chan outcome, maxAttempts)
	running := 0
	launch := func(e *Endpoint) {
		running++
		go func() { outcomes <- outcome{e, attempt(ctx, e)} }()
	}
	p.mu.Lock()
	launch(p.current)
	p.mu.Unlock()
	next := time.NewTimer(hedgeAfter)
	defer next.Stop()
	var last error
	for {
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), last)
		case <-next.C:
			if running < maxAttempts {
				launch(p.fresh())
			}
			next.Reset(hedgeAfter)
		case o := <-outcomes:
			running--
			if o.err == nil {
				p.mu.Lock()
				p.current = o.from
				p.mu.Unlock()
				return nil
			}
			var stop permanent
			if errors.As(o.err, &stop) {
				return o.err
			}
			last = o.err
			o.from.client.CloseIdleConnections()
			next.Reset(retryAfter)
		}
	}
}

// Call makes one request and decodes its answer.
func (e *Endpoint) Call(ctx context.Context, method, path string, in, out any) (int, error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return 0, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, e.url+path, &body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := e.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer func() { _ = resp.Body.Close() }()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	if resp.StatusCode >= http.StatusBadRequest {
		return resp.StatusCode, fmt.Errorf("%s %s: %s: %s", method, path, resp.Status, data[:min(len(data), 300)])
	}
	return resp.StatusCode, json.Unmarshal(data, out)
}
