package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"time"

	"barque.dev/test/report"
)

// workload is one of upstream's benchmarks at one of its sizes.
type workload struct {
	folder, name, workload string
	// remark is for readers.
	remark string
}

// scheduled lists upstream's benchmarks that are measured.
func scheduled() []workload {
	return []workload{
		{folder: "misc", name: "SchedulingBasic", workload: "5000Nodes_10000Pods"},
		{folder: "affinity", name: "SchedulingNodeAffinity", workload: "5000Nodes_10000Pods"},
		{folder: "default_preemption", name: "Unschedulable", workload: "5kNodes/100Init/10kPods",
			remark: "For each pod that fits nowhere either scheduler also looks for pods to preempt, in vain."},
		{folder: "affinity", name: "SchedulingPodAffinity", workload: "5000Nodes_5000Pods"},
		{folder: "topology_spreading", name: "TopologySpreading", workload: "5000Nodes_5000Pods"},
		{folder: "default_preemption", name: "PreemptionBasic", workload: "1000Nodes",
			remark: "Upstream has no size of it above 1,000 nodes: its own says that it always seems to fail."},
		{folder: "default_preemption", name: "PreemptionAsync", workload: "5000Nodes_AsyncPreemptionEnabled",
			remark: "Stock's feature gates are as released."},
	}
}

// note is what readers of the row are told.
func (w workload) note() string {
	note := "Decisions are what each scheduler's own metrics say, bound pods what a watch sees; every placement of Barque's was checked by upstream's filters given all others. As in upstream's harness stock's controllers don't run; Barque's can't be left away, and do."
	return strings.TrimSpace(note + " " + w.remark)
}

// measure runs it on one side.
func (w workload) measure(ctx context.Context, r *run) error {
	_, ours := r.side.(barque)
	b, err := readBenchmark(w.folder, w.name)
	if err != nil {
		return err
	}
	counts, err := b.counts(w.workload)
	if err != nil {
		return err
	}
	if r.quick {
		for name, n := range counts {
			counts[name] = max(n/20, 5)
		}
	}
	p := &player{run: r, benchmark: b, counts: counts, bound: newTally()}
	if err := p.play(ctx); err != nil || !ours {
		return err
	}
	return p.checkPlacements(ctx)
}

// player carries out a benchmark's steps.
type player struct {
	*run
	benchmark *benchmark
	counts    map[string]int
	loader    *loader
	classesMu sync.Mutex
	classes   map[int]bool
	nodes     int
	pods      int
	bound     *tally
}

// creators is how many clients make objects at once: what upstream's harness has.
const creators = 100

func (p *player) play(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Minute)
	p.loader = newLoader(p.plane, connections)
	p.classes = map[int]bool{}
	var beside sync.WaitGroup // churn and the watch
	var churned error         // of one churn, which is the most that any has
	defer p.loader.close()
	defer func() {
		cancel()
		beside.Wait()
		err = errors.Join(err, churned)
	}()
	watcher := newLoader(p.plane, 1)
	defer watcher.close()
	beside.Go(func() { p.bound.follow(ctx, watcher.clients[0]) })
	for _, s := range p.benchmark.Steps {
		n := s.Count
		if s.CountParam != "" {
			n = p.counts[s.CountParam]
		}
		switch s.Opcode {
		case "createNodes":
			err = p.createNodes(ctx, s, n)
		case "createNamespaces":
			err = p.createNamespaces(ctx, s.Prefix, n)
		case "createPods":
			err = p.createPods(ctx, s, n)
		case "churn":
			beside.Go(func() { churned = p.churn(ctx, s) })
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
		// With its range of addresses, so that Barque's controllers, which can't be left away, need not
		// give it one; stock's, which would, don't run.
		k := p.nodes + i
		ranges := fmt.Sprintf("10.%d.%d.0/24", 64+k/256, k%256)
		within(template, "spec")["podCIDR"], within(template, "spec")["podCIDRs"] = ranges, []string{ranges}
		if bodies[i], err = named(template, fmt.Sprintf("node-%05d", k)); err != nil {
			return err
		}
	}
	p.nodes += n
	if err := p.post(ctx, "/api/v1/nodes", bodies); err != nil {
		return err
	}
	return p.settle(ctx)
}

// settle waits until Barque's controllers have looked at the new nodes' addresses.
func (p *player) settle(ctx context.Context) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		families, err := p.plane.metrics(ctx, p.plane.scheduler)
		if err != nil {
			return err
		}
		waiting := 0.0
		for _, m := range families["workqueue_depth"].GetMetric() {
			if label(m, "name") == "node-ipam" {
				waiting += m.GetGauge().GetValue()
			}
		}
		if waiting == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%.0f nodes wait to be looked at: %w", waiting, ctx.Err())
		case <-tick.C:
		}
	}
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
	if err := p.ensureClass(ctx, priorityClass(template)); err != nil {
		return nil, err
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

// ensureClass makes the priority class of a value, unless it is 0 or the class is there. It returns
// when admission knows of it.
func (p *player) ensureClass(ctx context.Context, value int) error {
	p.classesMu.Lock()
	defer p.classesMu.Unlock()
	if value == 0 || p.classes[value] {
		return nil
	}
	class := fmt.Appendf(nil, `{"apiVersion":"scheduling.k8s.io/v1","kind":"PriorityClass","metadata":{"name":"priority-%d"},"value":%d}`, value, value)
	if err := p.post(ctx, "/apis/scheduling.k8s.io/v1/priorityclasses", [][]byte{class}); err != nil {
		return err
	}
	p.classes[value] = true
	trial := fmt.Appendf(nil, `{"apiVersion":"v1","kind":"Pod","metadata":{"name":"trial"},"spec":{"priorityClassName":"priority-%d","containers":[{"name":"c","image":"i"}]}}`, value)
	return p.plane.Poll(ctx, "a priority class that is new", func(ctx context.Context) error {
		_, err := p.loader.clients[0].do(ctx, http.MethodPost, "/api/v1/namespaces/default/pods?dryRun=All", mediaProtobuf, mediaJSON, trial, http.StatusCreated)
		return err
	})
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
	counted, err := p.attempts(ctx)
	if err != nil {
		return err
	}
	var made, wall time.Duration
	var without int
	cpu, err := p.plane.spent(func() (err error) {
		started := time.Now()
		if err := p.post(ctx, "/api/v1/namespaces/"+namespace+"/pods", bodies); err != nil {
			return err
		}
		made = time.Since(started)
		without, err = p.bound.await(ctx, first, n, p.plane.Ended)
		wall = time.Since(started)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s: %w", p.benchmark.Name, err)
	}
	// What is measured may leave pods over, which is a figure too; what it stands beside may not.
	if without == n || without > 0 && !s.CollectMetrics {
		return fmt.Errorf("%s: %d of %d pods have no node after %v", p.benchmark.Name, without, n, wall)
	}
	if !s.CollectMetrics {
		return nil
	}
	p.rates(n, without, made, wall, cpu)
	return p.decisions(ctx, counted, wall)
}

// rates are the figures of n pods that were measured, all but without of which have a node after wall.
func (p *player) rates(n, without int, made, wall, cpu time.Duration) {
	name := p.benchmark.Name
	bound := float64(n - without)
	what := fmt.Sprintf("%d pods on %d nodes, from the first create to the last bound; %d clients create, all processes share the cores", n, p.nodes, creators)
	p.add(report.Figure{Name: name + ": bound", Unit: "pods/s", Better: "more", Includes: what}, bound/wall.Seconds())
	p.add(report.Figure{Name: name + ": creates alone", Unit: "pods/s", Better: "more", Includes: "until the last create was acknowledged, while the scheduler binds"}, float64(n)/made.Seconds())
	p.add(report.Figure{Name: name + ": CPU", Unit: "µs a pod", Better: "less", Includes: "create, decision and binding, all processes of a side"}, float64(cpu.Microseconds())/bound)
	p.add(report.Figure{Name: name + ": without a node", Unit: "pods", Better: "less", Includes: fmt.Sprintf("%v after the last was made, when the round ends", patience)}, float64(without))
	p.say("%s: %.0f pods/s, all made after %v, bound after %v, %d without a node", name, bound/wall.Seconds(), made.Round(time.Millisecond), wall.Round(time.Millisecond), without)
}

// churn makes one object after the other beside what is measured, until ctx ends.
func (p *player) churn(ctx context.Context, s step) error {
	tick := time.NewTicker(time.Duration(max(s.Interval, 50)) * time.Millisecond)
	defer tick.Stop()
	l := newLoader(p.plane, 1)
	defer l.close()
	for i := 0; ; i++ {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for j, path := range s.TemplatePaths {
			template, err := p.benchmark.template(path)
			if err != nil {
				return err
			}
			if err := p.ensureClass(ctx, priorityClass(template)); err != nil {
				return err
			}
			body, err := named(template, fmt.Sprintf("churn-%d-%d", i, j))
			if err != nil {
				return err
			}
			if _, err := l.clients[0].do(ctx, http.MethodPost, "/api/v1/namespaces/default/pods", mediaProtobuf, mediaJSON, body, http.StatusCreated); err != nil && ctx.Err() == nil {
				return err
			}
		}
	}
}
