package fault

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Where the kernel's block controller is found: in a hierarchy of its own.
const blockControl = "/sys/fs/cgroup/blkio"

const writeLimit = "blkio.throttle.write_iops_device"

// canThrottle tells why no disk can be slowed down here, if none can.
func canThrottle() error {
	if _, err := os.Stat(filepath.Join(blockControl, "cgroup.procs")); err != nil {
		return fmt.Errorf("the kernel's blkio controller is not mounted at %s", blockControl)
	}
	return nil
}

// throttle bounds the writes of a process to the device that a directory is on, by a control group of the name (the
// kernel's Documentation/admin-guide/cgroup-v1/blkio-controller.rst). A write that waits for the disk, such as of a log
// that is synced, waits for its turn there. 0 lifts the bound, and takes the group away; the process may have ended.
//
// The kernel counts what a process waits for itself. What it writes without waiting, and the file system's own
// journal, which the kernel's threads write, are not held back.
func throttle(pid int, dir, group string, writesPerSecond int) error {
	path := filepath.Join(blockControl, group)
	if writesPerSecond == 0 {
		return release(pid, path)
	}
	device, err := deviceOf(dir)
	if err != nil {
		return fmt.Errorf("slow the disk below %s down: %w", dir, err)
	}
	if err := os.MkdirAll(path, 0o755); err != nil {
		return fmt.Errorf("slow a disk down: %w", err)
	}
	rule := fmt.Sprintf("%s %d", device, writesPerSecond)
	if err := os.WriteFile(filepath.Join(path, writeLimit), []byte(rule), 0); err != nil {
		return errors.Join(fmt.Errorf("slow device %s down: %w", device, err), release(pid, path))
	}
	if err := move(pid, path); err != nil {
		return errors.Join(err, release(pid, path))
	}
	return nil
}

// release moves the process out of the group, and whatever else is in it, and removes it. What a process has started since
// stays in its groups of the other hierarchies.
func release(pid int, path string) error {
	data, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("lift the bound of a disk: %w", err)
	}
	var errs []error
	for _, field := range strings.Fields(string(data)) {
		if member, err := strconv.Atoi(field); err == nil {
			errs = append(errs, move(member, blockControl))
		}
	}
	if pid != 0 {
		errs = append(errs, move(pid, blockControl))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := unix.Rmdir(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("lift the bound of a disk: remove %s: %w", path, err)
	}
	return nil
}

// move moves a process to a control group, unless it has ended.
func move(pid int, group string) error {
	err := os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("move process %d to control group %s: %w", pid, group, err)
	}
	return nil
}

// deviceOf is the number of the disk, major:minor, that a directory's file system is on. The kernel bounds whole disks
// only, not their partitions.
func deviceOf(dir string) (string, error) {
	var st unix.Stat_t
	if err := unix.Stat(dir, &st); err != nil {
		return "", fmt.Errorf("look at %s: %w", dir, err)
	}
	number := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	block, err := filepath.EvalSymlinks("/sys/dev/block/" + number)
	if err != nil {
		return "", fmt.Errorf("%s is on no block device of its own: choose a directory on ext4 or xfs: %w", dir, err)
	}
	if _, err := os.Stat(filepath.Join(block, "partition")); err != nil {
		return number, nil //nolint:nilerr // it is a whole disk
	}
	whole, err := os.ReadFile(filepath.Join(filepath.Dir(block), "dev"))
	if err != nil {
		return "", fmt.Errorf("find the disk of partition %s: %w", number, err)
	}
	return strings.TrimSpace(string(whole)), nil
}
