// Package cgroup keeps the control groups above containers: one for all pods, one for each quality
// of service class, one for each pod. The runtime makes those of containers below them.
//
// The layout below the configured root is the stock cgroupfs one:
//
//	kubepods/pod<uid>              guaranteed
//	kubepods/burstable/pod<uid>
//	kubepods/besteffort/pod<uid>
package cgroup

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	resourcehelper "k8s.io/component-helpers/resource"

	"barque.dev/internal/agent/podspec"
	"barque.dev/internal/runtime/cgroup"
)

// Tree is the part of the control groups that belongs to a node's pods. Its methods are safe for
// concurrent use for different pods.
type Tree struct {
	root string
}

// New returns the tree below root, such as "/barque"; "/" is the top.
func New(root string) *Tree { return &Tree{root: cgroup.Join(root)} }

// Unified tells whether the node has cgroup v2 only.
func (t *Tree) Unified() bool { return cgroup.V2() }

func classOf(pod *corev1.Pod) cgroup.QoS {
	switch podspec.QOS(pod) {
	case corev1.PodQOSBurstable:
		return cgroup.Burstable
	case corev1.PodQOSBestEffort:
		return cgroup.BestEffort
	default:
		return cgroup.Guaranteed
	}
}

func classes() []cgroup.QoS {
	return []cgroup.QoS{cgroup.Guaranteed, cgroup.Burstable, cgroup.BestEffort}
}

// PodPath returns the pod's group.
func (t *Tree) PodPath(pod *corev1.Pod) string {
	return cgroup.Pod(t.root, classOf(pod), string(pod.UID))
}

// Init makes the groups of the classes. Best-effort pods get the least share of the CPU.
func (t *Tree) Init() error {
	for _, class := range classes() {
		var r cgroup.Resources
		if class == cgroup.BestEffort {
			r.CPUShares = uint64(podspec.Shares(0))
		}
		if err := cgroup.Create(cgroup.Class(t.root, class), r); err != nil {
			return err
		}
	}
	return nil
}

// Share gives the burstable class as much of the CPU as its pods asked for together.
func (t *Tree) Share(pods []*corev1.Pod) error {
	sum := int64(0)
	for _, p := range pods {
		if classOf(p) == cgroup.Burstable {
			requests := resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
			sum += requests.Cpu().MilliValue()
		}
	}
	return cgroup.Update(cgroup.Class(t.root, cgroup.Burstable), cgroup.Resources{CPUShares: uint64(podspec.Shares(sum))})
}

// Ensure makes a pod's group with its limits.
func (t *Tree) Ensure(pod *corev1.Pod) error {
	if err := cgroup.Create(t.PodPath(pod), Limits(pod)); err != nil {
		return fmt.Errorf("pod %s: %w", podspec.FullName(pod), err)
	}
	return nil
}

// Limits returns what a pod's group is limited to.
func Limits(pod *corev1.Pod) cgroup.Resources {
	l := podspec.LimitsOf(pod)
	r := cgroup.Resources{CPUShares: uint64(l.Shares), Memory: l.Memory}
	if l.Quota != 0 {
		r.CPUQuota, r.CPUPeriod = l.Quota, podspec.QuotaPeriod
	}
	return r
}

// Resize changes the limits of a pod's group.
func (t *Tree) Resize(pod *corev1.Pod, l podspec.Limits) error {
	r := cgroup.Resources{CPUShares: uint64(l.Shares), CPUQuota: cgroup.Unlimited, CPUPeriod: podspec.QuotaPeriod, Memory: cgroup.Unlimited}
	if l.Quota != 0 {
		r.CPUQuota = l.Quota
	}
	if l.Memory != 0 {
		if usage, err := cgroup.Usage(t.PodPath(pod)); err != nil {
			return fmt.Errorf("resize pod %s: %w", podspec.FullName(pod), err)
		} else if usage.MemoryLimit > uint64(l.Memory) && usage.Memory >= uint64(l.Memory) {
			return fmt.Errorf("cannot decrease memory limits: attempting to set pod memory limit (%d) below current usage (%d)", l.Memory, usage.Memory)
		}
		r.Memory = l.Memory
	}
	if err := cgroup.Update(t.PodPath(pod), r); err != nil {
		return fmt.Errorf("resize pod %s: %w", podspec.FullName(pod), err)
	}
	return nil
}

// removal bounds how long Remove waits for the kernel to let go of a group's last processes.
const removal = 2 * time.Second

// Remove removes a pod's groups, in whichever class they are, and everything below them. The pod's
// sandboxes must have been stopped: a process that is left nevertheless is one that the runtime
// lost track of, and is killed.
func (t *Tree) Remove(uid types.UID) error {
	ctx, cancel := context.WithTimeout(context.Background(), removal)
	defer cancel()
	var failures []error
	for _, class := range classes() {
		name := cgroup.Pod(t.root, class, string(uid))
		failures = append(failures, cgroup.Kill(ctx, name), cgroup.Remove(ctx, name))
	}
	return errors.Join(failures...)
}

// Pods returns the pods that have a group.
func (t *Tree) Pods() ([]types.UID, error) {
	seen := map[types.UID]bool{}
	for _, class := range classes() {
		name := cgroup.Class(t.root, class)
		for _, pattern := range []string{"/sys/fs/cgroup" + name + "/pod*", "/sys/fs/cgroup/*" + name + "/pod*"} {
			dirs, err := filepath.Glob(pattern)
			if err != nil {
				return nil, fmt.Errorf("list control groups of pods: %w", err)
			}
			for _, d := range dirs {
				seen[types.UID(strings.TrimPrefix(filepath.Base(d), "pod"))] = true
			}
		}
	}
	out := make([]types.UID, 0, len(seen))
	for uid := range seen {
		out = append(out, uid)
	}
	return out, nil
}
