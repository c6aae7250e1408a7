package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// diskFile holds the machine's disk, where it has one of its own ([Options.DiskSize]).
func (m *Machine) diskFile() string { return m.DataDir() + ".disk" }

// fillerFile takes the room on the machine's disk.
func (m *Machine) fillerFile() string { return filepath.Join(m.DataDir(), "filler") }

// CheckDisks tells why machines can't have disks of their own here, if they can't.
func CheckDisks() error {
	if _, err := mkfs(); err != nil {
		return err
	}
	if _, err := os.Stat(loopControl); err != nil {
		return fmt.Errorf("a disk for each machine needs loop devices: %w", err)
	}
	return nil
}

const loopControl = "/dev/loop-control"

// mkfs finds the program that makes a file system. It need not be in a sudo user's PATH.
func mkfs() (string, error) {
	const name = "mkfs.ext4"
	if path, err := exec.LookPath(name); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path := filepath.Join(dir, name); unix.Access(path, unix.X_OK) == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("a disk for each machine needs %s: install e2fsprogs", name)
}

// attachDisks gives every server its disk, where they have disks of their own. What a machine has been is known by what is on it.
func (c *Cluster) attachDisks(ctx context.Context, size int64) error {
	for _, m := range c.Machines {
		if size > 0 && m.Role == RoleServer {
			if err := m.attachDisk(ctx, size); err != nil {
				return err
			}
		}
	}
	return nil
}

// attachDisk mounts the machine's disk at its data directory, and makes it if there is none.
func (m *Machine) attachDisk(ctx context.Context, size int64) error {
	if err := os.MkdirAll(m.DataDir(), 0o700); err != nil {
		return fmt.Errorf("make %s's data directory: %w", m.Name, err)
	}
	if mounted(m.DataDir()) {
		return nil
	}
	if _, err := os.Stat(m.diskFile()); errors.Is(err, os.ErrNotExist) {
		if err := m.makeDisk(ctx, size); err != nil {
			return err
		}
	}
	// A file system that is mounted twice, by two devices, is lost.
	if err := await(ctx, func() bool { return !looped(m.diskFile()) }); err != nil {
		return fmt.Errorf("the disk of %s is in use still: %w", m.Name, err)
	}
	device, err := loop(m.diskFile())
	if err != nil {
		return fmt.Errorf("attach the disk of %s: %w", m.Name, err)
	}
	// The mount keeps the device, which goes with it.
	defer func() { _ = device.Close() }()
	if err := unix.Mount(device.Name(), m.DataDir(), "ext4", unix.MS_RELATIME, ""); err != nil {
		return fmt.Errorf("mount the disk of %s at %s: %w", m.Name, m.DataDir(), err)
	}
	return os.Chmod(m.DataDir(), 0o700)
}

// makeDisk makes an empty file system. What is half made has another name.
func (m *Machine) makeDisk(ctx context.Context, size int64) error {
	program, err := mkfs()
	if err != nil {
		return err
	}
	made := m.diskFile() + ".new"
	f, err := os.Create(made)
	if err == nil {
		err = errors.Join(f.Truncate(size), f.Close())
	}
	if err != nil {
		return fmt.Errorf("make the disk of %s: %w", m.Name, err)
	}
	// No room is set aside for root, as which servers run, and little for files: there are few.
	if out, err := exec.CommandContext(ctx, program, "-q", "-F", "-m", "0", "-i", "32768", made).CombinedOutput(); err != nil {
		return fmt.Errorf("make the disk of %s: %s: %w", m.Name, strings.TrimSpace(string(out)), err)
	}
	return os.Rename(made, m.diskFile())
}

// looped tells whether there is a block device of a file. The last one goes when the last process has let go of what was mounted.
func looped(path string) bool {
	backing, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	return slices.ContainsFunc(backing, func(name string) bool {
		data, err := os.ReadFile(name)
		return err == nil && strings.TrimSpace(string(data)) == path
	})
}

// detachTimeout bounds how long it takes until nobody uses a disk whose machine was powered off.
const detachTimeout = 20 * time.Second

func await(ctx context.Context, so func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, detachTimeout)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !so() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
	return nil
}

// loop makes a block device of a file. It is gone once nobody uses it.
func loop(path string) (*os.File, error) {
	control, err := os.OpenFile(loopControl, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = control.Close() }()
	file, err := os.OpenFile(path, os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = file.Close() }()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find a free loop device: %w", err)
		}
		device, err := os.OpenFile(fmt.Sprint("/dev/loop", n), os.O_RDWR|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, err
		}
		config := unix.LoopConfig{Fd: uint32(file.Fd()), Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR}}
		copy(config.Info.File_name[:len(config.Info.File_name)-1], path)
		err = unix.IoctlLoopConfigure(int(device.Fd()), &config)
		if err == nil {
			return device, nil
		}
		_ = device.Close()
		if !errors.Is(err, unix.EBUSY) { // somebody else was faster
			return nil, fmt.Errorf("configure %s: %w", device.Name(), err)
		}
	}
}

// mounted tells whether something is mounted at exactly that path.
func mounted(path string) bool {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) > 4 && unescapeMount.Replace(fields[4]) == path {
			return true
		}
	}
	return false
}

// Fill takes all the room on the machine's disk, or gives it back. The machine must have a disk of its own: nobody fills the
// one of all.
func (m *Machine) Fill(full bool) error {
	if !mounted(m.DataDir()) {
		if !full {
			return nil
		}
		return fmt.Errorf("fill the disk of %s: it has none of its own", m.Name)
	}
	if !full {
		if err := os.Remove(m.fillerFile()); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("make room on the disk of %s: %w", m.Name, err)
		}
		return nil
	}
	f, err := os.OpenFile(m.fillerFile(), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("fill the disk of %s: %w", m.Name, err)
	}
	defer func() { _ = f.Close() }()
	if err := takeRoom(f); err != nil {
		return fmt.Errorf("fill the disk of %s: %w", m.Name, err)
	}
	return nil
}

// takeRoom makes a file as large as it can be. What others give back meanwhile is taken, too.
func takeRoom(f *os.File) error {
	const largest, smallest = 1 << 30, 1 << 12
	end := int64(0)
	for size := int64(largest); size >= smallest; {
		err := unix.Fallocate(int(f.Fd()), 0, end, size)
		switch {
		case err == nil:
			end += size
		case errors.Is(err, unix.ENOSPC):
			size /= 2
		case !errors.Is(err, unix.EINTR):
			return err
		}
	}
	return nil
}

// Wipe ends everything on the machine, and removes all that it kept: who starts it next finds a machine that has never been
// in a cluster.
func (m *Machine) Wipe(ctx context.Context) error {
	if err := m.PowerOff(ctx); err != nil {
		return err
	}
	if err := detachBelow(m.DataDir()); err != nil {
		return err
	}
	for _, path := range []string{m.DataDir(), m.diskFile(), m.pidFile()} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove what %s kept: %w", m.Name, err)
		}
	}
	return nil
}
