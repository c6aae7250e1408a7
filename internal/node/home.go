package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// home is a machine's data directory, which one process holds at a time.
type home struct {
	dir  string
	lock *os.File
	// made is the topmost directory that this start made; "" when dir was there.
	made string
	// fresh: nothing was in dir before this start, and nothing in it is worth keeping yet.
	fresh bool
}

// openHome makes the directory if need be, and takes it.
func openHome(dir string) (*home, error) {
	h := &home{dir: dir}
	entries, err := os.ReadDir(dir)
	switch {
	case errors.Is(err, os.ErrNotExist):
		h.made, h.fresh = topmostMissing(dir), true
	case err == nil:
		h.fresh = len(entries) == 0
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("--data-dir %s can't be made (%w): choose a directory that this user may write to", dir, cause(err))
	}
	h.lock, err = os.OpenFile(h.path("lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s can't be written to (%w): choose a directory that this user may write to", dir, cause(err))
	}
	if err := unix.Flock(int(h.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = h.lock.Close()
		return nil, fmt.Errorf("another barque runs with the data directory %s: end it first, or choose another --data-dir", dir)
	}
	return h, nil
}

// cause is what the system said, without the path, which the sentence around it names.
func cause(err error) error {
	var p *os.PathError
	if errors.As(err, &p) {
		return p.Err
	}
	return err
}

// topmostMissing is the first directory on the way to dir that does not exist.
func topmostMissing(dir string) string {
	for {
		parent := filepath.Dir(dir)
		if _, err := os.Stat(parent); err == nil || parent == dir {
			return dir
		}
		dir = parent
	}
}

// keep notes that the machine is about to be part of a cluster: what is in the directory must
// outlive a start that fails.
func (h *home) keep() { h.fresh = false }

// close lets go of the directory. A start that failed before anything was worth keeping leaves
// nothing behind.
func (h *home) close() {
	if h.fresh {
		entries, _ := os.ReadDir(h.dir)
		for _, e := range entries {
			_ = os.RemoveAll(h.path(e.Name()))
		}
		if h.made != "" {
			_ = os.RemoveAll(h.made)
		}
	}
	_ = h.lock.Close()
}

func (h *home) path(parts ...string) string {
	return filepath.Join(append([]string{h.dir}, parts...)...)
}

// member tells which cluster, by the hash of its CA, this machine is a member of; "" for none.
func (h *home) member() (string, error) {
	data, err := os.ReadFile(h.path("joined"))
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read which cluster this machine belongs to: %w", err)
	}
	return strings.TrimSpace(string(data)), nil
}

// markMember notes that this machine is a member of the cluster from now on.
func (h *home) markMember(hash string) error {
	if err := os.WriteFile(h.path("joined"), []byte(hash+"\n"), 0o600); err != nil {
		return fmt.Errorf("note which cluster this machine belongs to: %w", err)
	}
	h.keep()
	return nil
}

// checkRole refuses a directory in which the other kind of machine lived.
func (h *home) checkRole(role string) error {
	if _, err := os.Lstat(h.path(restoringMark)); err == nil {
		return fmt.Errorf("%s is half restored from a snapshot: run `barque snapshot restore` again", h.dir)
	}
	name := h.path("role")
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist) && !h.fresh:
		return h.checkForeign(role)
	case errors.Is(err, os.ErrNotExist):
		return h.setRole(role)
	case err != nil:
		return fmt.Errorf("read this machine's role: %w", err)
	case strings.TrimSpace(string(data)) != role:
		return fmt.Errorf("%s is the data directory of a barque %s: choose another --data-dir for this %s", h.dir, strings.TrimSpace(string(data)), role)
	}
	return nil
}

// brought is what may be in a directory that no barque has run in: what a file system has, and what an
// administrator brings along who restores a cluster.
var brought = []string{"lock", "lost+found", "pki", "etcd", snapshotsDir, restoringMark, stageDir}

// checkForeign refuses a directory that holds something of somebody else's.
func (h *home) checkForeign(role string) error {
	entries, err := os.ReadDir(h.dir)
	if err != nil {
		return fmt.Errorf("read %s: %w", h.dir, err)
	}
	for _, e := range entries {
		if !slices.Contains(brought, e.Name()) {
			_ = os.Remove(h.path("lock"))
			return fmt.Errorf("%s holds %s, which is not of barque: choose an empty --data-dir for this %s", h.dir, e.Name(), role)
		}
	}
	return h.setRole(role)
}

func (h *home) setRole(role string) error {
	if err := os.WriteFile(h.path("role"), []byte(role+"\n"), 0o600); err != nil {
		return fmt.Errorf("note this machine's role: %w", err)
	}
	return nil
}
