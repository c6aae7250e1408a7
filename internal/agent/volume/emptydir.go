package volume

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	corev1 "k8s.io/api/core/v1"
	resourcehelper "k8s.io/component-helpers/resource"

	"barque.dev/internal/agent/podspec"
)

// emptyDir makes an empty folder, in memory if the pod wants it there.
func (m *Manager) emptyDir(pod *corev1.Pod, v *corev1.Volume, facts podspec.Facts) error {
	dir := m.path(pod.UID, "empty-dir", v.Name)
	_, err := os.Lstat(dir)
	fresh := errors.Is(err, fs.ErrNotExist)
	if err := makeDir(dir, 0o777); err != nil {
		return err
	}
	switch v.EmptyDir.Medium {
	case corev1.StorageMediumDefault:
	case corev1.StorageMediumMemory:
		mounted, err := mountPoint(dir)
		if err != nil {
			return err
		}
		fresh = !mounted
		if err := ensureTmpfs(dir, memoryLimit(pod, v, facts)); err != nil {
			return err
		}
	default:
		return fmt.Errorf("medium %q: %w", v.EmptyDir.Medium, ErrUnsupported)
	}
	if group := fsGroup(pod); group != nil && fresh {
		return giveToGroup(dir, *group, false)
	}
	return nil
}

// memoryLimit is the size of a volume in memory: what it is limited to, and never more than what
// the pod or the node has.
func memoryLimit(pod *corev1.Pod, v *corev1.Volume, facts podspec.Facts) int64 {
	size := facts.Allocatable.Memory().Value()
	limits := resourcehelper.PodLimits(pod, resourcehelper.PodResourcesOptions{})
	if limit := limits.Memory().Value(); limit > 0 && everyMemoryLimited(pod) && (size == 0 || limit < size) {
		size = limit
	}
	if v.EmptyDir.SizeLimit != nil && v.EmptyDir.SizeLimit.Value() > 0 && (size == 0 || v.EmptyDir.SizeLimit.Value() < size) {
		size = v.EmptyDir.SizeLimit.Value()
	}
	return size
}

// everyMemoryLimited: a sum of limits bounds a pod only if all of its containers have one.
func everyMemoryLimited(pod *corev1.Pod) bool {
	for i := range pod.Spec.Containers {
		if pod.Spec.Containers[i].Resources.Limits.Memory().IsZero() {
			return false
		}
	}
	return true
}

// giveToGroup lets a group read and, unless readOnly, write everything at and below dir; new files
// inherit the group.
func giveToGroup(dir string, group int64, readOnly bool) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if err := os.Lchown(path, -1, int(group)); err != nil {
			return err
		}
		if d.Type()&fs.ModeSymlink != 0 {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		add := fs.FileMode(0o440)
		if !readOnly {
			add = 0o660
		}
		mode := info.Mode().Perm() | add
		if d.IsDir() {
			mode |= 0o110 | fs.ModeSetgid
		}
		return os.Chmod(path, mode)
	})
}

// Usage returns the bytes that the files below dir take on disk.
func Usage(dir string) (int64, error) {
	var sum int64
	err := filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		} else if err != nil {
			return err
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum, err
}

// Oversized returns a sentence about an emptyDir volume that outgrew its limit, or "".
func (m *Manager) Oversized(pod *corev1.Pod) string {
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.IsZero() || v.EmptyDir.Medium == corev1.StorageMediumMemory {
			continue
		}
		used, err := Usage(m.path(pod.UID, "empty-dir", v.Name))
		if err == nil && used > v.EmptyDir.SizeLimit.Value() {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	return ""
}

// checkHostPath makes sure that what is at a hostPath is what the pod expects there.
func checkHostPath(h *corev1.HostPathVolumeSource) error {
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	info, err := os.Stat(h.Path)
	missing := errors.Is(err, fs.ErrNotExist)
	if err != nil && !missing {
		return fmt.Errorf("hostPath %s: %w", h.Path, err)
	}
	switch {
	case kind == corev1.HostPathUnset:
		return nil
	case kind == corev1.HostPathDirectoryOrCreate && missing:
		return os.MkdirAll(h.Path, 0o755)
	case kind == corev1.HostPathFileOrCreate && missing:
		f, err := os.OpenFile(h.Path, os.O_CREATE|os.O_RDONLY, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	case missing:
		return fmt.Errorf("hostPath type check failed: %s does not exist", h.Path)
	}
	mode := info.Mode()
	ok := false
	switch kind {
	case corev1.HostPathDirectoryOrCreate, corev1.HostPathDirectory:
		ok = mode.IsDir()
	case corev1.HostPathFileOrCreate, corev1.HostPathFile:
		ok = mode.IsRegular()
	case corev1.HostPathSocket:
		ok = mode&fs.ModeSocket != 0
	case corev1.HostPathCharDev:
		ok = mode&fs.ModeCharDevice != 0
	case corev1.HostPathBlockDev:
		ok = mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0
	}
	if !ok {
		return fmt.Errorf("hostPath type check failed: %s is not a %s", h.Path, kind)
	}
	return nil
}
