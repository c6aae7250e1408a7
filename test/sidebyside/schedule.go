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

	"barque.dev/test/proc"
	"barque.dev/test/report"
)

// scheduled lists upstream's benchmarks that are measured. missing says why a side that lacks
// something is left out.
func scheduled() []struct{ folder, name, workload, missing string } {
	return []struct{ folder, name, workload, missing string }{
		{"misc", "SchedulingBasic", "5000Nodes_10000Pods", ""},
		{"affinity", "SchedulingNodeAffinity", "5000Nodes_10000Pods", ""},
		{"default_preemption", "Unschedulable", "5kNodes/100Init/10kPods", ""},
		{"affinity", "SchedulingPodAffinity", "5000Nodes_5000Pods", "affinity between pods"},
		{"topology_spreading", "TopologySpreading", "5000Nodes_5000Pods", "hard topology constraints"},
		{"default_preemption", "PreemptionBasic", "5000Nodes", "preemption"},
	}
}

// scheduling returns a row's measurement of one of upstream's benchmarks.
func scheduling(i int) func(context.Context, *run) error {
	return func(ctx context.Context, r *run) error {
		s := scheduled()[i]
		if _, ours := r.side.(barque); ours && s.missing != "" {
			r.section.Note = note + " Barque's scheduler does not have " + s.missing + " yet, so that it is not measured here."
			return nil
		}
		b, err := readBenchmark(s.folder, s.name)
		if err != nil {
			return err
		}
		counts, err := b.counts(s.workload)
		if err != nil {
			return err
		}
		if r.quick {
			for name, n := range counts {
				counts[name] = max(n/20, 5)
			}
		}
		p := &player{run: r, benchmark: b, counts: counts, bound: newTally()}
		return p.play(ctx)
	}
}

// player carries out a benchmark's steps.
type player struct {
	*run
	benchmark *benchmark
	counts    map[string]int
	loader    *loader
	classes   map[int]bool
	nodes     int
	pods      int
	bound     *tally
}

// creators is how many clients make objects at once: what upstream's harness has.
const creators = 100

func (p *player) play(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	p.loader = newLoader(p.plane, connections)
	p.classes = map[int]bool{}
	var beside sync.WaitGroup // and the watch
	defer p.loader.close()
	defer beside.Wait()
	defer cancel()
	watcher := newLoader(p.plane, 1)
	defer watcher.close()
	beside.Go(func() { p.bound.follow(ctx, watcher.clients[0]) })
	for _, s := range p.benchmark.Steps {
		n := s.Count
		if s.CountParam != "" {
			n = p.counts[s.CountParam]
		}
		var err error
		switch s.Opcode {
		case "createNodes":
			err = p.createNodes(ctx, s, n)
		case "createNamespaces":
			err = p.createNamespaces(ctx, s.Prefix, n)
		case "createPods":
			err = p.createPods(ctx, s, n)
		case "churn":
			beside.Go(func() { p.churn(ctx, s) })
		default:
			err = fmt.Errorf("%s has a step %s that isn't known here", p.benchmark.Name, s.Opcode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *player) createNodes(ctx context.Context, s step, n int) error {
	path := s.NodeTemplatePath
	if path == "" {
		path = "../templates/node-default.yaml"
	}
	template, err := p.benchmark.template(path)
	if err != nil {
		return err
	}
	bodies := make([][]byte, n)
	for i := range bodies {
		if s.Label != nil {
			within(template, "metadata", "labels")[s.Label.Key] = s.Label.Values[i%len(s.Label.Values)]
		}
		if bodies[i], err = named(template, fmt.Sprintf("node-%05d", p.nodes+i)); err != nil {
			return err
		}
	}
	p.nodes += n
	return p.post(ctx, "/api/v1/nodes", bodies)
}

func (p *player) createNamespaces(ctx context.Context, prefix string, n int) error {
	var bodies [][]byte
	for i := range n {
		bodies = append(bodies, fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"%s-%d"}}`, prefix, i))
	}
	return p.post(ctx, "/api/v1/namespaces", bodies)
}

func (p *player) post(ctx context.Context, path string, bodies [][]byte) error {
	_, err := p.loader.each(min(creators, len(bodies)), len(bodies), func(c *lean, i int) error {
		_, err := c.do(ctx, http.MethodPost, path, mediaProtobuf, mediaJSON, bodies[i], http.StatusCreated)
		return err
	})
	return err
}

// podBodies are n pods of a template, whose priority class exists afterwards.
func (p *player) podBodies(ctx context.Context, path string, n int) ([][]byte, error) {
	template, err := p.benchmark.template(path)
	if err != nil {
		return nil, err
	}
	if value := priorityClass(template); value != 0 && !p.classes[value] {
		p.classes[value] = true
		class := fmt.Appendf(nil, `{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","metadata":{"name":"priority-%d"},"value":%d}`, value, value)
		if err := p.post(ctx, "/apis/scheduling.k8s.io/v1/priorityclasses", [][]byte{class}); err != nil {
			return nil, err
		}
	}
	bodies := make([][]byte, n)
	for i := range bodies {
		if bodies[i], err = named(template, fmt.Sprintf("pod-%06d", p.pods+i)); err != nil {
			return nil, err
		}
	}
	p.pods += n
	return bodies, nil
}

// createPods makes pods and waits until all have a node; the pods that are measured are timed from
// the first that is made to the last that is bound.
func (p *player) createPods(ctx context.Context, s step, n int) error {
	path, namespace := s.PodTemplatePath, s.Namespace
	if path == "" {
		path = p.benchmark.DefaultPodTemplatePath
	}
	if path == "" {
		path = "../templates/pod-default.yaml"
	}
	if namespace == "" {
		namespace = "default"
	}
	first := p.pods
	bodies, err := p.podBodies(ctx, path, n)
	if err != nil {
		return err
	}
	before, err := proc.CPU(p.plane.pids()...)
	if err != nil {
		return err
	}
	started := time.Now()
	if err := p.post(ctx, "/api/v1/namespaces/"+namespace+"/pods", bodies); err != nil {
		return err
	}
	made := time.Since(started)
	if err := p.bound.await(ctx, first, n); err != nil {
		return fmt.Errorf("%s: %w", p.benchmark.Name, err)
	}
	wall := time.Since(started)
	after, err := proc.CPU(p.plane.pids()...)
	if err != nil || !s.CollectMetrics {
		return err
	}
	name := p.benchmark.Name
	what := fmt.Sprintf("%d pods on %d nodes, from the first create to the last bound; %d clients create, all processes share the cores", n, p.nodes, creators)
	p.add(report.Figure{Name: name, Unit: "pods/s", Better: "more", Includes: what}, float64(n)/wall.Seconds())
	p.add(report.Figure{Name: name + ": creates alone", Unit: "pods/s", Better: "more", Includes: "until the last create was acknowledged, while the scheduler binds"}, float64(n)/made.Seconds())
	p.add(report.Figure{Name: name + ": CPU", Unit: "µs a pod", Better: "less", Includes: "create, decision and binding, all processes of a side"}, float64((after-before).Microseconds())/float64(n))
	p.say("%s: %.0f pods/s, all made after %v, bound after %v", name, float64(n)/wall.Seconds(), made.Round(time.Millisecond), wall.Round(time.Millisecond))
	return nil
}

// churn makes objects that nothing fits, one after the other, until ctx ends.
func (p *player) churn(ctx context.Context, s step) {
	tick := time.NewTicker(time.Duration(max(s.Interval, 50)) * time.Millisecond)
	defer tick.Stop()
	l := newLoader(p.plane, 1)
	defer l.close()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		for j, path := range s.TemplatePaths {
			template, err := p.benchmark.template(path)
			if err != nil {
				return
			}
			priorityClass(template)
			delete(within(template, "spec"), "priorityClassName") // a class would let it preempt: not what this is about
			body, err := named(template, fmt.Sprintf("churn-%d-%d", i, j))
			if err != nil {
				return
			}
			if _, err := l.clients[0].do(ctx, http.MethodPost, "/api/v1/namespaces/default/pods", mediaProtobuf, mediaJSON, body, http.StatusCreated); err != nil && ctx.Err() == nil {
				p.say("churn: %v", err)
				return
			}
		}
	}
}

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
