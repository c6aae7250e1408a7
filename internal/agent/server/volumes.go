package server

import (
	"context"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	stats "k8s.io/kubelet/pkg/apis/stats/v1alpha1"
)

// claimed knows where on the node the claims of pods are. A claim that a pod uses cannot be bound
// anew, so each is looked up once in a pod's life rather than whenever somebody collects numbers.
type claimed struct {
	mu    sync.Mutex
	paths map[claimedVolume]string
}

type claimedVolume struct {
	pod    types.UID
	volume string
}

// path returns where a volume is, which find finds out if it is not known.
func (c *claimed) path(pod types.UID, volume string, find func() (string, error)) (string, error) {
	key := claimedVolume{pod, volume}
	c.mu.Lock()
	path, ok := c.paths[key]
	c.mu.Unlock()
	if ok {
		return path, nil
	}
	path, err := find()
	if err != nil {
		return "", err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paths == nil {
		c.paths = map[claimedVolume]string{}
	}
	c.paths[key] = path
	return path, nil
}

// keep forgets every pod but these.
func (c *claimed) keep(pods []*corev1.Pod) {
	live := make(map[types.UID]bool, len(pods))
	for _, p := range pods {
		live[p.UID] = true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for key := range c.paths {
		if !live[key.pod] {
			delete(c.paths, key)
		}
	}
}

// volumes returns the numbers of the pod's volumes that are claims. Those that cannot be looked at
// are left out.
func (s *Server) volumes(ctx context.Context, pod *corev1.Pod) []stats.VolumeStats {
	var out []stats.VolumeStats
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		claim := ""
		switch {
		case v.PersistentVolumeClaim != nil:
			claim = v.PersistentVolumeClaim.ClaimName
		case v.Ephemeral != nil:
			claim = pod.Name + "-" + v.Name // of a generic ephemeral volume (KEP-1698)
		default:
			continue
		}
		path, err := s.claims.path(pod.UID, v.Name, func() (string, error) { return s.VolumePath(ctx, pod, v) })
		if err != nil {
			s.Log.Debug("looking for a claim's volume failed", "namespace", pod.Namespace, "claim", claim, "err", err)
			continue
		}
		fs, err := statFS(path)
		if err != nil {
			s.Log.Debug("a claim's volume cannot be measured", "namespace", pod.Namespace, "claim", claim, "err", err)
			continue
		}
		out = append(out, stats.VolumeStats{FsStats: fs, Name: v.Name, PVCRef: &stats.PVCReference{Namespace: pod.Namespace, Name: claim}})
	}
	return out
}

// statFS measures the file system that a path is on.
func statFS(path string) (stats.FsStats, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return stats.FsStats{}, fmt.Errorf("measure file system of %s: %w", path, err)
	}
	block := uint64(st.Bsize)
	capacity, available, used := st.Blocks*block, st.Bavail*block, (st.Blocks-st.Bfree)*block
	inodes, free, taken := st.Files, st.Ffree, st.Files-st.Ffree
	return stats.FsStats{
		Time: metav1.NewTime(time.Now()), CapacityBytes: &capacity, AvailableBytes: &available, UsedBytes: &used,
		Inodes: &inodes, InodesFree: &free, InodesUsed: &taken,
	}, nil
}
