package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"barque.dev/examples"
	"barque.dev/internal/runtime/bundle"
	"barque.dev/test/report"
)

// measurePodStart starts pods on one node: alone, ten and thirty at once.
func measurePodStart(ctx context.Context, r *run) error {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Minute)
	defer cancel()
	l := newLoader(r.plane, connections)
	defer l.close()
	if _, ours := r.side.(barque); ours {
		dir := filepath.Join(r.plane.Running[0].Dir, memberName(0), "agent")
		rt, err := runtimeAt(dir, bundle.Programs{})
		if err != nil {
			return err
		}
		if err := r.plane.Poll(ctx, "import the image", func(ctx context.Context) error { return importImage(ctx, rt.Socket()) }); err != nil {
			return err
		}
	}
	if err := r.plane.Poll(ctx, "a node that is ready", func(ctx context.Context) error { return nodeReady(ctx, l.clients[0]) }); err != nil {
		return err
	}
	watcher := newLoader(r.plane, 1)
	defer watcher.close()
	w := newStarts()
	following := make(chan error, 1)
	stopped, stop := context.WithCancel(ctx)
	go func() { following <- w.follow(stopped, watcher.clients[0]) }()
	defer func() { stop(); <-following }()
	next := 0
	// The first of all is not counted: what it starts with is read from disk.
	for i, round := range []struct{ pods, times int }{{1, 1}, {1, 5}, {10, 1}, {30, 1}} {
		if r.quick && round.pods > 1 {
			round.pods /= 5
		}
		for range round.times {
			if err := r.startPods(ctx, l, w, next, round.pods, i > 0); err != nil {
				return err
			}
			next += round.pods
		}
	}
	return nil
}

// startPods creates pods first to first+n-1 at once, waits until all run, and takes them away.
func (r *run) startPods(ctx context.Context, l *loader, w *starts, first, n int, counts bool) error {
	names := make([]string, n)
	bodies := make([][]byte, n)
	for i := range names {
		names[i] = fmt.Sprintf("start-%03d", first+i)
		var err error
		if bodies[i], err = encode(helloPod(names[i]), corev1.SchemeGroupVersion); err != nil {
			return err
		}
	}
	if _, err := l.each(n, n, func(c *lean, i int) error {
		_, err := c.do(ctx, http.MethodPost, podsPath, mediaProtobuf, mediaProtobuf, bodies[i], http.StatusCreated)
		return err
	}); err != nil {
		return err
	}
	if err := w.await(ctx, names, func(s start) bool { return !s.running.IsZero() }); err != nil {
		return fmt.Errorf("wait for %d pods to run: %w", n, err)
	}
	took, all := w.took(names)
	if _, err := l.each(n, n, func(c *lean, i int) error {
		_, err := c.do(ctx, http.MethodDelete, podsPath+"/"+names[i], mediaProtobuf, "", nil, http.StatusOK)
		return err
	}); err != nil {
		return err
	}
	if err := w.await(ctx, names, func(s start) bool { return s.gone }); err != nil {
		return fmt.Errorf("wait for %d pods to be gone: %w", n, err)
	}
	r.say("%d pods: median %v, worst %v, all within %v", n, took[n/2].Round(time.Millisecond), took[n-1].Round(time.Millisecond), all.Round(time.Millisecond))
	if !counts {
		return nil
	}
	const what = "from the binding to Running, both seen by one watch; the image is there"
	if n == 1 {
		r.add(report.Figure{Name: "start of a pod alone", Unit: "ms", Better: "less", Includes: what}, milliseconds(took[0]))
		return nil
	}
	name := fmt.Sprintf("start of %d pods at once", n)
	r.add(report.Figure{Name: name + ": p50", Unit: "ms", Better: "less", Includes: what}, milliseconds(took[n/2]))
	r.add(report.Figure{Name: name + ": worst", Unit: "ms", Better: "less", Includes: what}, milliseconds(took[n-1]))
	r.add(report.Figure{Name: name + ": all", Unit: "ms", Better: "less", Includes: "from the first binding until the last pod runs"}, milliseconds(all))
	return nil
}

// helloPod serves HTTP and ends when it is asked to.
func helloPod(name string) *corev1.Pod {
	grace := int64(2)
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: corev1.PodSpec{
		TerminationGracePeriodSeconds: &grace,
		Containers:                    []corev1.Container{{Name: "main", Image: examples.HelloV1, ImagePullPolicy: corev1.PullNever}},
	}}
}

// nodeReady tells whether there is a node that takes pods.
func nodeReady(ctx context.Context, c *lean) error {
	var nodes corev1.NodeList
	if err := c.ask(ctx, "/api/v1/nodes", &nodes); err != nil {
		return err
	}
	for _, n := range nodes.Items {
		for _, cond := range n.Status.Conditions {
			if cond.Type == corev1.NodeReady && cond.Status == corev1.ConditionTrue && len(n.Spec.Taints) == 0 {
				return nil
			}
		}
	}
	return errors.New("no node is ready and without taints")
}

// start is what a watch saw of a pod, and when.
type start struct {
	bound, running time.Time
	gone           bool
}

// starts follows pods by a watch. It is safe for concurrent use.
type starts struct {
	mu      sync.Mutex
	pods    map[string]start
	changed chan struct{}
	err     error
}

func newStarts() *starts { return &starts{pods: map[string]start{}, changed: make(chan struct{}, 1)} }

// follow watches until ctx ends.
func (w *starts) follow(ctx context.Context, c *lean) error {
	resp, err := c.send(ctx, http.MethodGet, podsPath+"?watch=true", mediaJSON, "", nil, http.StatusOK)
	if err == nil {
		defer func() { _ = resp.Body.Close() }()
		lines := bufio.NewReader(resp.Body)
		var event struct {
			Type   string     `json:"type"`
			Object corev1.Pod `json:"object"`
		}
		for err == nil {
			var line []byte
			if line, err = lines.ReadBytes('\n'); err != nil {
				break
			}
			now := time.Now()
			event.Object = corev1.Pod{}
			if err = json.Unmarshal(line, &event); err == nil {
				w.saw(now, event.Type, &event.Object)
			}
		}
	}
	if ctx.Err() == nil {
		w.mu.Lock()
		w.err = fmt.Errorf("watch of pods: %w", err)
		w.mu.Unlock()
		w.signal()
	}
	return err
}

func (w *starts) saw(at time.Time, kind string, pod *corev1.Pod) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.pods[pod.Name]
	if s.bound.IsZero() && pod.Spec.NodeName != "" {
		s.bound = at
	}
	if s.running.IsZero() && pod.Status.Phase == corev1.PodRunning {
		s.running = at
	}
	s.gone = kind == "DELETED"
	w.pods[pod.Name] = s
	if pod.Status.Phase == corev1.PodFailed && pod.DeletionTimestamp == nil {
		w.err = fmt.Errorf("pod %s failed: %s", pod.Name, strings.TrimSpace(pod.Status.Reason+" "+pod.Status.Message))
	}
	w.signal()
}

func (w *starts) signal() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// await waits until all pods are as wanted.
func (w *starts) await(ctx context.Context, names []string, done func(start) bool) error {
	for {
		w.mu.Lock()
		err := w.err
		missing := slices.IndexFunc(names, func(name string) bool { return !done(w.pods[name]) })
		w.mu.Unlock()
		if err != nil {
			return err
		}
		if missing < 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("pod %s: %w", names[missing], ctx.Err())
		case <-w.changed:
		}
	}
}

// took is how long each pod took from its binding, in ascending order, and all of them together.
func (w *starts) took(names []string) (each []time.Duration, all time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var first, last time.Time
	for _, name := range names {
		s := w.pods[name]
		each = append(each, s.running.Sub(s.bound))
		if first.IsZero() || s.bound.Before(first) {
			first = s.bound
		}
		if s.running.After(last) {
			last = s.running
		}
	}
	slices.Sort(each)
	return each, last.Sub(first)
}
