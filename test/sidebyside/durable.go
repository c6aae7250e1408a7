package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync"

	"barque.dev/test/report"
)

// measureDurable shows that an acknowledged write is on disk: all processes are killed in the midst
// of writes, and everything that was acknowledged is there again afterwards; and while one client
// writes one pod after the other, the process that keeps the state syncs at least once a write.
func measureDurable(ctx context.Context, r *run) error {
	syncs, n, err := r.syncs(ctx)
	if err != nil {
		return err
	}
	r.add(report.Figure{Name: "syncs of a create", Unit: "fdatasync or fsync calls", Includes: "of the process that keeps the state, counted by the kernel's tracepoints, one writer"}, float64(syncs)/float64(n))
	known, err := r.killed(ctx)
	if err != nil {
		return err
	}
	r.say("%d acknowledged writes survived kill -9, %.1f syncs a create", known, float64(syncs)/float64(n))
	r.add(report.Figure{Name: "acknowledged writes lost by kill -9", Unit: "writes", Includes: fmt.Sprintf("all processes at once, while 16 clients write; %d or more had been acknowledged", killedAfter)}, 0)
	if syncs < n {
		return fmt.Errorf("%d creates made %d syncs: writes are acknowledged before they are durable", n, syncs)
	}
	return nil
}

// syncs counts those of the processes that keep the state while n pods are created.
func (r *run) syncs(ctx context.Context) (count uint64, n uint64, err error) {
	l := newLoader(r.plane, 1)
	defer l.close()
	if _, err := createPods(ctx, l, 1, 0, 20); err != nil {
		return 0, 0, err
	}
	var pids []int
	for _, c := range r.plane.Running {
		if c.KeepsState {
			pids = append(pids, c.PID())
		}
	}
	counter, err := countSyncs(pids)
	if err != nil {
		return 0, 0, err
	}
	defer counter.close()
	n = uint64(r.scale(200))
	if _, err := createPods(ctx, l, 1, 20, int(n)); err != nil {
		return 0, 0, err
	}
	count, err = counter.read()
	return count, n, err
}

// killedAfter is how many acknowledged writes the kill waits for.
const killedAfter = 200

// killed kills every process while clients write, starts them again, and looks for everything that
// was acknowledged. It returns how much that was.
func (r *run) killed(ctx context.Context) (int, error) {
	const first = 100_000
	l := newLoader(r.plane, connections)
	bodies, err := encodePods(first, 20*killedAfter)
	if err != nil {
		return 0, err
	}
	var mu sync.Mutex
	versions := map[string]string{}
	enough := make(chan struct{})
	var once sync.Once
	ended := make(chan struct{}) // the writes have
	var killer sync.WaitGroup
	killer.Go(func() {
		select {
		case <-enough:
			r.plane.kill()
		case <-ended:
		}
	})
	_, err = l.each(16, len(bodies), func(c *lean, i int) error {
		a, err := c.acknowledge(ctx, http.MethodPost, podsPath, bodies[i], http.StatusCreated)
		if err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		versions[a.Metadata.Name] = a.Metadata.ResourceVersion
		if len(versions) == killedAfter {
			once.Do(func() { close(enough) })
		}
		return nil
	})
	l.close()
	close(ended)
	killer.Wait()
	if err == nil {
		return 0, errors.New("all writes were over before the processes were killed")
	}
	if len(versions) < killedAfter {
		return 0, fmt.Errorf("writes failed before the processes were killed: %w", err)
	}
	if err := r.plane.restart(ctx); err != nil {
		return 0, fmt.Errorf("start again: %w", err)
	}
	l = newLoader(r.plane, 1)
	defer l.close()
	for name, version := range versions {
		var a acknowledged
		if err := l.clients[0].ask(ctx, podsPath+"/"+name, &a); err != nil {
			return 0, fmt.Errorf("a write that was acknowledged is lost: %w", err)
		}
		if a.Metadata.ResourceVersion != version {
			return 0, fmt.Errorf("pod %s was acknowledged at revision %s and is at %s", name, version, a.Metadata.ResourceVersion)
		}
	}
	return len(versions), nil
}
