package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
)

const loadNamespace = "load"

// measureLoad loads a control plane alone: nothing runs the pods, and no scheduler wants them.
func measureLoad(ctx context.Context, b *bench) error {
	parent, err := tempDir()
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(parent) }()
	s, _, err := b.startServer(ctx, filepath.Join(parent, "server"))
	if err != nil {
		return err
	}
	defer s.stop()
	if err := prepareLoad(ctx, s); err != nil {
		return err
	}
	l, err := newLoader(s)
	if err != nil {
		return err
	}
	defer l.close()
	for range b.times(3, 1) {
		if err := b.loadRound(ctx, l); err != nil {
			return err
		}
	}
	after := 30 * time.Second
	if b.quick {
		after = 5 * time.Second
	}
	if err := sleep(ctx, after); err != nil {
		return err
	}
	use, err := memoryOf(s.pid())
	if err != nil {
		return err
	}
	b.add(figure{Name: "private memory after it", Unit: "MB",
		Includes: fmt.Sprintf("the server, %v after rounds of pods created, listed, patched, watched and deleted", after)}, use.anon)
	return nil
}

// prepareLoad makes the namespace, and waits for its service account, which pods need.
func prepareLoad(ctx context.Context, s *server) error {
	config, err := s.config()
	if err != nil {
		return err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: loadNamespace}}
	if _, err := client.CoreV1().Namespaces().Create(ctx, ns, metav1.CreateOptions{}); err != nil {
		return err
	}
	deadline := time.Now().Add(20 * time.Second)
	for {
		_, err := client.CoreV1().ServiceAccounts(loadNamespace).Get(ctx, "default", metav1.GetOptions{})
		if err == nil {
			return nil
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("the service account default of %s: %w", loadNamespace, err)
		}
		if err := sleep(ctx, 20*time.Millisecond); err != nil {
			return err
		}
	}
}

// loadRound creates, lists, reads, patches, watches and deletes pods.
func (b *bench) loadRound(ctx context.Context, l *loader) error {
	scale := 1
	if b.quick {
		scale = 5
	}
	total := 0
	for _, phase := range []struct{ writers, pods int }{{1, 500}, {16, 2000}, {64, 2500}} {
		first := total
		total += phase.pods / scale
		err := b.phase(l, fmt.Sprintf("creates, %d writers", phase.writers), "pods of 1 KB with a volume for their token; durable before the answer",
			phase.writers, total-first, func(client *lean, i int) error { return client.create(ctx, first+i) })
		if err != nil {
			return err
		}
	}
	err := b.phase(l, "GETs, 16 readers", "consistent; protobuf", 16, 20000/scale,
		func(client *lean, i int) error { return client.get(ctx, i%total) })
	if err != nil {
		return err
	}
	if err := b.lists(ctx, l, total); err != nil {
		return err
	}
	for _, writers := range []int{1, 16} {
		err := b.phase(l, fmt.Sprintf("patches, %d writers", writers), "strategic merge patch of a label", writers, 200*writers/scale,
			func(client *lean, i int) error { return client.patch(ctx, i%total, writers) })
		if err != nil {
			return err
		}
	}
	if err := b.fanOut(ctx, l, 1000/scale, 100, total); err != nil {
		return err
	}
	return b.phase(l, "deletes, 16 writers", "of pods that run nowhere", 16, total,
		func(client *lean, i int) error { return client.remove(ctx, i) })
}

// phase runs an operation n times with some workers, and adds its rate and what the server spent.
func (b *bench) phase(l *loader, name, includes string, workers, n int, op func(*lean, int) error) error {
	before, err := cpuOf(l.server.pid())
	if err != nil {
		return err
	}
	started := time.Now()
	latencies, err := l.each(workers, n, op)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	wall := time.Since(started)
	after, err := cpuOf(l.server.pid())
	if err != nil {
		return err
	}
	rate := float64(n) / wall.Seconds()
	cost := float64((after - before).Microseconds()) / float64(n)
	slices.Sort(latencies)
	b.say("%s: %.0f/s, %.0f µs of server CPU each, p50 %v p99 %v", name, rate, cost, latencies[n/2], latencies[n*99/100])
	b.add(figure{Name: name, Unit: "1/s", Includes: includes}, rate)
	b.add(figure{Name: name + ": server CPU", Unit: "µs each", Includes: "user and system time of the server, the loops included"}, cost)
	b.add(figure{Name: name + ": p99", Unit: "ms", Includes: "seen by the client on the same cores"}, milliseconds(latencies[n*99/100]))
	return nil
}

// lists measures LIST of all pods, one after the other.
func (b *bench) lists(ctx context.Context, l *loader, total int) error {
	for _, media := range []struct{ name, accept string }{{"protobuf", mediaProtobuf}, {"JSON", mediaJSON}} {
		const n = 20
		var size int64
		before, err := cpuOf(l.server.pid())
		if err != nil {
			return err
		}
		times, err := l.each(1, n, func(client *lean, _ int) (err error) {
			size, err = client.list(ctx, media.accept)
			return err
		})
		if err != nil {
			return err
		}
		after, err := cpuOf(l.server.pid())
		if err != nil {
			return err
		}
		slices.Sort(times)
		b.say("LIST %d %s: %v, %d bytes, %v CPU each", total, media.name, times[n/2], size, (after-before)/n)
		name := fmt.Sprintf("LIST of %d pods, %s", total, media.name)
		b.add(figure{Name: name, Unit: "ms", Includes: fmt.Sprintf("consistent, %.1f MB, the client reads and throws away", float64(size)/1e6)}, milliseconds(times[n/2]))
		b.add(figure{Name: name + ": server CPU", Unit: "ms each", Includes: "mean of 20"}, milliseconds((after-before)/n))
	}
	return nil
}

// fanOut measures how fast changes reach many watchers of one resource.
func (b *bench) fanOut(ctx context.Context, l *loader, watchers, changes, total int) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	revision, err := l.clients[0].revision(ctx)
	if err != nil {
		return err
	}
	done := make(chan error, watchers)
	open := make(chan struct{}, watchers)
	for i := range watchers {
		client := l.watchClient(i)
		go func() { done <- client.watch(ctx, revision, changes, func() { open <- struct{}{} }) }()
	}
	for range watchers {
		select {
		case <-open:
		case err := <-done:
			return errors.Join(errors.New("a watch ended early"), err)
		}
	}
	before, err := cpuOf(l.server.pid())
	if err != nil {
		return err
	}
	started := time.Now()
	if _, err := l.each(4, changes, func(client *lean, i int) error { return client.patch(ctx, i%total, int(started.UnixNano())) }); err != nil {
		return err
	}
	for range watchers {
		if err := <-done; err != nil {
			return err
		}
	}
	wall := time.Since(started)
	after, err := cpuOf(l.server.pid())
	if err != nil {
		return err
	}
	events := float64(watchers * changes)
	b.say("%d watchers: %.0f events/s", watchers, events/wall.Seconds())
	name := fmt.Sprintf("watch fan-out to %d", watchers)
	b.add(figure{Name: name, Unit: "events/s", Includes: fmt.Sprintf("%d patches by 4 writers, until the last watcher has the last event", changes)}, events/wall.Seconds())
	b.add(figure{Name: name + ": server CPU", Unit: "µs an event", Includes: "the patches included"}, float64((after-before).Microseconds())/events)
	return nil
}
