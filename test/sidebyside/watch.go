package main

import (
	"bytes"
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
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes/scheme"

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
	// Watches that are over: those that read at full speed, and the slow ones.
	quick, slow chan error
	// cut counts the watches that the server ended before their time.
	cut atomic.Int64
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
	r.add(report.Figure{Name: name + ": ended by the server", Unit: "watches", Better: "less",
		Includes: "quick and slow ones; as clients do, they are opened again and go on where they were"}, float64(c.cut.Load()))
	r.quantiles(name+": lag", "of a change at a watcher, from before the patch was sent, all watchers but the slow ones", lags)
	return took, expectPods(ctx, l, "round%3D"+value, watchedPods)
}

// watch starts watchers that read at full speed.
func (c *crowd) watch(ctx context.Context, l *loader, n int, revision string) {
	c.lags = make([][]time.Duration, n)
	for i := range n {
		go func() {
			c.quick <- c.follow(ctx, l.clients[i%len(l.clients)], revision, func(change int) {
				c.lags[i] = append(c.lags[i], time.Duration(time.Now().UnixNano()-c.sent[change].Load()))
			})
		}()
	}
}

// dawdle starts watchers that read an event a tenth of a second.
func (c *crowd) dawdle(ctx context.Context, l *loader, revision string) {
	for _, client := range l.clients {
		go func() {
			c.slow <- c.follow(ctx, client, revision, func(int) {
				select {
				case <-ctx.Done():
				case <-time.After(100 * time.Millisecond):
				}
			})
		}()
	}
}

// reopenings bounds how often one watch is opened again.
const reopenings = 100

// follow sees every change once. A watch that the server ends is opened again behind the last change that it has shown,
// as clients do it.
func (c *crowd) follow(ctx context.Context, client *lean, revision string, seen func(int)) error {
	next, opened := 0, 0
	var last []byte // the event of the change before the next
	for {
		err := client.watch(ctx, podsPath, revision, watchChanges-next, func() {
			if opened++; opened == 1 {
				c.open <- struct{}{}
			}
		}, func(event []byte) {
			last = append(last[:0], event...)
			seen(next)
			next++
		})
		if ctx.Err() != nil || opened == 0 || opened > reopenings || !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
			return err
		}
		c.cut.Add(1)
		if next == 0 {
			continue
		}
		if revision, err = versionOf(last); err != nil {
			return err
		}
	}
}

// isError: the event tells of no change, but why there are no more of them. It is looked at where its type begins, behind
// the number and the length of a message's first field; to decode each event would measure the client.
func isError(event []byte) bool {
	return len(event) > 2 && bytes.HasPrefix(event[2:], []byte(watch.Error))
}

// versionOf is the version of the object of an event in protobuf.
func versionOf(event []byte) (string, error) {
	var read metav1.WatchEvent
	if err := read.Unmarshal(event); err != nil {
		return "", fmt.Errorf("decode a watch event: %w", err)
	}
	obj, _, err := scheme.Codecs.UniversalDeserializer().Decode(read.Object.Raw, nil, nil)
	if err != nil {
		return "", fmt.Errorf("decode the object of a watch event: %w", err)
	}
	m, err := meta.Accessor(obj)
	if err != nil {
		return "", fmt.Errorf("a watch event of a %T: %w", obj, err)
	}
	return m.GetResourceVersion(), nil
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

// watch reads so many events in protobuf, and calls seen with each, which is good until it returns.
func (c *lean) watch(ctx context.Context, path, revision string, events int, open func(), seen func(event []byte)) error {
	resp, err := c.send(ctx, http.MethodGet, path+"?watch=true&resourceVersion="+revision, mediaProtobuf+";stream=watch", "", nil, http.StatusOK)
	if err != nil {
		return err
	}
	defer func() { _ = resp.Body.Close() }()
	open()
	var header [4]byte
	var event []byte
	for range events {
		if _, err := io.ReadFull(resp.Body, header[:]); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		size := int(binary.BigEndian.Uint32(header[:]))
		event = slices.Grow(event[:0], size)[:size]
		if _, err := io.ReadFull(resp.Body, event); err != nil {
			return fmt.Errorf("watch: %w", err)
		}
		if isError(event) {
			return fmt.Errorf("watch: the server says %q", event)
		}
		seen(event)
	}
	return nil
}
