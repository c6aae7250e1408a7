package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
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
	before, err := proc.CPU(r.plane.pids()...)
	if err != nil {
		return err
	}
	var size int64
	times, err := l.each(1, n, func(c *lean, _ int) (err error) {
		size, err = c.do(ctx, http.MethodGet, path, accept, "", nil, http.StatusOK)
		return err
	})
	if err != nil {
		return err
	}
	after, err := proc.CPU(r.plane.pids()...)
	if err != nil {
		return err
	}
	r.say("%s: p50 %v, %.1f MB", name, times[n/2].Round(time.Millisecond/10), float64(size)/1e6)
	r.add(report.Figure{Name: name, Unit: "ms", Better: "less", Includes: fmt.Sprintf("p50 of a consistent list, %.1f MB", float64(size)/1e6)}, milliseconds(times[n/2]))
	r.add(report.Figure{Name: name + ": CPU", Unit: "ms each", Better: "less", Includes: "all servers' user and system time"}, milliseconds((after-before)/time.Duration(n)))
	return nil
}

// chunks reads the whole list in pages of 500.
func (r *run) chunks(ctx context.Context, l *loader, total int) error {
	n := max(r.scale(10), 3)
	times, err := l.each(1, n, func(c *lean, _ int) error {
		seen, next := 0, ""
		for {
			var page listMeta
			if err := c.ask(ctx, podsPath+"?limit=500&continue="+next, &page); err != nil {
				return err
			}
			seen += len(page.Items)
			if next = page.Metadata.Continue; next == "" {
				break
			}
		}
		if seen != total {
			return fmt.Errorf("the pages have %d pods, want %d", seen, total)
		}
		return nil
	})
	if err != nil {
		return err
	}
	r.add(report.Figure{Name: fmt.Sprintf("LIST of %d pods in pages of 500, JSON", total), Unit: "ms", Better: "less",
		Includes: "p50 of all pages, the client's decoding of metadata included"}, milliseconds(times[n/2]))
	return nil
}

// listMemory is what lists add to the servers' private memory while several run at once.
func (r *run) listMemory(ctx context.Context, l *loader) error {
	before, err := proc.Weigh(r.plane.pids()...)
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
				if m, err := proc.Weigh(r.plane.pids()...); err == nil {
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
	r.add(report.Figure{Name: "private memory that lists add", Unit: "MB", Better: "less", Includes: "the most, while 8 clients list all pods as JSON"}, max(most-before.Private, 0.1))
	return nil
}

// measureWatches fans changes of one resource out to many watchers, of which one in a hundred reads
// slowly.
func measureWatches(ctx context.Context, r *run) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	l := newLoader(r.plane, connections)
	defer l.close()
	const pods = 100
	if _, err := createPods(ctx, l, 16, 0, pods); err != nil {
		return err
	}
	for _, slow := range []int{0, 100} {
		if err := r.fanOut(ctx, l, r.scale(1000), pods, slow); err != nil {
			return err
		}
	}
	return nil
}

// fanOut opens watches, changes pods, and waits until every watcher that reads at full speed has
// seen every change. One in slow watchers, if not 0, reads an event a tenth of a second.
func (r *run) fanOut(ctx context.Context, l *loader, watchers, pods, slow int) error {
	const changes = 100
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	ws := newLoader(r.plane, max(watchers/50, 1))
	defer ws.close()
	_, revision, err := countPods(ctx, l.clients[0], "")
	if err != nil {
		return err
	}
	sent := make([]time.Time, changes)
	var lagMu sync.Mutex
	var lag time.Duration
	quick, dawdling := make(chan error, watchers), make(chan error, watchers)
	open := make(chan struct{}, watchers)
	expected := 0
	for i := range watchers {
		done, seen := quick, func(int) {}
		switch {
		case slow > 0 && i%slow == slow/2:
			done = dawdling
			seen = func(int) {
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			}
		case i == 0:
			expected++
			seen = func(n int) {
				lagMu.Lock()
				defer lagMu.Unlock()
				if at := sent[n]; !at.IsZero() {
					lag = max(lag, time.Since(at))
				}
			}
		default:
			expected++
		}
		go func() {
			done <- ws.clients[i%len(ws.clients)].watch(ctx, podsPath, revision, changes, func() { open <- struct{}{} }, seen)
		}()
	}
	for range watchers {
		select {
		case <-open:
		case err := <-quick:
			return errors.Join(errors.New("a watch ended early"), err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	name := fmt.Sprintf("watch fan-out to %d", watchers)
	if slow > 0 {
		name += ", 1 in 100 slow"
	}
	events := changes * expected
	value := fmt.Sprintf("w%d-%d", slow, time.Now().UnixNano())
	err = r.phase(phase{name: name, includes: fmt.Sprintf("events a second, from %d patches by one writer until the last watcher but the slow ones has the last", changes), workers: 1, n: events}, func() ([]time.Duration, error) {
		_, err := l.each(1, changes, func(c *lean, i int) error {
			lagMu.Lock()
			sent[i] = time.Now()
			lagMu.Unlock()
			return patchPod(ctx, c, i%pods, value)
		})
		for range expected {
			err = errors.Join(err, <-quick)
		}
		return nil, err
	})
	if err != nil {
		return err
	}
	r.add(report.Figure{Name: name + ": lag", Unit: "ms", Better: "less", Includes: "the most that one watcher was behind, from before the patch was sent"}, milliseconds(lag))
	return nil
}
