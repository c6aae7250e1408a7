package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"barque.dev/test/report"
)

// How much is watched: so many changes of so many pods.
const (
	watchedPods  = 100
	watchChanges = 100
)

// measureWatches fans changes of one resource out to many watchers, at first all at full speed, then
// with one in a hundred that reads slowly.
func measureWatches(ctx context.Context, r *run) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	l := newLoader(r.plane, connections)
	defer l.close()
	if _, err := createPods(ctx, l, 16, 0, watchedPods); err != nil {
		return err
	}
	watchers := max(r.scale(1000), 100)
	alone, err := r.fanOut(ctx, l, watchers, 0)
	if err != nil {
		return err
	}
	beside, err := r.fanOut(ctx, l, watchers, watchers/100)
	if err != nil {
		return err
	}
	r.add(report.Figure{Name: "watch fan-out: what the slow ones cost the others", Unit: "times as long", Better: "less",
		Includes: "the others' time with slow ones among them, by their time without"}, beside.Seconds()/alone.Seconds())
	return nil
}

// crowd is many watchers of the same pods.
type crowd struct {
	sent [watchChanges]atomic.Int64 // when a change was about to be sent, in Unix nanoseconds
	lags [][]time.Duration          // of each quick watcher, a change after the other
	open chan struct{}
	// ended are the watches that are over: those that read at full speed, and the slow ones.
	quick, slow chan error
}

// fanOut opens watches, changes pods, and waits until every watcher that reads at full speed has
// seen every change. So many watchers are slow.
func (r *run) fanOut(ctx context.Context, l *loader, watchers, slow int) (took time.Duration, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	_, revision, err := countPods(ctx, l.clients[0], "")
	if err != nil {
		return 0, err
	}
	c := &crowd{open: make(chan struct{}, watchers), quick: make(chan error, watchers), slow: make(chan error, watchers)}
	fast, dawdling := newLoader(r.plane, max(watchers/50, 1)), newDawdlers(r.plane, slow)
	defer fast.close()
	defer dawdling.close()
	c.watch(ctx, fast, watchers-slow, revision)
	c.dawdle(ctx, dawdling, revision)
	if err := c.awaitOpen(ctx, watchers); err != nil {
		return 0, err
	}
	name := fmt.Sprintf("watch fan-out to %d", watchers)
	if slow > 0 {
		name += ", 1 in 100 slow"
	}
	value := fmt.Sprintf("w%d-%d", slow, time.Now().UnixNano())
	what := fmt.Sprintf("events a second, from %d patches by one writer until the last watcher but the slow ones has the last", watchChanges)
	err = r.phase(phase{name: name, includes: what, workers: 1, n: watchChanges * (watchers - slow)}, func() ([]time.Duration, error) {
		started := time.Now()
		_, err := l.each(1, watchChanges, func(client *lean, i int) error {
			c.sent[i].Store(time.Now().UnixNano())
			return patchPod(ctx, client, i%watchedPods, value)
		})
		for range watchers - slow {
			err = errors.Join(err, <-c.quick)
		}
		took = time.Since(started)
		return nil, err
	})
	if err != nil {
		return 0, err
	}
	if len(c.slow) > 0 {
		return 0, errors.Join(errors.New("a slow watch was over before the quick ones"), <-c.slow)
	}
	lags := slices.Concat(c.lags...)
	slices.Sort(lags)
	r.quantiles(name+": lag", "of a change at a watcher, from before the patch was sent, all watchers but the slow ones", lags)
	return took, expectPods(ctx, l, "round%3D"+value, watchedPods)
}

// watch starts watchers that read at full speed.
func (c *crowd) watch(ctx context.Context, l *loader, n int, revision string) {
	c.lags = make([][]time.Duration, n)
	for i := range n {
		go func() {
			c.quick <- l.clients[i%len(l.clients)].watch(ctx, podsPath, revision, watchChanges, func() { c.open <- struct{}{} }, func(change int) {
				c.lags[i] = append(c.lags[i], time.Duration(time.Now().UnixNano()-c.sent[change].Load()))
			})
		}()
	}
}

// dawdle starts watchers that read an event a tenth of a second.
func (c *crowd) dawdle(ctx context.Context, l *loader, revision string) {
	for _, client := range l.clients {
		go func() {
			c.slow <- client.watch(ctx, podsPath, revision, watchChanges, func() { c.open <- struct{}{} }, func(int) {
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			})
		}()
	}
}

func (c *crowd) awaitOpen(ctx context.Context, n int) error {
	for range n {
		select {
		case <-c.open:
		case err := <-c.quick:
			return errors.Join(errors.New("a watch ended early"), err)
		case err := <-c.slow:
			return errors.Join(errors.New("a slow watch ended early"), err)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// newDawdlers makes clients for watches that are read slowly. What they don't read shall wait at
// the server, not in buffers between: each has a connection of its own, with a small window and
// small segments, by which kernels size what they buffer.
func newDawdlers(p *plane, n int) *loader {
	l := &loader{plane: p}
	for i := range n {
		transport := p.transport(func(_, _ string, c syscall.RawConn) error {
			var failed error
			err := c.Control(func(fd uintptr) {
				failed = errors.Join(
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_MAXSEG, 536))
			})
			return errors.Join(err, failed)
		})
		transport.ReadBufferSize = 1024
		l.clients = append(l.clients, &lean{http: &http.Client{Transport: transport}, url: p.urls[i%len(p.urls)]})
	}
	return l
}

// watch reads so many events in protobuf, and calls seen with each one's number.
func (c *lean) watch(ctx context.Context, path, revision string, events int, open func(), seen func(int)) error {
	resp, err := c.send(ctx, http.MethodGet, path+"?watch=true&resourceVersion="+revision, mediaProtobuf+";stream=watch", "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	open()
	var header [4]byte
	for i := range events {
		if _, err := io.ReadFull(resp.Body, header[:]); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if _, err := io.CopyN(io.Discard, resp.Body, int64(binary.BigEndian.Uint32(header[:]))); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		seen(i)
	}
	return nil
}
