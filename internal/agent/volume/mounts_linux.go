package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/podspec"
)

// Mounts returns a container's volume mounts for the runtime. Sub-paths are resolved inside their
// volume by the kernel and bound to a place of the agent's, so that what a container does to the
// volume meanwhile cannot lead the mount outside. images holds what the runtime calls the images that
// are volumes, by volume.
func (m *Manager) Mounts(ctx context.Context, pod *corev1.Pod, c *corev1.Container, env []podspec.Var, images map[string]string) ([]*runtimeapi.Mount, error) {
	var out []*runtimeapi.Mount
	for i := range c.VolumeMounts {
		vm := &c.VolumeMounts[i]
		v := Of(pod, vm.Name)
		if v == nil {
			return nil, fmt.Errorf("container %s mounts %q: the pod has no such volume", c.Name, vm.Name)
		}
		sub := vm.SubPath
		if vm.SubPathExpr != "" {
			var err error
			if sub, err = expandSubPath(vm.SubPathExpr, env); err != nil {
				return nil, err
			}
		}
		mount := &runtimeapi.Mount{
			ContainerPath: absolute(vm.MountPath),
			Readonly:      vm.ReadOnly || alwaysReadOnly(v),
			Propagation:   propagation(vm.MountPropagation),
		}
		if v.Image != nil {
			if images[vm.Name] == "" {
				return nil, fmt.Errorf("volume %q: image %s is not on the node", vm.Name, v.Image.Reference)
			}
			mount.Image = &runtimeapi.ImageSpec{Image: images[vm.Name], UserSpecifiedImage: v.Image.Reference}
			mount.ImageSubPath = sub
		} else {
			var err error
			if mount.HostPath, err = m.HostPath(ctx, pod, v); err != nil {
				return nil, fmt.Errorf("volume %q: %w", vm.Name, err)
			}
			if sub != "" {
				target := filepath.Join(m.PodDir(pod.UID), "volume-subpaths", vm.Name, c.Name, strconv.Itoa(i))
				if mount.HostPath, err = bindSubPath(mount.HostPath, sub, target); err != nil {
					return nil, fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, c.Name, err)
				}
			}
		}
		if vm.ReadOnly && vm.RecursiveReadOnly != nil && *vm.RecursiveReadOnly != corev1.RecursiveReadOnlyDisabled {
			mount.RecursiveReadOnly = *vm.RecursiveReadOnly == corev1.RecursiveReadOnlyEnabled
		}
		out = append(out, mount)
	}
	return out, nil
}

// Of returns the pod's volume of that name; nil if it has none.
func Of(pod *corev1.Pod, name string) *corev1.Volume {
	for i := range pod.Spec.Volumes {
		if pod.Spec.Volumes[i].Name == name {
			return &pod.Spec.Volumes[i]
		}
	}
	return nil
}

func absolute(path string) string {
	if filepath.IsAbs(path) {
		return path
	}
	return "/" + path
}

// alwaysReadOnly: what comes from the API goes one way only, and images do not change (KEP-4639).
func alwaysReadOnly(v *corev1.Volume) bool {
	_, _, content := contentKind(v)
	return content || v.Image != nil || v.PersistentVolumeClaim != nil && v.PersistentVolumeClaim.ReadOnly
}

func propagation(p *corev1.MountPropagationMode) runtimeapi.MountPropagation {
	if p == nil {
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	}
	switch *p {
	case corev1.MountPropagationHostToContainer:
		return runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER
	case corev1.MountPropagationBidirectional:
		return runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL
	default:
		return runtimeapi.MountPropagation_PROPAGATION_PRIVATE
	}
}

func expandSubPath(expr string, env []podspec.Var) (string, error) {
	vars := make(map[string]string, len(env))
	for _, v := range env {
		vars[v.Name] = v.Value
	}
	sub, err := podspec.ExpandAll(expr, vars)
	if err != nil {
		return "", fmt.Errorf("subPathExpr %q: %w", expr, err)
	}
	if filepath.IsAbs(sub) {
		return "", fmt.Errorf("subPathExpr %q must not be absolute: %q", expr, sub)
	}
	return sub, nil
}

// bindSubPath mounts volume/sub at target, making a folder if nothing is there, and returns target.
func bindSubPath(volume, sub, target string) (string, error) {
	// When the container is started again, what it mounted may since have been replaced.
	if err := unmountBelow(target); err != nil {
		return "", err
	}
	fd, err := openBeneath(volume, sub)
	if err != nil {
		return "", err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return "", err
	}
	// Not RemoveAll: were the volume still mounted there, it would lose its contents.
	if err := os.Remove(target); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		err = os.Mkdir(target, 0o750)
	} else {
		err = os.WriteFile(target, nil, 0o640)
	}
	if err != nil {
		return "", err
	}
	if err := unix.Mount("/proc/self/fd/"+strconv.Itoa(fd), target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
		return "", fmt.Errorf("bind %s: %w", sub, err)
	}
	return target, nil
}

// openBeneath opens volume/sub without ever leaving the volume, and makes it a folder if it is missing.
func openBeneath(volume, sub string) (int, error) {
	root, err := os.OpenRoot(volume)
	if err != nil {
		return -1, err
	}
	defer root.Close()
	if _, err := root.Stat(sub); errors.Is(err, fs.ErrNotExist) {
		if err := root.MkdirAll(sub, 0o750); err != nil {
			return -1, fmt.Errorf("make %s: %w", sub, err)
		}
		if info, err := root.Stat("."); err == nil {
			if err := root.Chmod(sub, info.Mode().Perm()|info.Mode()&fs.ModeSetgid); err != nil {
				return -1, fmt.Errorf("set mode of %s: %w", sub, err)
			}
		}
	}
	dir, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open %s: %w", volume, err)
	}
	defer unix.Close(dir)
	fd, err := unix.Openat2(dir, sub, &unix.OpenHow{
		Flags:   unix.O_PATH | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("open %s inside the volume: %w", sub, err)
	}
	return fd, nil
}
