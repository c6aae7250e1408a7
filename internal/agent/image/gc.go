package image

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Thresholds say when images are removed, in percent of the disk they are on.
type Thresholds struct {
	// High starts the removal, Low ends it; a High of 100 never does.
	High, Low int64
	// MinAge spares images that came or were used a moment ago.
	MinAge time.Duration
}

// DefaultThresholds are the stock kubelet's.
func DefaultThresholds() Thresholds { return Thresholds{High: 85, Low: 80, MinAge: 2 * time.Minute} }

// Check tells what is wrong with the percentages.
func (t Thresholds) Check() error {
	if t.Low < 0 || t.High > 100 || t.Low >= t.High {
		return fmt.Errorf("image removal begins at %d %% of the disk and ends at %d %%: choose percentages of which the first is the higher one", t.High, t.Low)
	}
	return nil
}

// Candidate is an image that could be removed.
type Candidate struct {
	ID   string
	Size int64
	Used time.Time
}

// Choose returns the images to remove, those used longest ago first, until at least need bytes
// are freed.
func Choose(candidates []Candidate, need int64, now time.Time, minAge time.Duration) []Candidate {
	list := append([]Candidate(nil), candidates...)
	sort.SliceStable(list, func(i, j int) bool { return list[i].Used.Before(list[j].Used) })
	var out []Candidate
	for _, c := range list {
		if need <= 0 {
			break
		}
		if now.Sub(c.Used) < minAge {
			continue
		}
		out = append(out, c)
		need -= c.Size
	}
	return out
}

// Collect removes unused images if the disk is too full. inUse holds the ids of images that
// containers were made from. It returns the bytes freed.
func (p *Puller) Collect(ctx context.Context, inUse map[string]bool, th Thresholds) (int64, error) {
	list, err := p.images.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err != nil {
		return 0, fmt.Errorf("list images: %w", err)
	}
	now := p.now()
	known := map[string]bool{}
	var candidates []Candidate
	p.mu.Lock()
	for _, i := range list.GetImages() {
		known[i.GetId()] = true
		if _, seen := p.used[i.GetId()]; !seen || inUse[i.GetId()] {
			p.used[i.GetId()] = now
		}
		if !inUse[i.GetId()] && !i.GetPinned() {
			candidates = append(candidates, Candidate{ID: i.GetId(), Size: int64(i.GetSize()), Used: p.used[i.GetId()]})
		}
	}
	for id := range p.used {
		if !known[id] {
			delete(p.used, id)
		}
	}
	p.mu.Unlock()

	used, size, err := p.disk(ctx)
	if err != nil || size == 0 || th.High == 100 || used*100 < size*th.High {
		return 0, err
	}
	var freed int64
	var failures []error
	for _, c := range Choose(candidates, used-size*th.Low/100, now, th.MinAge) {
		if _, err := p.images.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: c.ID}}); err != nil {
			failures = append(failures, fmt.Errorf("remove image %s: %w", c.ID, err))
			continue
		}
		freed += c.Size
	}
	return freed, errors.Join(failures...)
}

// disk returns how much of the disk with the images is used, and its size, in bytes.
func (p *Puller) disk(ctx context.Context) (used, size int64, err error) {
	info, err := p.images.ImageFsInfo(ctx, &runtimeapi.ImageFsInfoRequest{})
	if err != nil {
		return 0, 0, fmt.Errorf("image file system: %w", err)
	}
	systems := info.GetImageFilesystems()
	if len(systems) == 0 {
		return 0, 0, nil
	}
	var st unix.Statfs_t
	if err := unix.Statfs(systems[0].GetFsId().GetMountpoint(), &st); err != nil {
		return 0, 0, fmt.Errorf("image file system %s: %w", systems[0].GetFsId().GetMountpoint(), err)
	}
	size = int64(st.Blocks) * st.Bsize
	return size - int64(st.Bavail)*st.Bsize, size, nil
}
