package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"time"

	"barque.dev/test/proc"
	"barque.dev/test/report"
)

// listed is how many pods there are to read.
const listed = 5000

// measureReads reads single pods and lists of all.
func measureReads(ctx context.Context, r *run) error {
	l := newLoader(r.plane, connections)
	defer l.close()
	total := r.scale(listed)
	if _, err := createPods(ctx, l, 16, 0, total); err != nil {
		return err
	}
	if err := errors.Join(expectPods(ctx, l, "app%3Dload", total), expectPods(ctx, l, "tier%3Dback", total/10)); err != nil {
		return err
	}
	for _, readers := range []int{1, 16} {
		n := r.scale(2000 * min(readers, 4))
		name := fmt.Sprintf("GETs, %d at once", readers)
		err := r.phase(phase{name, "consistent, of one pod of 1 KB, protobuf", readers, n, true}, func() ([]time.Duration, error) {
			return l.each(readers, n, func(c *lean, i int) error {
				_, err := c.do(ctx, http.MethodGet, podsPath+"/"+podName(i%total), mediaProtobuf, "", nil, http.StatusOK)
				return err
			})
		})
		if err != nil {
			return err
		}
	}
	for _, list := range []struct{ name, accept, query string }{
		{"protobuf", mediaProtobuf, ""},
		{"JSON", mediaJSON, ""},
		{"protobuf, a selector that one in ten matches", mediaProtobuf, "?labelSelector=tier%3Dback"},
	} {
		if err := r.lists(ctx, l, fmt.Sprintf("LIST of %d pods, %s", total, list.name), list.accept, podsPath+list.query); err != nil {
			return err
		}
	}
	if err := r.chunks(ctx, l, total); err != nil {
		return err
	}
	return r.listMemory(ctx, l)
}

// lists reads one list again and again.
func (r *run) lists(ctx context.Context, l *loader, name, accept, path string) error {
	n := max(r.scale(20), 3)
	var size int64 // the same each time: nothing changes meanwhile
	var times []time.Duration
	cpu, err := r.plane.spent(func() (err error) {
		times, err = l.each(1, n, func(c *lean, i int) error {
			got, err := c.do(ctx, http.MethodGet, path, accept, "", nil, http.StatusOK)
			if err == nil && i > 0 && got != size {
				err = fmt.Errorf("a list has %d bytes, the one before had %d", got, size)
			}
			size = got
			return err
		})
		return err
	})
	if err != nil {
		return err
	}
	r.say("%s: p50 %v, %.1f MB", name, times[n/2].Round(time.Millisecond/10), float64(size)/1e6)
	r.quantiles(name, fmt.Sprintf("of %d consistent lists one after the other, %.1f MB each", n, float64(size)/1e6), times)
	r.listCost(name, cpu, n)
	return nil
}

// listCost adds what n lists took of the servers.
func (r *run) listCost(name string, cpu time.Duration, n int) {
	r.add(report.Figure{Name: name + ": CPU", Unit: "ms each", Better: "less", Includes: "all servers' user and system time"}, milliseconds(cpu/time.Duration(n)))
}

// chunks reads the whole list in pages of 500.
func (r *run) chunks(ctx context.Context, l *loader, total int) error {
	n := max(r.scale(10), 3)
	name := fmt.Sprintf("LIST of %d pods in pages of 500, JSON", total)
	times := make([]time.Duration, n)
	cpu, err := r.plane.spent(func() (err error) {
		for i := 0; i < n && err == nil; i++ {
			times[i], err = pages(ctx, l.clients[0], total)
		}
		return err
	})
	if err != nil {
		return err
	}
	slices.Sort(times)
	r.quantiles(name, "all pages one after the other; the client decodes them between the requests, which does not count", times)
	r.listCost(name, cpu, n)
	return nil
}

// pages tells how long all pages of a list take to come.
func pages(ctx context.Context, c *lean, total int) (took time.Duration, err error) {
	seen, next := 0, ""
	for {
		started := time.Now()
		data, err := c.read(ctx, podsPath+"?limit=500&continue="+next)
		if err != nil {
			return 0, err
		}
		took += time.Since(started)
		var page listMeta
		if err := json.Unmarshal(data, &page); err != nil {
			return 0, fmt.Errorf("a page of %d pods: %w", total, err)
		}
		seen += len(page.Items)
		if next = page.Metadata.Continue; next == "" {
			break
		}
	}
	if seen != total {
		return 0, fmt.Errorf("the pages have %d pods, want %d", seen, total)
	}
	return took, nil
}

// listMemory is what lists add to the servers' private memory while several run at once.
func (r *run) listMemory(ctx context.Context, l *loader) error {
	before, err := proc.Weigh(r.plane.PIDs()...)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var group sync.WaitGroup
	most := before.Private
	group.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				if m, err := proc.Weigh(r.plane.PIDs()...); err == nil {
					most = max(most, m.Private)
				}
			}
		}
	})
	_, err = l.each(8, r.scale(80), func(c *lean, _ int) error {
		_, err := c.do(ctx, http.MethodGet, podsPath, mediaJSON, "", nil, http.StatusOK)
		return err
	})
	cancel()
	group.Wait()
	if err != nil {
		return err
	}
	r.add(report.Figure{Name: "private memory that lists add", Unit: "MB", Better: "less", Includes: "the most, while 8 clients list all pods as JSON"}, most-before.Private)
	return nil
}
