package podspec

import (
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel's units: a CPU has 1024 shares, and quotas count in a period of 100 ms.
const (
	sharesPerCPU   = 1024
	minShares      = 2
	maxShares      = 262144
	QuotaPeriod    = 100_000
	minQuota       = 1_000
	milliPerCPU    = 1000
	noLimit        = -1
	hugepagePrefix = "hugepages-"
)

// Shares returns the CPU weight (cgroup v1's cpu.shares) of a request in thousandths of a CPU.
func Shares(milli int64) int64 {
	if milli <= 0 {
		return minShares
	}
	return min(max(milli*sharesPerCPU/milliPerCPU, minShares), maxShares)
}

// Quota returns the CPU time, in microseconds of each QuotaPeriod, of a limit in thousandths of a
// CPU; 0 is no limit.
func Quota(milli int64) int64 {
	if milli <= 0 {
		return 0
	}
	return max(milli*QuotaPeriod/milliPerCPU, minQuota)
}

// QOS returns the pod's quality of service class by its definition's requests and limits.
func QOS(pod *corev1.Pod) corev1.PodQOSClass {
	if pod.Status.QOSClass != "" {
		return pod.Status.QOSClass
	}
	any, guaranteed := false, true
	judge := func(r corev1.ResourceRequirements) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			if !request.IsZero() || !limit.IsZero() {
				any = true
			}
			if limit.IsZero() || !request.IsZero() && request.Cmp(limit) != 0 {
				guaranteed = false
			}
		}
	}
	if pod.Spec.Resources != nil {
		judge(*pod.Spec.Resources)
	} else {
		for i := range pod.Spec.InitContainers {
			judge(pod.Spec.InitContainers[i].Resources)
		}
		for i := range pod.Spec.Containers {
			judge(pod.Spec.Containers[i].Resources)
		}
	}
	switch {
	case !any:
		return corev1.PodQOSBestEffort
	case guaranteed:
		return corev1.PodQOSGuaranteed
	default:
		return corev1.PodQOSBurstable
	}
}

// OOMScore returns how readily the kernel kills the container's processes when memory runs out,
// from -997 for guaranteed pods to 1000 for best-effort ones; between them, the less memory a
// container asked for, the sooner.
func OOMScore(pod *corev1.Pod, c *corev1.Container, memory int64) int64 {
	switch QOS(pod) {
	case corev1.PodQOSGuaranteed:
		return -997
	case corev1.PodQOSBestEffort:
		return 1000
	}
	if memory <= 0 {
		return 999
	}
	request := c.Resources.Requests.Memory().Value()
	score := 1000 - 1000*request/memory
	// Burstable stays between guaranteed's and best effort's.
	return min(max(score, 3), 999)
}

// Resources returns a container's limits as the runtime is told them. memory is the node's
// capacity in bytes.
func Resources(pod *corev1.Pod, c *corev1.Container, memory int64, unified bool) *runtimeapi.LinuxContainerResources {
	request := c.Resources.Requests.Cpu().MilliValue()
	if _, set := c.Resources.Requests[corev1.ResourceCPU]; !set {
		request = c.Resources.Limits.Cpu().MilliValue()
	}
	r := &runtimeapi.LinuxContainerResources{
		CpuShares:          Shares(request),
		OomScoreAdj:        OOMScore(pod, c, memory),
		MemoryLimitInBytes: c.Resources.Limits.Memory().Value(),
	}
	if quota := Quota(c.Resources.Limits.Cpu().MilliValue()); quota > 0 {
		r.CpuPeriod, r.CpuQuota = QuotaPeriod, quota
	}
	for name, amount := range c.Resources.Limits {
		if s := string(name); len(s) > len(hugepagePrefix) && s[:len(hugepagePrefix)] == hugepagePrefix {
			r.HugepageLimits = append(r.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: pageSize(s), Limit: uint64(amount.Value())})
		}
	}
	if unified {
		// All processes of a container go together when one runs out of memory: half a
		// container helps nobody.
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return r
}

// Resized returns what the runtime is told about a running container that gets other resources than it
// had: Resources, and of limits that it no longer has, that there are none.
func Resized(pod *corev1.Pod, c *corev1.Container, had corev1.ResourceRequirements, memory int64, unified bool) *runtimeapi.LinuxContainerResources {
	r := Resources(pod, c, memory, unified)
	if r.CpuQuota == 0 && !had.Limits.Cpu().IsZero() {
		r.CpuPeriod, r.CpuQuota = QuotaPeriod, noLimit
	}
	if r.MemoryLimitInBytes == 0 && !had.Limits.Memory().IsZero() {
		r.MemoryLimitInBytes = noLimit
	}
	return r
}

// pageSize turns hugepages-2Mi into the kernel's 2MB.
func pageSize(resource string) string {
	s := resource[len(hugepagePrefix):]
	if n := len(s); n > 2 && s[n-1] == 'i' {
		return s[:n-1] + "B"
	}
	return s
}
