package local

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cgroup is the machine's control group, as a path below each hierarchy's root. Everything
// that the machine starts is below it in the unified hierarchy; pods are below it in the
// hierarchies that limit them.
func (m *Machine) cgroup() string { return "/barque/" + m.cluster.ID + "/" + m.Name }

// ControlGroup is the machine's control group, as a path below each hierarchy's root. What is below it, in whichever hierarchy,
// goes with the cluster.
func (m *Machine) ControlGroup() string { return m.cgroup() }

// cgroupMounts lists where control group hierarchies are mounted; unified is the v2 one.
func cgroupMounts() (unified string, all []string, err error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return "", nil, fmt.Errorf("list mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	scan := bufio.NewScanner(f)
	for scan.Scan() {
		left, right, ok := strings.Cut(scan.Text(), " - ")
		fields, kinds := strings.Fields(left), strings.Fields(right)
		if !ok || len(fields) < 5 || len(kinds) < 1 {
			continue
		}
		switch kinds[0] {
		case "cgroup2":
			unified = fields[4]
			all = append(all, fields[4])
		case "cgroup":
			all = append(all, fields[4])
		}
	}
	if unified == "" {
		return "", all, errors.New("no cgroup2 hierarchy is mounted: mount one, such as by `mount -t cgroup2 none /sys/fs/cgroup/unified`")
	}
	return unified, all, scan.Err()
}

// makeCgroup makes a group in the unified hierarchy and opens it, to start processes in it.
func makeCgroup(path string) (*os.File, error) {
	unified, _, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	dir := filepath.Join(unified, path)
	err = os.MkdirAll(dir, 0o755)
	if errors.Is(err, fs.ErrNotExist) { // another `barque down` has just removed the empty parent
		err = os.MkdirAll(dir, 0o755)
	}
	if err != nil {
		return nil, fmt.Errorf("make control group %s: %w", path, err)
	}
	f, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open control group %s: %w", path, err)
	}
	return f, nil
}

// processesIn lists the processes in a group of the unified hierarchy; none if there is no such
// group.
func processesIn(path string) (pids []int) {
	unified, _, err := cgroupMounts()
	if err != nil {
		return nil
	}
	data, err := os.ReadFile(filepath.Join(unified, path, "cgroup.procs"))
	if err != nil {
		return nil
	}
	for _, field := range strings.Fields(string(data)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

// killCgroup kills every process in the group and below, at once, and waits until none is
// left. It does nothing when there is no such group.
func killCgroup(ctx context.Context, path string) error {
	unified, _, err := cgroupMounts()
	if err != nil {
		return err
	}
	dir := filepath.Join(unified, path)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		// Again and again: a process that is executing a program just now can miss it.
		err := os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("kill control group %s: %w", path, err)
		}
		events, err := os.ReadFile(filepath.Join(dir, "cgroup.events"))
		if err != nil || strings.Contains(string(events), "populated 0") {
			return nil //nolint:nilerr // a group that vanished holds no process
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes in control group %s do not end: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// Pods lists the pods of which a container runs on the machine, by their UIDs, as the kernel knows them: those with processes in
// two control groups at least, one of which is the sandbox's. Nobody who may be wrong, or late, is asked.
func (m *Machine) Pods() ([]string, error) {
	unified, _, err := cgroupMounts()
	if err != nil {
		return nil, err
	}
	// …/kubepods/pod<uid>/<container>, or …/kubepods/<class>/pod<uid>/<container>
	containers := map[string]int{}
	for _, pattern := range []string{"pod*/*", "*/pod*/*"} {
		found, err := filepath.Glob(filepath.Join(unified, m.cgroup(), "kubepods", pattern, "cgroup.events"))
		if err != nil {
			return nil, fmt.Errorf("list the pods of %s: %w", m.Name, err)
		}
		for _, path := range found {
			uid, ok := strings.CutPrefix(filepath.Base(filepath.Dir(filepath.Dir(path))), "pod")
			if events, err := os.ReadFile(path); ok && err == nil && strings.Contains(string(events), "populated 1") {
				containers[uid]++
			}
		}
	}
	var running []string
	for uid, n := range containers {
		if n > 1 {
			running = append(running, uid)
		}
	}
	slices.Sort(running)
	return running, nil
}

// removeCgroup removes the group and those below it from every hierarchy.
func removeCgroup(path string) error {
	_, mounts, err := cgroupMounts()
	if err != nil && len(mounts) == 0 {
		return err
	}
	var errs []error
	for _, mount := range mounts {
		var dirs []string
		_ = filepath.WalkDir(filepath.Join(mount, path), func(p string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				dirs = append(dirs, p)
			}
			return nil
		})
		for _, dir := range slices.Backward(dirs) {
			if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
				errs = append(errs, fmt.Errorf("remove control group %s: %w", dir, err))
			}
		}
	}
	return errors.Join(errs...)
}

// removeEmptyCgroup removes the group from every hierarchy in which it is empty.
func removeEmptyCgroup(path string) {
	_, mounts, _ := cgroupMounts()
	for _, mount := range mounts {
		_ = unix.Rmdir(filepath.Join(mount, path))
	}
}

// detachBelow detaches every mount below a directory.
func detachBelow(dir string) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var points []string
	for line := range strings.Lines(string(data)) {
		fields := strings.Fields(line)
		if len(fields) < 5 {
			continue
		}
		point := unescapeMount.Replace(fields[4])
		if point == dir || strings.HasPrefix(point, dir+"/") {
			points = append(points, point)
		}
	}
	var errs []error
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil &&
			!errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// unescapeMount undoes the kernel's escapes in mountinfo (proc_pid_mountinfo(5)).
var unescapeMount = strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
