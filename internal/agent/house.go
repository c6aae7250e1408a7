package agent

import (
	"context"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

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
		if err := a.cgroups.Share(a.parts.workers.Pods()); err != nil {
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

func (a *Agent) collectImages(ctx context.Context) {
	list, err := a.Runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
	if err != nil {
		return
	}
	inUse := map[string]bool{}
	for _, c := range list.GetContainers() {
		inUse[c.GetImageRef()], inUse[c.GetImageId()], inUse[c.GetImage().GetImage()] = true, true, true
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
