package server

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
	kubelettypes "k8s.io/kubelet/pkg/types"
)

// usage returns the newest numbers of all containers, by pod.
func (s *Server) usage(ctx context.Context) ([]stats.PodStats, error) {
	reply, err := s.Runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
	if err != nil {
		return nil, fmt.Errorf("container statistics: %w", err)
	}
	byPod := map[string][]stats.ContainerStats{}
	for _, c := range newest(reply.GetStats()) {
		labels := c.GetAttributes().GetLabels()
		uid := labels[kubelettypes.KubernetesPodUIDLabel]
		byPod[uid] = append(byPod[uid], containerStats(c, labels[kubelettypes.KubernetesContainerNameLabel]))
	}
	var out []stats.PodStats
	for _, p := range s.Pods() {
		containers := byPod[string(p.UID)]
		if len(containers) == 0 {
			continue
		}
		pod := stats.PodStats{PodRef: stats.PodReference{Name: p.Name, Namespace: p.Namespace, UID: string(p.UID)}, Containers: containers}
		if p.Status.StartTime != nil {
			pod.StartTime = *p.Status.StartTime
		}
		for _, c := range p.Status.ContainerStatuses {
			for i := range pod.Containers {
				if pod.Containers[i].Name == c.Name && c.State.Running != nil {
					pod.Containers[i].StartTime = c.State.Running.StartedAt
				}
			}
		}
		pod.VolumeStats = s.volumes(ctx, p)
		sum(&pod)
		out = append(out, pod)
	}
	return out, nil
}

// newest leaves out the numbers of containers that have a successor.
func newest(list []*runtimeapi.ContainerStats) []*runtimeapi.ContainerStats {
	type container struct{ pod, name string }
	of := func(c *runtimeapi.ContainerStats) container {
		labels := c.GetAttributes().GetLabels()
		return container{labels[kubelettypes.KubernetesPodUIDLabel], labels[kubelettypes.KubernetesContainerNameLabel]}
	}
	last := map[container]*runtimeapi.ContainerStats{}
	for _, c := range list {
		before := last[of(c)]
		if before == nil || before.GetAttributes().GetMetadata().GetAttempt() < c.GetAttributes().GetMetadata().GetAttempt() {
			last[of(c)] = c
		}
	}
	return slices.DeleteFunc(slices.Clone(list), func(c *runtimeapi.ContainerStats) bool { return last[of(c)] != c })
}

// number returns what the runtime knows; nil if it does not.
func number(v *runtimeapi.UInt64Value) *uint64 {
	if v == nil {
		return nil
	}
	n := v.GetValue()
	return &n
}

func containerStats(c *runtimeapi.ContainerStats, name string) stats.ContainerStats {
	out := stats.ContainerStats{Name: name}
	if cpu := c.GetCpu(); cpu != nil {
		out.CPU = &stats.CPUStats{Time: metav1.NewTime(time.Unix(0, cpu.GetTimestamp())), UsageNanoCores: number(cpu.GetUsageNanoCores()), UsageCoreNanoSeconds: number(cpu.GetUsageCoreNanoSeconds())}
	}
	if m := c.GetMemory(); m != nil {
		out.Memory = &stats.MemoryStats{
			Time: metav1.NewTime(time.Unix(0, m.GetTimestamp())), WorkingSetBytes: number(m.GetWorkingSetBytes()), AvailableBytes: number(m.GetAvailableBytes()),
			UsageBytes: number(m.GetUsageBytes()), RSSBytes: number(m.GetRssBytes()), PageFaults: number(m.GetPageFaults()), MajorPageFaults: number(m.GetMajorPageFaults()),
		}
	}
	if l := c.GetWritableLayer(); l != nil {
		out.Rootfs = &stats.FsStats{Time: metav1.NewTime(time.Unix(0, l.GetTimestamp())), UsedBytes: number(l.GetUsedBytes()), InodesUsed: number(l.GetInodesUsed())}
	}
	return out
}

// sum adds the containers' numbers up for their pod.
func sum(p *stats.PodStats) {
	var cpu, nano, memory uint64
	var at metav1.Time
	for _, c := range p.Containers {
		if c.CPU != nil {
			at = c.CPU.Time
			if c.CPU.UsageCoreNanoSeconds != nil {
				cpu += *c.CPU.UsageCoreNanoSeconds
			}
			if c.CPU.UsageNanoCores != nil {
				nano += *c.CPU.UsageNanoCores
			}
		}
		if c.Memory != nil && c.Memory.WorkingSetBytes != nil {
			memory += *c.Memory.WorkingSetBytes
		}
	}
	p.CPU = &stats.CPUStats{Time: at, UsageCoreNanoSeconds: &cpu, UsageNanoCores: &nano}
	p.Memory = &stats.MemoryStats{Time: at, WorkingSetBytes: &memory}
}

// node returns the machine's own numbers.
func (s *Server) node() stats.NodeStats {
	f := s.Facts()
	now := metav1.Now()
	busy := cpuTime("/proc/stat")
	working, available := uint64(f.Memory-f.Available), uint64(f.Available)
	free, size, used := uint64(f.DiskFree), uint64(f.Disk), uint64(f.Disk-f.DiskFree)
	inodes, inodesFree, inodesUsed := uint64(f.Inodes), uint64(f.InodesFree), uint64(f.Inodes-f.InodesFree)
	maxPIDs, processes := f.PIDs, f.Processes
	return stats.NodeStats{
		NodeName: s.NodeName,
		CPU:      &stats.CPUStats{Time: now, UsageCoreNanoSeconds: &busy},
		Memory:   &stats.MemoryStats{Time: now, WorkingSetBytes: &working, AvailableBytes: &available, UsageBytes: &working},
		Fs:       &stats.FsStats{Time: now, AvailableBytes: &free, CapacityBytes: &size, UsedBytes: &used, Inodes: &inodes, InodesFree: &inodesFree, InodesUsed: &inodesUsed},
		Rlimit:   &stats.RlimitStats{Time: now, MaxPID: &maxPIDs, NumOfRunningProcesses: &processes},
	}
}

// cpuTime returns the time, in nanoseconds, that the machine's processors were not idle.
func cpuTime(path string) uint64 {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks uint64
	for i, field := range strings.Fields(line) {
		// cpu user nice system idle iowait irq softirq steal; guest time is in user's.
		if i == 0 || i == 4 || i == 5 || i > 8 {
			continue
		}
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil {
			return 0
		}
		ticks += n
	}
	const perSecond = 100 // USER_HZ, fixed by the kernel's ABI
	return ticks * uint64(time.Second/perSecond)
}

func (s *Server) summary(w http.ResponseWriter, r *http.Request) {
	pods, err := s.usage(r.Context())
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	writeJSON(w, stats.Summary{Node: s.node(), Pods: pods})
}
