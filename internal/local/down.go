package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Down removes every trace of the cluster in dir: processes, network namespaces, links,
// mounts, control groups and files. It needs nothing to be in order: it works after a crash
// half-way, and when the state file is gone. It goes on after an error, and returns them all.
func Down(ctx context.Context, dir string, progress func(format string, args ...any)) error {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return fmt.Errorf("directory %s: %w", dir, err)
	}
	if os.Geteuid() != 0 {
		return errors.New("removing a local cluster needs root: run it with sudo")
	}
	if _, err := os.Stat(dir); errors.Is(err, os.ErrNotExist) {
		progress("there is no cluster in %s", dir)
		return nil
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := ours(dir); err != nil {
		return err
	}

	c, err := Load(dir)
	if err != nil {
		// All names follow from the directory; the machines' are found by their prefix.
		c = &Cluster{Dir: dir, ID: clusterID(dir)}
	}
	progress("ending the processes of %d machines", len(c.Machines))
	errs := []error{killCgroup(ctx, "/barque/"+c.ID)}
	progress("removing mounts, control groups, links and network namespaces")
	for _, m := range c.Machines {
		errs = append(errs, m.clean(ctx))
	}
	errs = append(errs, detachBelow(dir), removeCgroup("/barque/"+c.ID), c.removeNetwork())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%w; run `barque down --dir %s` again", err, dir)
	}
	progress("removing %s", dir)
	return removeFiles(dir)
}

// ours refuses to remove a directory that no `barque up` has made.
func ours(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() == stateFile {
			return nil
		}
	}
	if len(entries) <= 1 { // the lock
		return nil
	}
	return fmt.Errorf("%s holds no local cluster (no %s in it); nothing was removed", dir, stateFile)
}

// removeNetwork deletes the bridge, the cables and the namespaces by the cluster's prefix, so
// that none is forgotten.
func (c *Cluster) removeNetwork() error {
	var errs []error
	links, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	for _, l := range links {
		name := l.Attrs().Name
		if name == c.bridge() || len(name) > len(c.bridge()) && name[:len(c.bridge())+1] == c.bridge()+"-" {
			if err := netlink.LinkDel(l); err != nil {
				errs = append(errs, fmt.Errorf("remove link %s: %w", name, err))
			}
		}
	}
	names, err := filepath.Glob("/run/netns/barque-" + c.ID + "-*")
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, name := range names {
		if err := netns.DeleteNamed(filepath.Base(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove network namespace %s: %w", filepath.Base(name), err))
		}
	}
	return errors.Join(errs...)
}

// removeFiles deletes the directory's content, the state file last: should it be interrupted,
// `barque down` still knows the directory as its own.
func removeFiles(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	for _, e := range entries {
		if e.Name() == stateFile || e.Name() == "lock" {
			continue
		}
		if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
			return fmt.Errorf("remove the cluster's files: %w", err)
		}
	}
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove the cluster's files: %w", err)
	}
	return nil
}
