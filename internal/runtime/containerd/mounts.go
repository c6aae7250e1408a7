package containerd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// mountPoint is one line of mountinfo (proc_pid_mountinfo(5)).
type mountPoint struct {
	path   string
	shared bool
}

// mounts lists the mounts that this process sees, in the order they were made.
func mounts() ([]mountPoint, error) {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("list mounts: %w", err)
	}
	return parseMounts(string(data)), nil
}

// parseMounts reads the lines of mountinfo; malformed ones are skipped.
func parseMounts(info string) []mountPoint {
	// The kernel writes space, tab, newline and backslash in octal.
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	var all []mountPoint
	for line := range strings.Lines(info) {
		fields := strings.Fields(line)
		end := slices.Index(fields, "-")
		if end < 6 {
			continue
		}
		all = append(all, mountPoint{
			path: unescape.Replace(fields[4]),
			shared: slices.ContainsFunc(fields[6:end], func(option string) bool {
				return strings.HasPrefix(option, "shared:")
			}),
		})
	}
	return all
}

// makeShared makes dir a mount whose propagation is shared, unless it is already inside one.
// Without that, mounts that a container makes in a volume could not be seen by others, and
// Kubernetes' Bidirectional mount propagation fails.
func makeShared(dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	if at, ok := holding(all, dir); ok && at.shared {
		return nil
	}
	if at, ok := holding(all, dir); !ok || at.path != dir {
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind %s to itself: %w", dir, err)
		}
	}
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share the mounts below %s: %w", dir, err)
	}
	return nil
}

// holding returns the mount that a path is in: of those that contain it the deepest, and of
// several at one place the last.
func holding(all []mountPoint, path string) (mountPoint, bool) {
	best, found := mountPoint{}, false
	for _, m := range all {
		if !within(path, m.path) || (found && len(m.path) < len(best.path)) {
			continue
		}
		best, found = m, true
	}
	return best, found
}

// within reports whether path is dir or below it.
func within(path, dir string) bool {
	return path == dir || dir == "/" || strings.HasPrefix(path, dir+"/")
}

// unmountBelow takes away every mount at or below dir, the last one first. Those in use
// vanish when they are no longer.
func unmountBelow(dir string) error {
	all, err := mounts()
	if err != nil {
		return err
	}
	var errs []error
	for _, m := range slices.Backward(all) {
		if !within(m.path, dir) {
			continue
		}
		err := unix.Unmount(m.path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		// EINVAL and ENOENT say that it went with another one.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmount %s: %w", m.path, err))
		}
	}
	return errors.Join(errs...)
}
