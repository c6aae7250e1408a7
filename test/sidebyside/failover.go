package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"

	"barque.dev/internal/drill/probe"
	at "barque.dev/test/plane"
	"barque.dev/test/report"
)

const (
	// writeBefore and writeAfter are how long writes go on before a kill, and after the first binding
	// that follows it: a second interruption would show.
	writeBefore = time.Second
	writeAfter  = 3 * time.Second
)

// measureFailover kills everything of the member that leads, at once, and looks how long a client that
// knows all members can't write, and how long no pod is bound.
func measureFailover(ctx context.Context, r *run) error {
	if err := createNode(ctx, r.plane); err != nil {
		return err
	}
	leader, err := r.plane.leader(ctx)
	if err != nil {
		return err
	}
	// A pod that is bound shows that the scheduler and the node work before anything is killed.
	binder := probe.New(r.plane.tls, r.plane.urls...)
	if err := binder.Bind(ctx, tolerant("before")); err != nil {
		return err
	}
	p := probe.New(r.plane.tls, r.plane.urls...)
	chain, err := probe.NewChain(ctx, p, loadNamespace, "chain")
	if err != nil {
		return err
	}
	writing, cancel := context.WithCancel(ctx)
	defer cancel()
	writes, broken := make(chan time.Time, 1<<16), make(chan error, 1)
	go func() { broken <- chain.KeepWriting(writing, writes) }()
	if err := sleep(ctx, writeBefore); err != nil {
		return err
	}
	before := len(writes)
	struck := time.Now()
	r.plane.Kill(func(c *at.Process) bool { return c.Member == leader })
	if err := binder.Bind(ctx, tolerant("after")); err != nil {
		return errors.Join(err, ctx.Err())
	}
	bound := time.Since(struck)
	if err := sleep(ctx, writeAfter); err != nil {
		return err
	}
	cancel()
	if err := <-broken; err != nil {
		return err
	}
	gap := probe.LongestGap(writes, struck)
	if before == 0 || chain.Written() <= before {
		return fmt.Errorf("%d writes before the kill, %d in all: there is nothing to compare", before, chain.Written())
	}
	if err := r.plane.expectWritten(ctx, leader, chain.Written()); err != nil {
		return err
	}
	r.say("no write for %v, first binding after %v; %d writes", gap.Round(time.Millisecond), bound.Round(time.Millisecond), chain.Written())
	r.add(report.Figure{Name: "write gap, kill -9 of what leads", Unit: "ms", Better: "less",
		Includes: "longest time between two acknowledged writes, chained conditional updates by a client that knows all three API servers, hedges after 40 ms and dials for 200 ms at most, until 3 s after the first binding"}, milliseconds(gap))
	r.add(report.Figure{Name: "first binding, kill -9 of what leads", Unit: "ms", Better: "less",
		Includes: "from the kill to the binding of a pod that is created right after it, by the same kind of client"}, milliseconds(bound))
	return nil
}

// expectWritten looks at every member that is left for the chain's last acknowledged write.
func (p *plane) expectWritten(ctx context.Context, lost, want int) error {
	for i, url := range p.urls {
		if i == lost {
			continue
		}
		c := &lean{http: &http.Client{Timeout: 30 * time.Second, Transport: p.transport(nil)}, url: url}
		defer c.http.CloseIdleConnections()
		var found struct {
			Data map[string]string `json:"data"`
		}
		if err := c.ask(ctx, "/api/v1/namespaces/"+loadNamespace+"/configmaps/chain", &found); err != nil {
			return err
		}
		// One more may have been on its way when the client stopped.
		var n int
		if _, err := fmt.Sscan(found.Data["n"], &n); err != nil || n < want || n > want+1 {
			return fmt.Errorf("%s has write %q, %d was acknowledged last", url, found.Data["n"], want)
		}
	}
	return nil
}

// createNode makes a node up, which has room and which nobody looks after.
func createNode(ctx context.Context, p *plane) error {
	l := newLoader(p, 1)
	defer l.close()
	node := []byte(`{"apiVersion":"v1","kind":"Node","metadata":{"name":"made-up"},"status":{"capacity":{"pods":"110","cpu":"4","memory":"32Gi"},"allocatable":{"pods":"110","cpu":"4","memory":"32Gi"},"conditions":[{"type":"Ready","status":"True"}]}}`)
	_, err := l.clients[0].do(ctx, http.MethodPost, "/api/v1/nodes", mediaJSON, mediaJSON, node, http.StatusCreated)
	return err
}

// tolerant is a pod that can go to a node that nobody looks after.
func tolerant(name string) *corev1.Pod {
	pod := probe.Pod(loadNamespace, name)
	pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
	return pod
}
