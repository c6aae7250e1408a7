package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"

	"github.com/vishvananda/netlink"
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
		// All names follow from the directory: what the kernel still has is found without it.
		progress("there is no cluster in %s", dir)
		return (&Cluster{Dir: dir, ID: clusterID(dir)}).removeKernelObjects(ctx)
	}
	unlock, err := lock(dir)
	if err != nil {
		return err
	}
	defer unlock()
	if err := ours(dir); err != nil {
		_ = os.Remove(filepath.Join(dir, lockFile))
		return err
	}

	c, err := Load(dir)
	if err != nil {
		c = &Cluster{Dir: dir, ID: clusterID(dir)}
		c.findMachines()
	}
	progress("ending the processes of %d machines", len(c.Machines))
	if err := c.removeKernelObjects(ctx); err != nil {
		return fmt.Errorf("%w; run `barque down --dir %s` again", err, dir)
	}
	progress("removing %s", dir)
	return removeFiles(dir)
}

// removeKernelObjects removes everything but files. It goes on after an error, and returns all.
func (c *Cluster) removeKernelObjects(ctx context.Context) error {
	errs := []error{killCgroup(ctx, "/barque/"+c.ID)}
	for _, m := range c.Machines {
		errs = append(errs, m.clean(ctx))
	}
	errs = append(errs, detachBelow(c.Dir), removeCgroup("/barque/"+c.ID), c.removeNetwork())
	// The group of all local clusters, unless there is another one.
	removeEmptyCgroup("/barque")
	return errors.Join(errs...)
}

// machineDir is how the machines' data directories are named.
var machineDir = regexp.MustCompile(`^(server|agent)-[0-9]+$`)

// findMachines finds the machines by their data directories, for want of a state file.
func (c *Cluster) findMachines() {
	entries, _ := os.ReadDir(c.Dir)
	for _, e := range entries {
		if e.IsDir() && machineDir.MatchString(e.Name()) {
			c.add(&Machine{Name: e.Name()})
		}
	}
}

// ours refuses a directory that holds something else than a local cluster: `barque up` would mix
// it with its own, and `barque down` would remove it.
func ours(dir string) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	foreign := ""
	for _, e := range entries {
		switch e.Name() {
		case stateFile:
			return nil
		case lockFile, stateFile + ".new", "lost+found":
		default:
			foreign = e.Name()
		}
	}
	if foreign == "" {
		return nil
	}
	return fmt.Errorf("%s holds no local cluster but other things, such as %s: choose another --dir; nothing was changed", dir, foreign)
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
	names, err := filepath.Glob(filepath.Join(namespaceDir, "barque-"+c.ID+"-*"))
	if err != nil {
		return fmt.Errorf("list network namespaces: %w", err)
	}
	for _, name := range names {
		errs = append(errs, deleteNamespace(filepath.Base(name)))
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
		if e.Name() == stateFile || e.Name() == lockFile {
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
