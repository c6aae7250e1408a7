package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// tally counts the pods that have a node, by a watch of all.
type tally struct {
	mu    sync.Mutex
	bound map[string]bool
	err   error
	grown chan struct{}
}

func newTally() *tally { return &tally{bound: map[string]bool{}, grown: make(chan struct{}, 1)} }

// follow watches until ctx ends; a server may end a watch that was too slow for it, which then begins
// anew with all there is.
func (t *tally) follow(ctx context.Context, c *lean) {
	for ctx.Err() == nil {
		err := t.watch(ctx, c)
		if ctx.Err() == nil && !errors.Is(err, io.EOF) {
			t.mu.Lock()
			t.err = fmt.Errorf("watch of pods: %w", err)
			t.mu.Unlock()
			return
		}
	}
}

// watch reads one watch. It does not decode: names and nodes are found as text.
func (t *tally) watch(ctx context.Context, c *lean) error {
	resp, err := c.send(ctx, http.MethodGet, "/api/v1/pods?watch=true&resourceVersion=0", mediaJSON, "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	lines := bufio.NewReaderSize(resp.Body, 1<<20)
	for {
		line, err := lines.ReadSlice('\n')
		if err != nil {
			return err
		}
		name := quoted(line, `"name":"pod-`)
		if name == "" || !bytes.Contains(line, []byte(`"nodeName":"`)) {
			continue
		}
		t.mu.Lock()
		t.bound[name] = true
		t.mu.Unlock()
		select {
		case t.grown <- struct{}{}:
		default:
		}
	}
}

// quoted is what follows prefix, up to the next quote.
func quoted(line []byte, prefix string) string {
	i := bytes.Index(line, []byte(prefix))
	if i < 0 {
		return ""
	}
	rest := line[i+len(prefix):]
	end := bytes.IndexByte(rest, '"')
	if end < 0 {
		return ""
	}
	return string(rest[:end])
}

// stall is how long nothing may be bound before the wait is given up.
const stall = 2 * time.Minute

// await waits until pods first to first+n-1 have a node.
func (t *tally) await(ctx context.Context, first, n int) error {
	timer := time.NewTimer(stall)
	defer timer.Stop()
	next := first
	for {
		t.mu.Lock()
		err := t.err
		for next < first+n && t.bound[fmt.Sprintf("%06d", next)] {
			next++
		}
		t.mu.Unlock()
		if err != nil {
			return err
		}
		if next == first+n {
			return nil
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-t.grown:
			timer.Reset(stall)
		case <-timer.C:
			return fmt.Errorf("pod-%06d has no node after %v in which nothing was bound", next, stall)
		}
	}
}
