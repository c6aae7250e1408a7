package podspec

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
)

// Node is what every translation needs to know of the node.
type Node struct {
	DNS DNS
	// LogRoot is the folder of all pods' logs, SeccompRoot that of localhost profiles.
	LogRoot, SeccompRoot string
	// Memory is the node's memory in bytes.
	Memory int64
	// Unified: the node has cgroup v2 only.
	Unified bool
}

// LogDir is the folder of a pod's logs: namespace_name_uid, as log collectors expect it.
func (n Node) LogDir(pod *corev1.Pod) string {
	return filepath.Join(n.LogRoot, pod.Namespace+"_"+pod.Name+"_"+string(pod.UID))
}

// LogPath is a container's log below its pod's folder.
func LogPath(container string, attempt int) string {
	return filepath.Join(container, strconv.Itoa(attempt)+".log")
}

// ContainerLog is where the log of a container is that the runtime lists.
func (n Node) ContainerLog(c *runtimeapi.Container) string {
	m := c.GetMetadata()
	return filepath.Join(n.LogDir(cri.LabelledPod(c.GetLabels())), LogPath(m.GetName(), int(m.GetAttempt())))
}

// SandboxConfig returns what the runtime is told about a pod's sandbox. cgroup is the pod's cgroup.
func (n Node) SandboxConfig(pod *corev1.Pod, attempt uint32, cgroup string) (*runtimeapi.PodSandboxConfig, error) {
	if pod.Spec.HostUsers != nil && !*pod.Spec.HostUsers {
		// Rather not at all than with less isolation than was asked for.
		return nil, errors.New("can't set `spec.hostUsers: false`, this node does not support user namespaces")
	}
	host, err := SandboxHostname(pod, n.DNS.Domain)
	if err != nil {
		return nil, err
	}
	config := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID), Attempt: attempt},
		Hostname:     host,
		LogDirectory: n.LogDir(pod),
		DnsConfig:    n.DNS.Resolver(pod),
		Labels:       cri.PodLabels(pod),
		Annotations:  annotations(pod),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    cgroup,
			SecurityContext: SandboxSecurity(pod, n.SeccompRoot),
			Resources:       podResources(pod),
			Overhead:        overhead(pod),
		},
	}
	if s := pod.Spec.SecurityContext; s != nil && len(s.Sysctls) > 0 {
		config.Linux.Sysctls = map[string]string{}
		for _, c := range s.Sysctls {
			config.Linux.Sysctls[dotted(c.Name)] = c.Value
		}
	}
	config.PortMappings = portMappings(pod)
	return config, nil
}

// annotations are the pod's own, and whether it must not run twice: an agent that was restarted
// while no server answers knows no pods, but has to know which sandboxes to stop.
func annotations(pod *corev1.Pod) map[string]string {
	out := make(map[string]string, len(pod.Annotations)+1)
	for k, v := range pod.Annotations {
		out[k] = v
	}
	if RunOnce(pod) {
		out[AnnotationRunOnce] = "true"
	}
	return out
}

func portMappings(pod *corev1.Pod) []*runtimeapi.PortMapping {
	if pod.Spec.HostNetwork {
		return nil
	}
	var out []*runtimeapi.PortMapping
	EachContainer(pod, func(c *corev1.Container) bool {
		for _, p := range c.Ports {
			m := &runtimeapi.PortMapping{ContainerPort: p.ContainerPort, HostPort: p.HostPort, HostIp: p.HostIP}
			switch p.Protocol {
			case corev1.ProtocolUDP:
				m.Protocol = runtimeapi.Protocol_UDP
			case corev1.ProtocolSCTP:
				m.Protocol = runtimeapi.Protocol_SCTP
			}
			out = append(out, m)
		}
		return true
	})
	return out
}

// podResources sums the pod's containers up, for runtimes that size a machine for the pod.
func podResources(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	requests := resourcehelper.PodRequests(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{ExcludeOverhead: true})
	r := &runtimeapi.LinuxContainerResources{CpuShares: Shares(requests.Cpu().MilliValue()), MemoryLimitInBytes: limits.Memory().Value()}
	if quota := Quota(limits.Cpu().MilliValue()); quota > 0 {
		r.CpuPeriod, r.CpuQuota = QuotaPeriod, quota
	}
	return r
}

func overhead(pod *corev1.Pod) *runtimeapi.LinuxContainerResources {
	if pod.Spec.Overhead == nil {
		return nil
	}
	r := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: pod.Spec.Overhead.Memory().Value()}
	if quota := Quota(pod.Spec.Overhead.Cpu().MilliValue()); quota > 0 {
		r.CpuPeriod, r.CpuQuota = QuotaPeriod, quota
	}
	return r
}

// Launch is everything about one container's creation that its definition does not say.
type Launch struct {
	Attempt int
	Backoff time.Duration
	Env     []Var
	// ImageRef is the runtime's id of the image, ImageUser whom the image wants to run as.
	ImageRef  string
	ImageUser ImageUser
	Mounts    []*runtimeapi.Mount
	Devices   []*runtimeapi.Device
	// MessageFile is the file on the node that holds the termination message.
	MessageFile string
	// Target is the container whose processes an ephemeral container wants to see.
	Target string
}

// ContainerConfig returns what the runtime is told about a container.
func (n Node) ContainerConfig(pod *corev1.Pod, c *corev1.Container, l Launch) (*runtimeapi.ContainerConfig, error) {
	if err := VerifyNonRoot(pod, c, l.ImageUser); err != nil {
		return nil, err
	}
	annotations, err := cri.ContainerAnnotations(pod, c, l.Attempt, l.Backoff, l.MessageFile)
	if err != nil {
		return nil, fmt.Errorf("annotations of container %s: %w", c.Name, err)
	}
	vars := make(map[string]string, len(l.Env))
	config := &runtimeapi.ContainerConfig{
		Metadata:    &runtimeapi.ContainerMetadata{Name: c.Name, Attempt: uint32(l.Attempt)},
		Image:       &runtimeapi.ImageSpec{Image: l.ImageRef, UserSpecifiedImage: c.Image},
		WorkingDir:  c.WorkingDir,
		Labels:      cri.ContainerLabels(pod, c.Name),
		Annotations: annotations,
		Mounts:      l.Mounts,
		Devices:     l.Devices,
		LogPath:     LogPath(c.Name, l.Attempt),
		Stdin:       c.Stdin,
		StdinOnce:   c.StdinOnce,
		Tty:         c.TTY,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       Resources(pod, c, n.Memory, n.Unified),
			SecurityContext: ContainerSecurity(pod, c, l.ImageUser, n.SeccompRoot, l.Target),
		},
	}
	for _, v := range l.Env {
		vars[v.Name] = v.Value
		config.Envs = append(config.Envs, &runtimeapi.KeyValue{Key: v.Name, Value: []byte(v.Value)})
	}
	for _, s := range c.Command {
		config.Command = append(config.Command, Expand(s, vars))
	}
	for _, s := range c.Args {
		config.Args = append(config.Args, Expand(s, vars))
	}
	if c.Lifecycle != nil && c.Lifecycle.StopSignal != nil {
		if v, ok := runtimeapi.Signal_value[string(*c.Lifecycle.StopSignal)]; ok {
			config.StopSignal = runtimeapi.Signal(v)
		}
	}
	return config, nil
}
