package probe

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
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
	written         atomic.Int64
}

// ErrLost is behind the error of a chain that an acknowledged write is missing from, or a read of it that does
// not show one.
var ErrLost = errors.New("an acknowledged write is lost")

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
func (c *Chain) Written() int { return int(c.written.Load()) }

// write makes the chain's next write, and returns once it is acknowledged.
func (c *Chain) write(ctx context.Context) error {
	n := c.Written() + 1
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
		c.written.Store(int64(n))
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
		return permanent{fmt.Errorf("%w: write %d was acknowledged, and the object says %d", ErrLost, n-1, have)}
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
	return c.keep(ctx, c.write, writes)
}

// KeepReading reads the chain until ctx ends, tells when each read was answered, and closes the channel. The
// prober is better not the writer's, so that what one of them finds out does not help the other.
func (c *Chain) KeepReading(ctx context.Context, p *Prober, reads chan<- time.Time) error {
	return c.keep(ctx, func(ctx context.Context) error { return c.read(ctx, p) }, reads)
}

// read reads the object, and checks that it shows what was acknowledged before.
func (c *Chain) read(ctx context.Context, p *Prober) error {
	return p.Hedge(ctx, func(ctx context.Context, e *Endpoint) error {
		written := c.Written()
		var found corev1.ConfigMap
		if _, err := e.Call(ctx, http.MethodGet, c.path(), nil, &found); err != nil {
			return err
		}
		have, err := strconv.Atoi(found.Data["n"])
		if err != nil {
			return permanent{err}
		}
		if have < written {
			return permanent{fmt.Errorf("%w: write %d was acknowledged before a read that shows %d", ErrLost, written, have)}
		}
		return nil
	})
}

func (c *Chain) keep(ctx context.Context, once func(context.Context) error, done chan<- time.Time) error {
	defer close(done)
	for {
		err := once(ctx)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was told to stop
		case err != nil:
			return err
		}
		done <- time.Now()
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
