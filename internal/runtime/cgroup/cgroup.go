// Package cgroup makes, limits, measures and removes the control groups that stand above
// containers: one for all pods of a node, one a QoS class, one a pod. The groups of containers
// themselves are runc's.
//
// It works on cgroup v2 and on v1, also with v2 beside it (hybrid), through
// github.com/opencontainers/cgroups with plain files; systemd is not asked. A group is named by
// an absolute path that means the same in every hierarchy, such as
// "/barque/kubepods/burstable/pod0b5c...", and the same path is what CRI takes as a sandbox's
// cgroup_parent.
package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path"
	"strings"

	"github.com/opencontainers/cgroups"
	// The kernel's device rules are set by whoever creates the devices group, which this does
	// for every v1 group it makes.
	_ "github.com/opencontainers/cgroups/devices"
	"github.com/opencontainers/cgroups/manager"
)

// Resources limits a group. A zero field leaves alone what is set, which for a new group is no
// limit; Unlimited takes a limit away.
type Resources struct {
	// CPUShares is the weight among siblings in cgroup v1's unit: 1024 for one CPU asked for,
	// at least 2. On v2 it becomes a cpu.weight.
	CPUShares uint64
	// CPUQuota is the CPU time, in microseconds, that the group may use in each CPUPeriod.
	CPUQuota int64
	// CPUPeriod is in microseconds; 0 with a quota means 100000.
	CPUPeriod uint64
	// Memory is in bytes, page cache included, swap not.
	Memory int64
	// Pids bounds the number of threads.
	Pids int64
}

// Unlimited takes away the limit of a quota, of memory, or of pids.
const Unlimited = -1

// DefaultCPUPeriod is the period, in microseconds, that quotas are counted in by default.
const DefaultCPUPeriod = 100_000

// Stats is what a group and all groups below it use.
type Stats struct {
	// CPU is the CPU time used since the group was made, in nanoseconds.
	CPU uint64
	// Memory is what is charged to the group, in bytes, page cache included.
	Memory uint64
	// WorkingSet is Memory without the page cache that the kernel would drop first: what the
	// kubelet's memory figures and eviction go by.
	WorkingSet uint64
	// RSS is anonymous memory, in bytes.
	RSS uint64
	// MemoryLimit is in bytes; math.MaxUint64 if there is none.
	MemoryLimit uint64
	// PageFaults and MajorPageFaults count since the group was made.
	PageFaults, MajorPageFaults uint64
	// Pids is the number of threads.
	Pids uint64
}

// V2 reports whether this machine has cgroup v2 alone, rather than v1 or both.
func V2() bool { return cgroups.IsCgroup2UnifiedMode() }

// Create makes the group at name with all its parents, in every hierarchy, and limits it. A
// group that exists is only limited.
func Create(name string, r Resources) error {
	m, err := open(name, r)
	if err != nil {
		return fmt.Errorf("create cgroup %s: %w", name, err)
	}
	// Pid -1 makes the directories without moving a process in.
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("create cgroup %s: %w", name, err)
	}
	if err := m.Set(convert(r)); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", name, err)
	}
	return nil
}

// Update changes the limits of a group that exists. An error that matches fs.ErrNotExist says
// that there is none.
func Update(name string, r Resources) error {
	m, err := open(name, r)
	if err != nil {
		return fmt.Errorf("limit cgroup %s: %w", name, err)
	}
	if !m.Exists() {
		return fmt.Errorf("limit cgroup %s: %w", name, fs.ErrNotExist)
	}
	if err := m.Set(convert(r)); err != nil {
		return fmt.Errorf("limit cgroup %s: %w", name, err)
	}
	return nil
}

// Exists reports whether the group exists in the hierarchy that limits memory.
func Exists(name string) (bool, error) {
	m, err := open(name, Resources{})
	if err != nil {
		return false, fmt.Errorf("look for cgroup %s: %w", name, err)
	}
	return m.Exists(), nil
}

// Add moves a process, with the children it will have, into a group that exists.
func Add(name string, pid int) error {
	m, err := open(name, Resources{})
	if err != nil {
		return fmt.Errorf("move process %d into cgroup %s: %w", pid, name, err)
	}
	if err := m.AddPid("", pid); err != nil {
		return fmt.Errorf("move process %d into cgroup %s: %w", pid, name, err)
	}
	return nil
}

// Usage measures a group.
func Usage(name string) (Stats, error) {
	m, err := open(name, Resources{})
	if err != nil {
		return Stats{}, fmt.Errorf("measure cgroup %s: %w", name, err)
	}
	if !m.Exists() {
		return Stats{}, fmt.Errorf("measure cgroup %s: %w", name, fs.ErrNotExist)
	}
	s, err := m.Stats(&cgroups.StatsOptions{Controllers: cgroups.CPU | cgroups.Memory | cgroups.Pids})
	if err != nil {
		return Stats{}, fmt.Errorf("measure cgroup %s: %w", name, err)
	}
	return summarize(s, V2()), nil
}

// summarize picks out of the kernel's many figures the ones that both versions have.
func summarize(s *cgroups.Stats, v2 bool) Stats {
	memory := s.MemoryStats
	rss, inactive, faults, major := "total_rss", "total_inactive_file", "total_pgfault", "total_pgmajfault"
	if v2 {
		rss, inactive, faults, major = "anon", "inactive_file", "pgfault", "pgmajfault"
	}
	out := Stats{
		CPU:             s.CpuStats.CpuUsage.TotalUsage,
		Memory:          memory.Usage.Usage,
		RSS:             memory.Stats[rss],
		MemoryLimit:     memory.Usage.Limit,
		PageFaults:      memory.Stats[faults],
		MajorPageFaults: memory.Stats[major],
		Pids:            s.PidsStats.Current,
	}
	out.WorkingSet = out.Memory - min(out.Memory, memory.Stats[inactive])
	// v1 says "no limit" with the largest number of whole pages below 2^63.
	if out.MemoryLimit == 0 || out.MemoryLimit > math.MaxInt64-uint64(os.Getpagesize()) {
		out.MemoryLimit = math.MaxUint64
	}
	return out
}

// open returns the library's manager of one group.
func open(name string, r Resources) (cgroups.Manager, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	config := convert(r)
	// Or else the devices hierarchy of v1 would be passed by, and containers need their
	// parent there.
	config.SkipDevices = false
	return manager.New(&cgroups.Cgroup{Path: name, Resources: config})
}

// check refuses the root, which is not ours to limit, and paths that could lead elsewhere.
func check(name string) error {
	if !path.IsAbs(name) || path.Clean(name) != name || name == "/" {
		return errors.New("want a clean absolute path below the root")
	}
	return nil
}

// convert turns our resources into the library's.
func convert(r Resources) *cgroups.Resources {
	out := &cgroups.Resources{
		Memory:    r.Memory,
		CpuShares: r.CPUShares,
		CpuQuota:  r.CPUQuota,
		CpuPeriod: r.CPUPeriod,
		// What a container may do with devices is said in the container's own group.
		SkipDevices:     true,
		SkipFreezeOnSet: true,
	}
	if r.CPUQuota > 0 && r.CPUPeriod == 0 {
		out.CpuPeriod = DefaultCPUPeriod
	}
	if r.CPUShares != 0 {
		out.CpuShares = max(r.CPUShares, 2)
		out.CpuWeight = cgroups.ConvertCPUSharesToCgroupV2Value(out.CpuShares)
	}
	if r.Pids != 0 {
		out.PidsLimit = &r.Pids
	}
	return out
}

// Join puts path elements below a root that may be "/" or empty, and cleans the result.
func Join(root string, elements ...string) string {
	return path.Clean("/" + root + "/" + strings.Join(elements, "/"))
}
