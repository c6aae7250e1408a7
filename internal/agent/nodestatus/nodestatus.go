// Package nodestatus tells the cluster about the node: it registers it, keeps its lease, and reports
// capacity, conditions, addresses and images, when they change and now and then when they do not.
package nodestatus

import (
	"bufio"
	"fmt"
	"os"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Facts are what the status is made from. Collect reads those of the machine.
type Facts struct {
	CPUs      int
	Memory    int64 // bytes
	Available int64 // bytes of memory that could be given to programs
	// Disk is the file system of the agent's folder, in bytes and inodes.
	Disk, DiskFree, Inodes, InodesFree int64
	// PIDs is how many processes there may be, Processes how many there are.
	PIDs, Processes int64

	MachineID, SystemUUID, BootID, Kernel, OSImage string
}

// Collect reads the machine's facts; dir is on the disk that pods write to.
func Collect(dir string) (Facts, error) {
	f := Facts{CPUs: runtime.NumCPU()}
	var err error
	if f.Memory, f.Available, err = memory("/proc/meminfo"); err != nil {
		return f, err
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return f, fmt.Errorf("file system of %s: %w", dir, err)
	}
	f.Disk, f.DiskFree = int64(st.Blocks)*st.Bsize, int64(st.Bavail)*st.Bsize
	f.Inodes, f.InodesFree = int64(st.Files), int64(st.Ffree)
	f.PIDs = number("/proc/sys/kernel/pid_max")
	if threads := number("/proc/sys/kernel/threads-max"); threads > 0 && threads < f.PIDs {
		f.PIDs = threads
	}
	f.Processes = processes("/proc/loadavg")
	f.MachineID = firstOf("/etc/machine-id", "/var/lib/dbus/machine-id")
	f.SystemUUID = firstOf("/sys/class/dmi/id/product_uuid", "/proc/sys/kernel/random/boot_id")
	f.BootID = firstOf("/proc/sys/kernel/random/boot_id")
	f.Kernel = firstOf("/proc/sys/kernel/osrelease")
	f.OSImage = osImage("/etc/os-release")
	return f, nil
}

func firstOf(paths ...string) string {
	for _, p := range paths {
		if data, err := os.ReadFile(p); err == nil {
			if s := strings.TrimSpace(string(data)); s != "" {
				return s
			}
		}
	}
	return ""
}

func number(path string) int64 {
	n, err := strconv.ParseInt(firstOf(path), 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// processes reads the number of threads from a line such as "0.1 0.2 0.3 2/511 12345".
func processes(path string) int64 {
	fields := strings.Fields(firstOf(path))
	if len(fields) < 4 {
		return 0
	}
	_, total, _ := strings.Cut(fields[3], "/")
	n, err := strconv.ParseInt(total, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

func memory(path string) (total, available int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) < 2 {
			continue
		}
		kib, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			total = kib << 10
		case "MemAvailable:":
			available = kib << 10
		}
	}
	if total == 0 {
		return 0, 0, fmt.Errorf("%s tells no amount of memory", path)
	}
	return total, available, lines.Err()
}

func osImage(path string) string {
	for _, line := range strings.Split(firstOf(path), "\n") {
		if v, ok := strings.CutPrefix(line, "PRETTY_NAME="); ok {
			return strings.Trim(v, `"`)
		}
	}
	return "Linux"
}

// Reserved is what of the node is kept from pods.
type Reserved struct {
	// CPU and Memory for the system and for Barque itself; EvictMemory is kept free below that.
	CPU, Memory, EvictMemory resource.Quantity
	// EvictDisk is the part of the disk, in percent, that is kept free.
	EvictDisk int64
}

// DefaultReserved keeps the stock eviction thresholds: 100 MiB of memory, a tenth of the disk.
func DefaultReserved() Reserved {
	return Reserved{EvictMemory: resource.MustParse("100Mi"), EvictDisk: 10}
}

// Resources returns the node's capacity and what of it pods can have.
func Resources(f Facts, r Reserved, pods int64) (capacity, allocatable corev1.ResourceList) {
	capacity = corev1.ResourceList{
		corev1.ResourceCPU:              *resource.NewQuantity(int64(f.CPUs), resource.DecimalSI),
		corev1.ResourceMemory:           *resource.NewQuantity(f.Memory, resource.BinarySI),
		corev1.ResourceEphemeralStorage: *resource.NewQuantity(f.Disk, resource.BinarySI),
		corev1.ResourcePods:             *resource.NewQuantity(pods, resource.DecimalSI),
		"hugepages-1Gi":                 *resource.NewQuantity(0, resource.DecimalSI),
		"hugepages-2Mi":                 *resource.NewQuantity(0, resource.DecimalSI),
	}
	allocatable = capacity.DeepCopy()
	less := func(name corev1.ResourceName, amounts ...resource.Quantity) {
		q := allocatable[name]
		for _, a := range amounts {
			q.Sub(a)
		}
		if q.Sign() < 0 {
			q = *resource.NewQuantity(0, q.Format)
		}
		allocatable[name] = q
	}
	less(corev1.ResourceCPU, r.CPU)
	less(corev1.ResourceMemory, r.Memory, r.EvictMemory)
	less(corev1.ResourceEphemeralStorage, *resource.NewQuantity(f.Disk*r.EvictDisk/100, resource.BinarySI))
	return capacity, allocatable
}

// keepOthers keeps the resources that others gave the node (extended resources): what of them it has in all, pods
// can have.
func keepOthers(s *corev1.NodeStatus, had corev1.ResourceList) {
	for name, q := range had {
		if _, own := s.Capacity[name]; !own {
			s.Capacity[name], s.Allocatable[name] = q, q.DeepCopy()
		}
	}
}

// Health is what the conditions are made from, beside the facts.
type Health struct {
	// Problems are why the node is not ready; none, and it is.
	Problems []string
}

// Conditions returns the node's conditions. Those that did not change keep the moment of their last
// change.
func Conditions(f Facts, r Reserved, h Health, old []corev1.NodeCondition, now time.Time) []corev1.NodeCondition {
	pressure := func(kind corev1.NodeConditionType, on bool, yes, no, yesMessage, noMessage string) corev1.NodeCondition {
		if on {
			return corev1.NodeCondition{Type: kind, Status: corev1.ConditionTrue, Reason: yes, Message: yesMessage}
		}
		return corev1.NodeCondition{Type: kind, Status: corev1.ConditionFalse, Reason: no, Message: noMessage}
	}
	lowDisk := f.Disk > 0 && f.DiskFree*100 < f.Disk*r.EvictDisk || f.Inodes > 0 && f.InodesFree*20 < f.Inodes
	ready := corev1.NodeCondition{Type: corev1.NodeReady, Status: corev1.ConditionTrue, Reason: "KubeletReady", Message: "kubelet is posting ready status"}
	if len(h.Problems) > 0 {
		ready.Status, ready.Reason = corev1.ConditionFalse, "KubeletNotReady"
		ready.Message = "[" + strings.Join(h.Problems, ", ") + "]"
	}
	out := []corev1.NodeCondition{
		pressure(corev1.NodeMemoryPressure, f.Available < r.EvictMemory.Value(), "KubeletHasInsufficientMemory", "KubeletHasSufficientMemory",
			fmt.Sprintf("kubelet has insufficient memory available: less than %s", &r.EvictMemory), "kubelet has sufficient memory available"),
		pressure(corev1.NodeDiskPressure, lowDisk, "KubeletHasDiskPressure", "KubeletHasNoDiskPressure",
			fmt.Sprintf("kubelet has disk pressure: less than %s of the disk, or 5%% of its inodes, are free", resource.NewQuantity(f.Disk*r.EvictDisk/100>>20<<20, resource.BinarySI)),
			"kubelet has no disk pressure"),
		pressure(corev1.NodePIDPressure, f.PIDs > 0 && f.PIDs-f.Processes < f.PIDs/10, "KubeletHasInsufficientPID", "KubeletHasSufficientPID",
			"kubelet has insufficient PID available", "kubelet has sufficient PID available"),
		ready,
	}
	stamp := metav1.NewTime(now.Truncate(time.Second))
	for i := range out {
		out[i].LastHeartbeatTime, out[i].LastTransitionTime = stamp, stamp
		for _, o := range old {
			if o.Type == out[i].Type && o.Status == out[i].Status {
				out[i].LastTransitionTime = o.LastTransitionTime
			}
		}
	}
	// Conditions of other types belong to others.
	for _, o := range old {
		switch o.Type {
		case corev1.NodeMemoryPressure, corev1.NodeDiskPressure, corev1.NodePIDPressure, corev1.NodeReady:
		default:
			out = append(out, o)
		}
	}
	return out
}

// maxImages and maxImageNames bound the list of images in a status, as stock does.
const (
	maxImages     = 50
	maxImageNames = 5
)

// ImageList returns the largest images.
func ImageList(images []corev1.ContainerImage) []corev1.ContainerImage {
	list := append([]corev1.ContainerImage(nil), images...)
	sort.SliceStable(list, func(i, j int) bool {
		if list[i].SizeBytes != list[j].SizeBytes {
			return list[i].SizeBytes > list[j].SizeBytes
		}
		return strings.Join(list[i].Names, " ") < strings.Join(list[j].Names, " ")
	})
	if len(list) > maxImages {
		list = list[:maxImages]
	}
	for i := range list {
		if len(list[i].Names) > maxImageNames {
			list[i].Names = list[i].Names[:maxImageNames]
		}
	}
	return list
}
