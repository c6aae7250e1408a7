package node

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endPoll is how often it is looked whether a process has ended.
const endPoll = 50 * time.Millisecond

// AwaitEnd waits until no barque runs with the data directory.
func AwaitEnd(ctx context.Context, dir string) error {
	for {
		unlock, err := tryLock(dir)
		if err == nil {
			unlock()
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the barque with the data directory %s does not end: %w", dir, ctx.Err())
		case <-time.After(endPoll):
		}
	}
}

// tryLock takes a data directory that is there.
func tryLock(dir string) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrNotExist) {
		return func() {}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("open the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}

// Purge removes the data directory of a machine that has left. What is mounted below it is let go of first: it may be somebody
// else's.
func Purge(dir string) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("--data-dir %s: %w", dir, err)
	}
	if err := (&home{dir: dir}).checkLeft(); !errors.Is(err, ErrLeft) {
		return errors.Join(fmt.Errorf("%s is not the data directory of a machine that has left: nothing was removed", dir), err)
	}
	unlock, err := tryLock(dir)
	if err != nil {
		return fmt.Errorf("a barque runs with the data directory %s: end it first", dir)
	}
	defer unlock()
	real, err := filepath.EvalSymlinks(dir)
	if err != nil {
		return fmt.Errorf("find the data directory: %w", err)
	}
	mounted, err := mountsBelow(real)
	if err != nil {
		return err
	}
	for _, m := range slices.Backward(mounted) {
		if err := unix.Unmount(m, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			return fmt.Errorf("unmount %s: %w: nothing was removed", m, err)
		}
	}
	if mounted, err = mountsBelow(real); err != nil || len(mounted) > 0 {
		return errors.Join(fmt.Errorf("something is still mounted below %s: %v: nothing was removed", dir, mounted), err)
	}
	return removeAll(dir)
}

// removeAll removes a directory, the mark that its machine has left last: should it be interrupted, it can be done again. A directory that is
// itself a mount stays, empty.
func removeAll(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read the data directory: %w", err)
	}
	for _, e := range entries {
		if e.Name() == leftFile {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the data directory: %w", err)
		}
	}
	if err := os.Remove(filepath.Join(dir, leftFile)); err != nil {
		return fmt.Errorf("remove the data directory: %w", err)
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("remove the data directory: %w", err)
	}
	return nil
}

// mountsBelow lists what is mounted below a directory, in the order in which it was.
func mountsBelow(dir string) ([]string, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list the mounts: %w", err)
	}
	defer func() { _ = f.Close() }()
	var list []string
	const pointField = 4 // proc_pid_mountinfo(5)
	plain := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		fields := strings.Fields(lines.Text())
		if len(fields) <= pointField {
			continue
		}
		if point := plain.Replace(fields[pointField]); strings.HasPrefix(point, dir+"/") {
			list = append(list, point)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("list the mounts: %w", err)
	}
	return list, nil
}
