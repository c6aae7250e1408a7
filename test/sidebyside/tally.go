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

// patience is how long pods may wait for a node once they are made: stock's scheduler looks once in five
// minutes for pods whose wake-up it missed, and such a round shall count.
const patience = 6 * time.Minute

// await waits, for patience at most, until pods first to first+n-1 have a node, and tells how many have none. It gives up
// when ended, which it asks every second, says that nobody is left to bind them.
func (t *tally) await(ctx context.Context, first, n int, ended func() error) (without int, err error) {
	timer, tick := time.NewTimer(patience), time.NewTicker(time.Second)
	defer timer.Stop()
	defer tick.Stop()
	for next, end := first, first+n; ; {
		t.mu.Lock()
		for next < end && t.bound[fmt.Sprintf("%06d", next)] {
			next++
		}
		err = t.err
		t.mu.Unlock()
		if err != nil || next == end {
			return 0, err
		}
		select {
		case <-ctx.Done():
			return 0, ctx.Err()
		case <-t.grown:
		case <-tick.C:
			if err := ended(); err != nil {
				return 0, err
			}
		case <-timer.C:
			return t.without(next, end), nil
		}
	}
}

// without counts the pods from next on, before end, that have no node.
func (t *tally) without(next, end int) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := 0
	for i := next; i < end; i++ {
		if !t.bound[fmt.Sprintf("%06d", i)] {
			n++
		}
	}
	return n
}
