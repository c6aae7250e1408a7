package main

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
	"strconv"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
)

const (
	hedgeAfter  = 40 * time.Millisecond  // without an answer: another attempt beside it
	retryAfter  = 5 * time.Millisecond   // after an error
	dialTimeout = 200 * time.Millisecond // below the kernel's 1 s for a SYN that is lost
	attemptTime = time.Second
	maxAttempts = 8 // at once
	giveUpAfter = time.Minute
)

// prober is a careful client at the virtual IP: an attempt that is not answered soon gets
// another beside it, on a connection of its own; the first answer counts.
type prober struct {
	base string
	tls  *tls.Config

	mu      sync.Mutex
	current *http.Client
}

func newProber(config *rest.Config) (*prober, error) {
	own := rest.CopyConfig(config)
	own.TLSClientConfig.NextProtos = []string{"h2"}
	tls, err := rest.TLSConfigFor(own)
	if err != nil {
		return nil, err
	}
	p := &prober{base: config.Host, tls: tls}
	p.current = p.fresh()
	return p, nil
}

func (p *prober) fresh() *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Client{Timeout: attemptTime, Transport: &http.Transport{
		DialContext: dialer.DialContext, TLSClientConfig: p.tls.Clone(), ForceAttemptHTTP2: true, TLSHandshakeTimeout: attemptTime,
	}}
}

// permanent is an error that another attempt does not mend.
type permanent struct{ error }

// hedge calls attempt, which must be safe to repeat, until one call succeeds.
func (p *prober) hedge(ctx context.Context, attempt func(context.Context, *http.Client) error) error {
	ctx, cancel := context.WithTimeout(ctx, giveUpAfter)
	defer cancel()
	type outcome struct {
		client *http.Client
		err    error
	}
	outcomes := make(chan outcome, maxAttempts)
	running := 0
	launch := func(client *http.Client) {
		running++
		go func() { outcomes <- outcome{client, attempt(ctx, client)} }()
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
				p.current = o.client
				p.mu.Unlock()
				return nil
			}
			var stop permanent
			if errors.As(o.err, &stop) {
				return o.err
			}
			last = o.err
			o.client.CloseIdleConnections()
			next.Reset(retryAfter)
		}
	}
}

// call makes one request and decodes its answer.
func (p *prober) call(ctx context.Context, client *http.Client, method, path string, in, out any) (int, error) {
	var body bytes.Buffer
	if in != nil {
		if err := json.NewEncoder(&body).Encode(in); err != nil {
			return 0, err
		}
	}
	req, err := http.NewRequestWithContext(ctx, method, p.base+path, &body)
	if err != nil {
		return 0, err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
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

// chain is a ConfigMap that is only ever written on top of the write before: an acknowledged
// write that is lost breaks it.
type chain struct {
	prober   *prober
	path     string
	revision string
	written  int
}

func newChain(ctx context.Context, p *prober, name string) (*chain, error) {
	const collection = "/api/v1/namespaces/default/configmaps"
	c := &chain{prober: p, path: collection + "/" + name}
	err := p.hedge(ctx, func(ctx context.Context, client *http.Client) error {
		var made corev1.ConfigMap
		code, err := p.call(ctx, client, http.MethodPost, collection, c.object(name, 0), &made)
		if code == http.StatusConflict {
			_, err = p.call(ctx, client, http.MethodGet, c.path, nil, &made)
		}
		if err == nil {
			c.setRevision(made.ResourceVersion)
		}
		return err
	})
	return c, err
}

func (c *chain) object(name string, n int) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: metav1.NamespaceDefault, ResourceVersion: c.getRevision()},
		Data:       map[string]string{"n": strconv.Itoa(n)},
	}
}

func (c *chain) getRevision() string {
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	return c.revision
}

func (c *chain) setRevision(rv string) {
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	c.revision = rv
}

// write makes the chain's next write, and returns once it is acknowledged.
func (c *chain) write(ctx context.Context, name string) error {
	n := c.written + 1
	err := c.prober.hedge(ctx, func(ctx context.Context, client *http.Client) error {
		var made corev1.ConfigMap
		code, err := c.prober.call(ctx, client, http.MethodPut, c.path, c.object(name, n), &made)
		if code == http.StatusConflict {
			return c.resolve(ctx, client, n)
		}
		if err == nil {
			c.setRevision(made.ResourceVersion)
		}
		return err
	})
	if err == nil {
		c.written = n
	}
	return err
}

// resolve finds out whether an attempt that was not answered had succeeded.
func (c *chain) resolve(ctx context.Context, client *http.Client, n int) error {
	var found corev1.ConfigMap
	if _, err := c.prober.call(ctx, client, http.MethodGet, c.path, nil, &found); err != nil {
		return err
	}
	have, err := strconv.Atoi(found.Data["n"])
	switch {
	case err != nil:
		return permanent{err}
	case have == n:
		c.setRevision(found.ResourceVersion)
		return nil
	case have == n-1:
		c.setRevision(found.ResourceVersion)
		return fmt.Errorf("write %d is not there yet", n)
	default:
		return permanent{fmt.Errorf("write %d was acknowledged and is lost: the object says %d", n-1, have)}
	}
}
