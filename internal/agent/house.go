package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	kubelettypes "k8s.io/kubelet/pkg/types"

	"barque.dev/internal/agent/cri"
	"barque.dev/internal/agent/logs"
)

// The intervals of housekeeping.
const (
	houseInterval = 10 * time.Second
	orphanEvery   = 6  // houseIntervals
	imagesEvery   = 30 // houseIntervals
)

// keepHouse rotates logs, watches volumes' sizes, and removes what nobody uses.
func (a *Agent) keepHouse(ctx context.Context) error {
	ticker := time.NewTicker(houseInterval)
	defer ticker.Stop()
	for round := 1; ; round++ {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
		if err := logs.DefaultRotation().Running(ctx, a.Runtime, a.spec.ContainerLog, time.Now()); err != nil && ctx.Err() == nil {
			a.Log.Warn("rotating logs", "err", err)
		}
		for _, pod := range a.parts.workers.Pods() {
			if message := a.parts.volumes.Oversized(pod); message != "" {
				a.parts.workers.Evict(pod.UID, "Evicted", message)
			}
		}
		if err := a.cgroups.Share(a.parts.workers.Allocated()); err != nil {
			a.Log.Debug("sharing the CPU among classes", "err", err)
		}
		if round%orphanEvery == 0 && a.known.Load() {
			a.removeOrphans()
		}
		if round%imagesEvery == 0 {
			a.collectImages(ctx)
		}
	}
}

// removeOrphans removes folders and cgroups of pods that have no worker any more.
func (a *Agent) removeOrphans() {
	folders, err := a.parts.volumes.Pods()
	if err != nil {
		a.Log.Warn("looking for folders of pods that are gone", "err", err)
	}
	cgroups, err := a.cgroups.Pods()
	if err != nil {
		a.Log.Warn("looking for cgroups of pods that are gone", "err", err)
	}
	for _, uid := range folders {
		if !a.parts.workers.Known(uid) {
			if err := a.parts.volumes.Remove(uid); err != nil {
				a.Log.Warn("removing the folder of a pod that is gone", "uid", uid, "err", err)
			}
		}
	}
	for _, uid := range cgroups {
		if !a.parts.workers.Known(uid) {
			if err := a.cgroups.Remove(uid); err != nil {
				a.Log.Warn("removing the cgroup of a pod that is gone", "uid", uid, "err", err)
			}
		}
	}
}

// mountedImages returns the images that containers of these pods have as volumes.
func mountedImages(ctx context.Context, rt cri.Runtime, pods []*corev1.Pod, containers []*runtimeapi.Container) ([]string, error) {
	asked := map[string]bool{}
	for _, pod := range pods {
		asked[string(pod.UID)] = slices.ContainsFunc(pod.Spec.Volumes, func(v corev1.Volume) bool { return v.Image != nil })
	}
	var out []string
	for _, c := range containers {
		if !asked[c.GetLabels()[kubelettypes.KubernetesPodUIDLabel]] {
			continue
		}
		reply, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.GetId()})
		if cri.NotFound(err) {
			continue
		} else if err != nil {
			return nil, fmt.Errorf("status of container %s: %w", c.GetId(), err)
		}
		for _, m := range reply.GetStatus().GetMounts() {
			if m.GetImage() != nil {
				out = append(out, m.GetImage().GetImage())
			}
		}
	}
	return out, nil
}

func (a *Agent) collectImages(ctx context.Context) {
	list, err := a.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return
	}
	inUse := map[string]bool{}
	for _, c := range list.GetContainers() {
		inUse[c.GetImageRef()], inUse[c.GetImageId()], inUse[c.GetImage().GetImage()] = true, true, true
	}
	mounted, err := mountedImages(ctx, a.Runtime, a.parts.workers.Pods(), list.GetContainers())
	if err != nil {
		a.Log.Warn("looking for images that containers mount", "err", err)
		return
	}
	for _, id := range mounted {
		inUse[id] = true
	}
	freed, err := a.parts.puller.Collect(ctx, inUse, a.ImageGC)
	if err != nil {
		a.Log.Warn("removing unused images", "err", err)
	}
	if freed > 0 {
		a.Log.Info("removed unused images", "bytes", freed)
		a.node.Wake()
	}
}
