package probe

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Chain is a ConfigMap that is only ever written on top of the write before: an acknowledged
// write that is lost breaks it.
type Chain struct {
	prober          *Prober
	namespace, name string
	revision        string
	written         int
}

// NewChain creates the ConfigMap.
func NewChain(ctx context.Context, p *Prober, namespace, name string) (*Chain, error) {
	c := &Chain{prober: p, namespace: namespace, name: name}
	err := p.Hedge(ctx, func(ctx context.Context, e *Endpoint) error {
		var made corev1.ConfigMap
		code, err := e.Call(ctx, http.MethodPost, c.collection(), c.object(0), &made)
		if code == http.StatusConflict {
			_, err = e.Call(ctx, http.MethodGet, c.path(), nil, &made)
		}
		if err == nil {
			c.setRevision(made.ResourceVersion)
		}
		return err
	})
	return c, err
}

func (c *Chain) collection() string { return "/api/v1/namespaces/" + c.namespace + "/configmaps" }
func (c *Chain) path() string       { return c.collection() + "/" + c.name }

func (c *Chain) object(n int) *corev1.ConfigMap {
	return &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: metav1.ObjectMeta{Name: c.name, Namespace: c.namespace, ResourceVersion: c.getRevision()},
		Data:       map[string]string{"n": strconv.Itoa(n)},
	}
}

func (c *Chain) getRevision() string {
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	return c.revision
}

func (c *Chain) setRevision(rv string) {
	c.prober.mu.Lock()
	defer c.prober.mu.Unlock()
	c.revision = rv
}

// Written is how many writes were acknowledged.
func (c *Chain) Written() int { return c.written }

// write makes the chain's next write, and returns once it is acknowledged.
func (c *Chain) write(ctx context.Context) error {
	n := c.written + 1
	err := c.prober.Hedge(ctx, func(ctx context.Context, e *Endpoint) error {
		var made corev1.ConfigMap
		code, err := e.Call(ctx, http.MethodPut, c.path(), c.object(n), &made)
		if code == http.StatusConflict {
			return c.resolve(ctx, e, n)
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
func (c *Chain) resolve(ctx context.Context, e *Endpoint, n int) error {
	var found corev1.ConfigMap
	if _, err := e.Call(ctx, http.MethodGet, c.path(), nil, &found); err != nil {
		return err
	}
	have, err := strconv.Atoi(found.Data["n"])
	if err != nil {
		return permanent{err}
	}
	if have != n && have != n-1 {
		return permanent{fmt.Errorf("write %d was acknowledged and is lost: the object says %d", n-1, have)}
	}
	c.setRevision(found.ResourceVersion)
	if have != n {
		return fmt.Errorf("write %d is not there yet", n)
	}
	return nil
}

// pause is between two writes.
const pause = 2 * time.Millisecond

// KeepWriting extends the chain until ctx ends, tells when each write was acknowledged, and closes
// the channel.
func (c *Chain) KeepWriting(ctx context.Context, writes chan<- time.Time) error {
	defer close(writes)
	for {
		err := c.write(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to stop
		case err != nil:
			return err
		}
		writes <- time.Now()
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
	}
}

// LongestGap is the longest time without an acknowledgement that ended after the fault.
func LongestGap(writes <-chan time.Time, struck time.Time) time.Duration {
	var longest time.Duration
	var last time.Time
	for at := range writes {
		if !last.IsZero() && at.After(struck) {
			longest = max(longest, at.Sub(last))
		}
		last = at
	}
	return longest
}
