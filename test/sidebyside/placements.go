package main

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"time"

	dto "github.com/prometheus/client_model/go"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/apis/config"
	"k8s.io/kubernetes/pkg/scheduler/apis/config/latest"
	"k8s.io/kubernetes/pkg/scheduler/backend/cache"
	"k8s.io/kubernetes/pkg/scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins"
	"k8s.io/kubernetes/pkg/scheduler/framework/plugins/names"
	frameworkruntime "k8s.io/kubernetes/pkg/scheduler/framework/runtime"
	"k8s.io/kubernetes/pkg/scheduler/metrics"

	"barque.dev/test/report"
)

// attempted is what a scheduler's metrics say.
type attempted struct {
	scheduled, unschedulable float64
	decisions                uint64
	deciding                 float64 // seconds
	scheduling               float64 // seconds of attempts that succeeded, binding included
}

// attempts reads the scheduler's metrics.
func (p *player) attempts(ctx context.Context) (a attempted, err error) {
	families, err := p.plane.metrics(ctx, p.plane.scheduler)
	if err != nil {
		return a, err
	}
	for _, m := range families["scheduler_schedule_attempts_total"].GetMetric() {
		switch label(m, "result") {
		case metrics.ScheduledResult:
			a.scheduled += m.GetCounter().GetValue()
		case metrics.UnschedulableResult:
			a.unschedulable += m.GetCounter().GetValue()
		}
	}
	for _, m := range families["scheduler_scheduling_attempt_duration_seconds"].GetMetric() {
		if label(m, "result") == metrics.ScheduledResult {
			a.scheduling += m.GetHistogram().GetSampleSum()
		}
	}
	for _, m := range families["scheduler_scheduling_algorithm_duration_seconds"].GetMetric() {
		a.decisions += m.GetHistogram().GetSampleCount()
		a.deciding += m.GetHistogram().GetSampleSum()
	}
	return a, nil
}

// label is the value of one of a metric's labels.
func label(m *dto.Metric, name string) string {
	for _, l := range m.GetLabel() {
		if l.GetName() == name {
			return l.GetValue()
		}
	}
	return ""
}

// decisions adds what the scheduler did since its metrics said before.
func (p *player) decisions(ctx context.Context, before attempted, wall time.Duration) error {
	now, err := p.attempts(ctx)
	if err != nil {
		return err
	}
	n, scheduled := float64(now.decisions-before.decisions), now.scheduled-before.scheduled
	if n == 0 || scheduled == 0 {
		return fmt.Errorf("pods were bound, and the scheduler's metrics know of %.0f decisions and %.0f that it scheduled", n, scheduled)
	}
	name := p.benchmark.Name
	deciding := now.deciding - before.deciding
	p.add(report.Figure{Name: name + ": decisions", Unit: "1/s", Better: "more", Includes: "by the scheduler's metrics, those without a node included, over the same time"}, n/wall.Seconds())
	p.add(report.Figure{Name: name + ": a decision", Unit: "ms", Better: "less", Includes: "mean of scheduler_scheduling_algorithm_duration_seconds: wall-clock time of one, beside all else on these cores"}, 1000*deciding/n)
	p.add(report.Figure{Name: name + ": an attempt that binds", Unit: "ms", Better: "less", Includes: "mean of scheduler_scheduling_attempt_duration_seconds: decision and binding"}, 1000*(now.scheduling-before.scheduling)/scheduled)
	p.add(report.Figure{Name: name + ": attempts without a node", Unit: "attempts", Includes: "scheduler_schedule_attempts_total of the result unschedulable"}, now.unschedulable-before.unschedulable)
	return nil
}

// checkPlacements has upstream's filters judge where the pods are.
func (p *player) checkPlacements(ctx context.Context) error {
	var nodes corev1.NodeList
	var pods corev1.PodList
	c := p.loader.clients[0]
	if err := errors.Join(c.ask(ctx, "/api/v1/nodes", &nodes), c.ask(ctx, "/api/v1/pods", &pods)); err != nil {
		return err
	}
	started := time.Now()
	checked, refused, err := judge(ctx, nodes.Items, pods.Items)
	if err != nil {
		return err
	}
	p.say("upstream's filters allow %d of %d placements, after %v", checked-len(refused), checked, time.Since(started).Round(time.Millisecond))
	evicted, err := p.victims(ctx)
	if err != nil {
		return err
	}
	if checked < p.pods-evicted || len(refused) > 0 {
		return fmt.Errorf("%d of %d pods were checked, upstream's filters refuse %d placements: %v", checked, p.pods, len(refused), refused[:min(len(refused), 5)])
	}
	p.add(report.Figure{Name: p.benchmark.Name + ": placements that upstream's filters refuse", Unit: "pods",
		Includes: fmt.Sprintf("of %d, each on its node beside all others", checked)}, 0)
	return nil
}

// victims is how many pods the scheduler says that it ended for others.
func (p *player) victims(ctx context.Context) (n int, err error) {
	families, err := p.plane.metrics(ctx, p.plane.scheduler)
	for _, m := range families["scheduler_preemption_victims"].GetMetric() {
		n += int(m.GetHistogram().GetSampleSum())
	}
	return n, err
}

// filters are those of upstream's default profile that have to do with what the workloads ask for:
// no pod has volumes or claims devices.
func filters() []string {
	return []string{
		names.NodeUnschedulable, names.NodeName, names.TaintToleration, names.NodeAffinity, names.NodePorts,
		names.NodeResourcesFit, names.PodTopologySpread, names.InterPodAffinity,
	}
}

// judge asks upstream's filters of each pod that has a node whether it could go there, were it not
// there and all others were.
func judge(ctx context.Context, nodes []corev1.Node, pods []corev1.Pod) (checked int, refused []string, err error) {
	var placed []*corev1.Pod
	for i := range pods {
		if pods[i].Spec.NodeName != "" {
			placed = append(placed, &pods[i])
		}
	}
	ctx, cancel := context.WithCancel(ctx) // upstream's recorders of metrics go on until it ends
	defer cancel()
	metrics.Register()
	// A judge takes the pod that it judges off its nodes: each worker has nodes of its own.
	workers := runtime.GOMAXPROCS(0)
	found, errs := make([][]string, workers), make([]error, workers)
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			var b *bench
			if b, errs[w] = newBench(ctx, nodes, placed, nil); errs[w] != nil {
				return
			}
			for i := w; i < len(placed) && errs[w] == nil; i += workers {
				var why string
				if why, errs[w] = b.refusal(ctx, placed[i]); why != "" {
					found[w] = append(found[w], why)
				}
			}
		})
	}
	group.Wait()
	return len(placed), slices.Concat(found...), errors.Join(errs...)
}

// bench is upstream's filters and the nodes with their pods that they look at.
type bench struct {
	filters  framework.Framework
	snapshot *cache.Snapshot
}

func newBench(ctx context.Context, nodes []corev1.Node, pods []*corev1.Pod, namespaces []corev1.Namespace) (*bench, error) {
	all := make([]*corev1.Node, len(nodes))
	for i := range nodes {
		all[i] = &nodes[i]
	}
	b := &bench{snapshot: cache.NewSnapshot(pods, all)}
	defaults, err := latest.Default()
	if err != nil {
		return nil, fmt.Errorf("upstream's scheduler's configuration: %w", err)
	}
	profile := defaults.Profiles[0]
	chosen := append(filters(), names.PrioritySort, names.DefaultBinder) // a framework wants one of each
	profile.Plugins = &config.Plugins{MultiPoint: config.PluginSet{}}
	for _, name := range chosen {
		profile.Plugins.MultiPoint.Enabled = append(profile.Plugins.MultiPoint.Enabled, config.Plugin{Name: name})
	}
	profile.PluginConfig = slices.DeleteFunc(profile.PluginConfig, func(c config.PluginConfig) bool { return !slices.Contains(chosen, c.Name) })
	// Nobody starts these informers: only namespaces are looked up.
	client, err := kubernetes.NewForConfig(&rest.Config{})
	if err != nil {
		return nil, err
	}
	factory := informers.NewSharedInformerFactory(client, 0)
	for i := range namespaces {
		if err := factory.Core().V1().Namespaces().Informer().GetIndexer().Add(&namespaces[i]); err != nil {
			return nil, err
		}
	}
	b.filters, err = frameworkruntime.NewFramework(ctx, plugins.NewInTreeRegistry(), &profile,
		frameworkruntime.WithSnapshotSharedLister(b.snapshot), frameworkruntime.WithMutableSnapshotLister(b.snapshot), frameworkruntime.WithPodNominator(nobody{}), frameworkruntime.WithClientSet(client),
		frameworkruntime.WithInformerFactory(factory))
	if err != nil {
		return nil, fmt.Errorf("set up upstream's filters: %w", err)
	}
	return b, nil
}

// nobody is nominated to a node that it did not get.
type nobody struct{ fwk.PodNominator }

func (nobody) NominatedPodsForNode(string) []fwk.PodInfo { return nil }

// refusal is why the pod may not be where it is, empty if it may.
func (b *bench) refusal(ctx context.Context, pod *corev1.Pod) (string, error) {
	node, err := b.snapshot.NodeInfos().Get(pod.Spec.NodeName)
	if err != nil {
		return fmt.Sprintf("pod %s is on node %s, which does not exist", pod.Name, pod.Spec.NodeName), nil //nolint:nilerr // that is what it says
	}
	info, err := framework.NewPodInfo(pod)
	if err != nil {
		return "", fmt.Errorf("read pod %s: %w", pod.Name, err)
	}
	if err := node.RemovePod(klog.Background(), pod); err != nil {
		return "", fmt.Errorf("take pod %s off its node: %w", pod.Name, err)
	}
	defer node.AddPodInfo(info)
	free := pod.DeepCopy()
	free.Spec.NodeName = "" // as the scheduler saw it
	state := framework.NewCycleState()
	status := b.allow(ctx, state, free, node)
	if status.IsSuccess() {
		return "", nil
	}
	return fmt.Sprintf("pod %s on node %s: %s", pod.Name, pod.Spec.NodeName, status.Message()), nil
}

func (b *bench) allow(ctx context.Context, state fwk.CycleState, pod *corev1.Pod, node fwk.NodeInfo) *fwk.Status {
	among, status, _ := b.filters.RunPreFilterPlugins(ctx, state, pod)
	if !status.IsSuccess() {
		return status
	}
	if !among.AllNodes() && !among.NodeNames.Has(node.Node().Name) {
		return fwk.NewStatus(fwk.Unschedulable, "it is not among the nodes that the pod may go to")
	}
	return b.filters.RunFilterPlugins(ctx, state, pod, node)
}
