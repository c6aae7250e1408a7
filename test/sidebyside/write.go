package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"barque.dev/test/report"
)

// A phase is one kind of request, sent many times.
type phase struct {
	name     string
	includes string
	workers  int
	n        int
	// each gives the latencies of single requests too.
	latencies bool
}

// phase runs f, which sends the requests, and adds rate, latencies and what the servers spent.
func (r *run) phase(p phase, f func() ([]time.Duration, error)) error {
	var latencies []time.Duration
	var wall time.Duration
	cpu, err := r.plane.spent(func() (err error) {
		started := time.Now()
		latencies, err = f()
		wall = time.Since(started)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
	}
	rate, cost := float64(p.n)/wall.Seconds(), float64(cpu.Microseconds())/float64(p.n)
	r.add(report.Figure{Name: p.name, Unit: "1/s", Better: "more", Includes: p.includes}, rate)
	r.add(report.Figure{Name: p.name + ": CPU", Unit: "µs each", Better: "less", Includes: "all servers' user and system time"}, cost)
	r.say("%s: %.0f/s, %.0f µs of CPU each", p.name, rate, cost)
	if p.latencies {
		r.quantiles(p.name, "seen by the client on the same cores", latencies)
	}
	return nil
}

// quantiles adds what was typical, what was rare and what was worst of durations in ascending order.
func (r *run) quantiles(name, includes string, times []time.Duration) {
	add := func(which string, at time.Duration) {
		r.add(report.Figure{Name: name + ": " + which, Unit: "ms", Better: "less", Includes: includes}, milliseconds(at))
	}
	add("p50", times[len(times)/2])
	if len(times) >= 100 { // of fewer the worst is as good
		add("p99", times[len(times)*99/100])
	}
	add("worst", times[len(times)-1])
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// measureWrites creates, patches and deletes pods with 1, 16 and 64 writers, watched by nobody and
// by 20.
func measureWrites(ctx context.Context, r *run) error {
	l := newLoader(r.plane, connections)
	defer l.close()
	next := 0
	for _, watchers := range []int{0, 20} {
		watched, err := r.watched(ctx, watchers)
		if err != nil {
			return err
		}
		for _, writers := range []int{1, 16, 64} {
			n := r.scale(map[int]int{1: 300, 16: 1600, 64: 2400}[writers])
			if err := r.writes(ctx, l, writers, watchers, next, n); err != nil {
				return err
			}
			next += n
		}
		if err := watched(); err != nil {
			return err
		}
	}
	return nil
}

// writes creates n pods, patches each and deletes them.
func (r *run) writes(ctx context.Context, l *loader, writers, watchers, first, n int) error {
	with := fmt.Sprintf("%d writers", writers)
	if writers == 1 {
		with = "1 writer"
	}
	if watchers > 0 {
		with += fmt.Sprintf(", %d watchers", watchers)
	}
	var single time.Duration
	err := r.phase(phase{"creates, " + with, "pods of 1 KB, protobuf, with a volume for their token", writers, n, true}, func() ([]time.Duration, error) {
		all, err := createPods(ctx, l, writers, first, n)
		single = all[len(all)/2]
		return all, err
	})
	if err != nil {
		return err
	}
	if err := expectPods(ctx, l, "app%3Dload", n); err != nil {
		return err
	}
	if writers == 1 && watchers == 0 {
		if err := r.besideSync(single); err != nil {
			return err
		}
	}
	err = r.phase(phase{"patches, " + with, "strategic merge patch of a label", writers, n, true}, func() ([]time.Duration, error) {
		return l.each(writers, n, func(c *lean, i int) error { return patchPod(ctx, c, first+i, value(watchers)) })
	})
	if err != nil {
		return err
	}
	if err := expectPods(ctx, l, "round%3D"+value(watchers), n); err != nil {
		return err
	}
	err = r.phase(phase{"deletes, " + with, "with a grace period of 0", writers, n, true}, func() ([]time.Duration, error) {
		return l.each(writers, n, func(c *lean, i int) error { return deletePod(ctx, c, first+i) })
	})
	if err != nil {
		return err
	}
	return expectPods(ctx, l, "app%3Dload", 0)
}

// value is the value that a patch sets.
func value(watchers int) string { return fmt.Sprintf("r%d", watchers) }

// besideSync compares a create with what the disk takes to sync as many bytes, at the same moment.
func (r *run) besideSync(create time.Duration) error {
	f, err := os.Create(filepath.Join(os.TempDir(), fmt.Sprintf("barque-sync-%d", os.Getpid())))
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(f.Name()); _ = f.Close() }()
	const n = 200
	block := make([]byte, 2048)
	// The blocks are there beforehand, as those of etcd's log are.
	if err := unix.Fallocate(int(f.Fd()), 0, 0, int64(n*len(block))); err != nil {
		return fmt.Errorf("fallocate: %w", err)
	}
	times := make([]time.Duration, n)
	for i := range times {
		started := time.Now()
		if _, err := f.WriteAt(block, int64(i*len(block))); err != nil {
			return err
		}
		if err := unix.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("fdatasync: %w", err)
		}
		times[i] = time.Since(started)
	}
	slices.Sort(times)
	r.add(report.Figure{Name: "p50 of a create by 1 writer, in syncs", Unit: "times one fdatasync of 2 KB", Better: "less",
		Includes: "the sync is timed alone, right after, in a file whose blocks are allocated"}, float64(create)/float64(times[n/2]))
	return nil
}

// watched opens watches of the pods, which read along until the function returned is called.
func (r *run) watched(ctx context.Context, n int) (stop func() error, err error) {
	if n == 0 {
		return func() error { return nil }, nil
	}
	ctx, cancel := context.WithCancel(ctx)
	l := newLoader(r.plane, n)
	_, revision, err := countPods(ctx, l.clients[0], "")
	if err != nil {
		cancel()
		return nil, err
	}
	done, open := make(chan error, n), make(chan struct{}, n)
	for _, c := range l.clients {
		go func() {
			done <- c.watch(ctx, podsPath, revision, 1<<30, func() { open <- struct{}{} }, func([]byte) {})
		}()
	}
	for range n {
		select {
		case <-open:
		case err := <-done:
			cancel()
			return nil, fmt.Errorf("open a watch: %w", err)
		}
	}
	return func() error {
		defer l.close()
		select {
		case err := <-done:
			cancel()
			return fmt.Errorf("a watch ended early: %w", err)
		default:
		}
		cancel()
		for range n {
			<-done
		}
		return nil
	}, nil
}
