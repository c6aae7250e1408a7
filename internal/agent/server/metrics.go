package server

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	kubelettypes "k8s.io/kubelet/pkg/types"
)

// samples are numbers read for one answer.
type samples []prometheus.Metric

// Describe implements prometheus.Collector: what there will be is not known before.
func (s *samples) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector.
func (s *samples) Collect(ch chan<- prometheus.Metric) {
	for _, m := range *s {
		ch <- m
	}
}

// add adds a number; labels are names and values in turn. at may be zero.
func (s *samples) add(kind prometheus.ValueType, name, help string, value float64, at metav1.Time, labels ...string) {
	names, values := make([]string, 0, len(labels)/2), make([]string, 0, len(labels)/2)
	for i := 0; i+1 < len(labels); i += 2 {
		names, values = append(names, labels[i]), append(values, labels[i+1])
	}
	m := prometheus.MustNewConstMetric(prometheus.NewDesc(name, help, names, nil), kind, value, values...)
	if !at.IsZero() {
		m = prometheus.NewMetricWithTimestamp(at.Time, m)
	}
	*s = append(*s, m)
}

// addIf adds a number that is there, of which unit make one of what is shown.
func (s *samples) addIf(kind prometheus.ValueType, name, help string, value *uint64, unit float64, at metav1.Time, labels ...string) {
	if value != nil {
		s.add(kind, name, help, float64(*value)/unit, at, labels...)
	}
}

const (
	counter = prometheus.CounterValue
	gauge   = prometheus.GaugeValue
	// nanoseconds of one second.
	nanoseconds = float64(time.Second)
)

// serveMetrics answers with what read reads, beside what registries hold. If reading fails, the
// metric named scrapeError says so; there may be none of that name.
func (s *Server) serveMetrics(read func(context.Context, *samples) error, scrapeError string, registries ...*prometheus.Registry) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var list samples
		err := read(r.Context(), &list)
		if err != nil {
			s.Log.Warn("collecting metrics failed", "path", r.URL.Path, "err", err)
		}
		if scrapeError != "" {
			failed := 0.0
			if err != nil {
				failed = 1
			}
			list.add(gauge, scrapeError, "1 if there was an error while getting container metrics, 0 otherwise", failed, metav1.Time{})
		}
		own := prometheus.NewRegistry()
		if err := own.Register(&list); err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		gatherers := prometheus.Gatherers{own}
		for _, other := range registries {
			gatherers = append(gatherers, other)
		}
		promhttp.HandlerFor(gatherers, promhttp.HandlerOpts{
			ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelWarn), ErrorHandling: promhttp.ContinueOnError,
		}).ServeHTTP(w, r)
	}
}

// agentSamples reads how much the node runs, and how full the claims of its pods are.
func (s *Server) agentSamples(ctx context.Context, out *samples) error {
	out.add(gauge, "kubelet_node_name", "The node's name. The count is always 1.", 1, metav1.Time{}, "node", s.NodeName)
	pods := s.Pods()
	s.claims.keep(pods)
	seen := map[stats.PVCReference]bool{}
	for _, p := range pods {
		for _, v := range s.volumes(ctx, p) {
			if !seen[*v.PVCRef] {
				seen[*v.PVCRef] = true
				volumeSamples(out, v)
			}
		}
	}
	sandboxes, err := s.Runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY},
	}})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	running := map[string]bool{}
	for _, sandbox := range sandboxes.GetItems() {
		running[sandbox.GetLabels()[kubelettypes.KubernetesPodUIDLabel]] = true
	}
	out.add(gauge, "kubelet_running_pods", "Number of pods that have a running pod sandbox", float64(len(running)), metav1.Time{})
	containers, err := s.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	states := map[string]float64{"running": 0}
	for _, c := range containers.GetContainers() {
		switch c.GetState() {
		case runtimeapi.ContainerState_CONTAINER_RUNNING:
			states["running"]++
		case runtimeapi.ContainerState_CONTAINER_CREATED:
			states["created"]++
		case runtimeapi.ContainerState_CONTAINER_EXITED:
			states["exited"]++
		default:
			states["unknown"]++
		}
	}
	for state, n := range states {
		out.add(gauge, "kubelet_running_containers", "Number of containers, by what they do", n, metav1.Time{}, "container_state", state)
	}
	return nil
}

func volumeSamples(out *samples, v stats.VolumeStats) {
	for _, one := range []struct {
		name, help string
		value      *uint64
	}{
		{"capacity_bytes", "Capacity in bytes of the volume", v.CapacityBytes},
		{"available_bytes", "Number of available bytes in the volume", v.AvailableBytes},
		{"used_bytes", "Number of used bytes in the volume", v.UsedBytes},
		{"inodes", "Maximum number of inodes in the volume", v.Inodes},
		{"inodes_free", "Number of free inodes in the volume", v.InodesFree},
		{"inodes_used", "Number of used inodes in the volume", v.InodesUsed},
	} {
		out.addIf(gauge, "kubelet_volume_stats_"+one.name, one.help, one.value, 1, metav1.Time{}, "namespace", v.PVCRef.Namespace, "persistentvolumeclaim", v.PVCRef.Name)
	}
}

// The help of metrics that two paths serve.
const (
	helpContainerCPU    = "Cumulative cpu time consumed by the container in core-seconds"
	helpContainerMemory = "Current working set of the container in bytes"
	helpContainerStart  = "Start time of the container since unix epoch in seconds"
)

// resourceSamples reads what metrics-server collects.
func (s *Server) resourceSamples(ctx context.Context, out *samples) error {
	node := s.node()
	out.addIf(counter, "node_cpu_usage_seconds_total", "Cumulative cpu time consumed by the node in core-seconds", node.CPU.UsageCoreNanoSeconds, nanoseconds, node.CPU.Time)
	out.addIf(gauge, "node_memory_working_set_bytes", "Current working set of the node in bytes", node.Memory.WorkingSetBytes, 1, node.Memory.Time)
	pods, err := s.usage(ctx)
	if err != nil {
		return err
	}
	for _, p := range pods {
		of := []string{"namespace", p.PodRef.Namespace, "pod", p.PodRef.Name}
		for _, c := range p.Containers {
			labels := append([]string{"container", c.Name}, of...)
			if !c.StartTime.IsZero() {
				out.add(gauge, "container_start_time_seconds", helpContainerStart, float64(c.StartTime.UnixNano())/nanoseconds, metav1.Time{}, labels...)
			}
			if c.CPU != nil {
				out.addIf(counter, "container_cpu_usage_seconds_total", helpContainerCPU, c.CPU.UsageCoreNanoSeconds, nanoseconds, c.CPU.Time, labels...)
			}
			if c.Memory != nil {
				out.addIf(gauge, "container_memory_working_set_bytes", helpContainerMemory, c.Memory.WorkingSetBytes, 1, c.Memory.Time, labels...)
			}
		}
		out.addIf(counter, "pod_cpu_usage_seconds_total", "Cumulative cpu time consumed by the pod in core-seconds", p.CPU.UsageCoreNanoSeconds, nanoseconds, p.CPU.Time, of...)
		out.addIf(gauge, "pod_memory_working_set_bytes", "Current working set of the pod in bytes", p.Memory.WorkingSetBytes, 1, p.Memory.Time, of...)
	}
	return nil
}

// containerSamples reads what cAdvisor tells about containers, as far as the runtime knows it, and
// about the machine.
func (s *Server) containerSamples(ctx context.Context, out *samples) error {
	out.add(gauge, "machine_cpu_cores", "Number of logical CPU cores.", float64(runtime.NumCPU()), metav1.Time{})
	out.add(gauge, "machine_memory_bytes", "Amount of memory installed on the machine.", float64(s.Facts().Memory), metav1.Time{})
	list, err := s.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return fmt.Errorf("list containers: %w", err)
	}
	images := map[string]string{}
	for _, c := range list.GetContainers() {
		images[c.GetId()] = c.GetImage().GetUserSpecifiedImage()
		if images[c.GetId()] == "" {
			images[c.GetId()] = c.GetImage().GetImage()
		}
	}
	reply, err := s.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return fmt.Errorf("container statistics: %w", err)
	}
	for _, raw := range reply.GetStats() {
		id, of := raw.GetAttributes().GetId(), raw.GetAttributes().GetLabels()
		c := containerStats(raw, of[kubelettypes.KubernetesContainerNameLabel])
		labels := []string{
			"container", c.Name, "id", id, "image", images[id], "name", id,
			"namespace", of[kubelettypes.KubernetesPodNamespaceLabel], "pod", of[kubelettypes.KubernetesPodNameLabel],
		}
		if c.CPU != nil {
			out.addIf(counter, "container_cpu_usage_seconds_total", helpContainerCPU, c.CPU.UsageCoreNanoSeconds, nanoseconds, c.CPU.Time, append([]string{"cpu", "total"}, labels...)...)
			out.add(gauge, "container_last_seen", "Last time a container was seen by the exporter", float64(c.CPU.Time.Unix()), metav1.Time{}, labels...)
		}
		memorySamples(out, c.Memory, labels)
		if c.Rootfs != nil {
			out.addIf(gauge, "container_fs_usage_bytes", "Number of bytes that are consumed by the container on this filesystem", c.Rootfs.UsedBytes, 1, c.Rootfs.Time, labels...)
		}
	}
	return s.networkSamples(ctx, out)
}

// networkSamples reads what pods have sent and received, of runtimes that know.
func (s *Server) networkSamples(ctx context.Context, out *samples) error {
	reply, err := s.Runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil
	} else if err != nil {
		return fmt.Errorf("sandbox statistics: %w", err)
	}
	for _, p := range reply.GetStats() {
		network, of := p.GetLinux().GetNetwork(), p.GetAttributes().GetMetadata()
		if network.GetDefaultInterface() == nil {
			continue
		}
		at := metav1.NewTime(time.Unix(0, network.GetTimestamp()))
		for _, i := range append([]*runtimeapi.NetworkInterfaceUsage{network.GetDefaultInterface()}, network.GetInterfaces()...) {
			for _, one := range []struct {
				name, help string
				value      *runtimeapi.UInt64Value
			}{
				{"receive_bytes_total", "Cumulative count of bytes received", i.GetRxBytes()},
				{"receive_errors_total", "Cumulative count of errors encountered while receiving", i.GetRxErrors()},
				{"transmit_bytes_total", "Cumulative count of bytes transmitted", i.GetTxBytes()},
				{"transmit_errors_total", "Cumulative count of errors encountered while transmitting", i.GetTxErrors()},
			} {
				out.addIf(counter, "container_network_"+one.name, one.help, number(one.value), 1, at,
					"container", "", "id", p.GetAttributes().GetId(), "image", "", "interface", i.GetName(), "name", p.GetAttributes().GetId(), "namespace", of.GetNamespace(), "pod", of.GetName())
			}
		}
	}
	return nil
}

func memorySamples(out *samples, m *stats.MemoryStats, labels []string) {
	if m == nil {
		return
	}
	out.addIf(gauge, "container_memory_working_set_bytes", helpContainerMemory, m.WorkingSetBytes, 1, m.Time, labels...)
	out.addIf(gauge, "container_memory_usage_bytes", "Current memory usage of the container in bytes", m.UsageBytes, 1, m.Time, labels...)
	out.addIf(gauge, "container_memory_rss", "Size of RSS in bytes.", m.RSSBytes, 1, m.Time, labels...)
	const help = "Cumulative count of memory allocation failures."
	out.addIf(counter, "container_memory_failures_total", help, m.PageFaults, 1, m.Time, append([]string{"failure_type", "pgfault", "scope", "container"}, labels...)...)
	out.addIf(counter, "container_memory_failures_total", help, m.MajorPageFaults, 1, m.Time, append([]string{"failure_type", "pgmajfault", "scope", "container"}, labels...)...)
}
