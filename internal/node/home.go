package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// home is a machine's data directory, which one process holds at a time.
type home struct {
	dir  string
	lock *os.File
}

// openHome makes the directory if need be, and takes it.
func openHome(dir string) (*home, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("take the data directory: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("another barque runs with the data directory %s: end it first, or choose another --data-dir", dir)
	}
	return &home{dir: dir, lock: f}, nil
}

func (h *home) close() { _ = h.lock.Close() }

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
	return nil
}

// checkRole refuses a directory in which the other kind of machine lived.
func (h *home) checkRole(role string) error {
	name := h.path("role")
	data, err := os.ReadFile(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return os.WriteFile(name, []byte(role+"\n"), 0o600)
	case err != nil:
		return fmt.Errorf("read this machine's role: %w", err)
	case strings.TrimSpace(string(data)) != role:
		return fmt.Errorf("%s is the data directory of a barque %s: choose another --data-dir for this %s", h.dir, strings.TrimSpace(string(data)), role)
	}
	return nil
}
