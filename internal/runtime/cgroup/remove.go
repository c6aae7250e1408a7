package cgroup

import (
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

	"github.com/opencontainers/cgroups"
)

// removeRetry is how long to wait between attempts to remove or empty a group: the kernel lets
// go of processes that were killed a moment later.
const removeRetry = 5 * time.Millisecond

// Pids returns the processes in a group and in all below it, in all hierarchies, in ascending
// order. A group that does not exist has none.
func Pids(name string) ([]int, error) {
	dirs, err := directories(name)
	if err != nil {
		return nil, fmt.Errorf("list processes of cgroup %s: %w", name, err)
	}
	var all []int
	for _, dir := range dirs {
		groups, err := tree(dir)
		if err != nil {
			return nil, fmt.Errorf("list processes of cgroup %s: %w", name, err)
		}
		for _, group := range groups {
			pids, err := processes(group)
			if err != nil {
				return nil, fmt.Errorf("list processes of cgroup %s: %w", name, err)
			}
			all = append(all, pids...)
		}
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

// processes reads the processes of one directory. Those that this process's PID namespace does
// not contain are shown as 0 and left out.
func processes(dir string) ([]int, error) {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.procs"))
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EOPNOTSUPP):
		return nil, nil // removed meanwhile, or a threaded group, whose processes its parent lists
	case err != nil:
		return nil, err
	}
	var pids []int
	for _, field := range strings.Fields(string(data)) {
		pid, err := strconv.Atoi(field)
		if err != nil {
			return nil, fmt.Errorf("%s/cgroup.procs: %w", dir, err)
		}
		if pid > 0 {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}

// Kill kills every process in a group and in all below it, and returns when none is left or
// ctx ends. A process that forks meanwhile does not escape.
func Kill(ctx context.Context, name string) error {
	self := os.Getpid()
	for {
		pids, err := Pids(name)
		if err != nil {
			return fmt.Errorf("kill cgroup %s: %w", name, err)
		}
		if len(pids) == 0 {
			return nil
		}
		if slices.Contains(pids, self) {
			return fmt.Errorf("kill cgroup %s: this process is in it", name)
		}
		if err := killAll(name, pids); err != nil {
			return fmt.Errorf("kill cgroup %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("kill cgroup %s: %d processes do not end: %w", name, len(pids), context.Cause(ctx))
		case <-time.After(removeRetry):
		}
	}
}

// killAll kills the processes given, and in cgroup v2 also those that they fork meanwhile.
func killAll(name string, pids []int) error {
	dirs, err := directories(name)
	if err != nil {
		return err
	}
	for _, dir := range dirs {
		// Only v2 has this file, and only since Linux 5.14; the signals below are enough, if
		// repeated often enough.
		_ = os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0)
		// A frozen v1 group takes no signal.
		_ = os.WriteFile(filepath.Join(dir, "freezer.state"), []byte("THAWED"), 0)
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("process %d: %w", pid, err)
		}
	}
	return nil
}

// Remove removes a group and all below it, in every hierarchy, once no process is left in
// them; it tries until ctx ends. Removing a group that does not exist succeeds.
func Remove(ctx context.Context, name string) error {
	for {
		dirs, err := directories(name)
		if err != nil {
			return fmt.Errorf("remove cgroup %s: %w", name, err)
		}
		var errs []error
		for _, dir := range dirs {
			errs = append(errs, removeTree(dir))
		}
		err = errors.Join(errs...)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("remove cgroup %s: %w", name, err)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("remove cgroup %s: %w (%w)", name, err, context.Cause(ctx))
		case <-time.After(removeRetry):
		}
	}
}

// removeTree removes one directory and those below it, the deepest first.
func removeTree(dir string) error {
	groups, err := tree(dir)
	if err != nil {
		return err
	}
	for _, group := range slices.Backward(groups) {
		if err := unix.Rmdir(group); err != nil && !errors.Is(err, unix.ENOENT) {
			return &fs.PathError{Op: "rmdir", Path: group, Err: err}
		}
	}
	return nil
}

// tree lists dir and the directories below it, parents first; nothing if there is none.
func tree(dir string) ([]string, error) {
	var dirs []string
	err := filepath.WalkDir(dir, func(p string, d fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENODEV):
			return nil
		case err != nil:
			return err
		case d.IsDir():
			dirs = append(dirs, p)
		}
		return nil
	})
	return dirs, err
}

// directories returns where a group is, or would be, in each hierarchy that is mounted: the
// v1 ones, the named one of systemd, and the v2 one.
func directories(name string) ([]string, error) {
	if err := check(name); err != nil {
		return nil, err
	}
	if V2() {
		return []string{filepath.Join("/sys/fs/cgroup", name)}, nil
	}
	mounts, err := cgroups.GetCgroupMounts(true)
	if err != nil {
		return nil, err
	}
	var dirs []string
	for _, m := range mounts {
		dirs = append(dirs, filepath.Join(m.Mountpoint, name))
	}
	if cgroups.IsCgroup2HybridMode() {
		dirs = append(dirs, filepath.Join("/sys/fs/cgroup/unified", name))
	}
	slices.Sort(dirs)
	return slices.Compact(dirs), nil
}
