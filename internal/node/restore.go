package node

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"barque.dev/internal/cluster/snapshot"
	"barque.dev/internal/pki"
	"barque.dev/internal/store/etcd"
)

// RestoreOptions say what a data directory is made of.
type RestoreOptions struct {
	// File is a snapshot, of Barque's or of etcd's tools.
	File string
	// DataDir is what `barque server` is started with afterwards.
	DataDir string
	// At is the revision to go back to; 0 for the newest, or that at AtTime, unless that is zero.
	At     int64
	AtTime time.Time
	// Replace allows DataDir to hold a server's data. It is moved aside, not removed.
	Replace bool
	// KeysDir is the directory pki of a server of the cluster, for a snapshot that lacks the keys.
	KeysDir string
	// Now is the time.
	Now time.Time
}

// Restored is what Restore did.
type Restored struct {
	*snapshot.Contents
	// Revision is the one that was gone back to, or the newest.
	Revision int64
	// Aside is where the data went that was there before; "" for none.
	Aside string
	// NewKeys: the cluster's keys are made when the server starts.
	NewKeys bool
}

const (
	// stageDir is where a restore prepares what it puts in place, in a data directory.
	stageDir = ".restore"
	// restoringMark is there while it does so: a server must not start with half of it.
	restoringMark = "restoring"
)

// Restore makes the data directory of the first server of a cluster from a snapshot. Nothing is changed unless the
// snapshot is well. When it was interrupted it can be done again, and no server starts before.
func Restore(ctx context.Context, o RestoreOptions) (*Restored, error) {
	dir, err := filepath.Abs(o.DataDir)
	if err != nil {
		return nil, fmt.Errorf("--data-dir %s: %w", o.DataDir, err)
	}
	h, err := openHome(dir)
	if err != nil {
		return nil, err
	}
	defer h.close()
	if err := h.checkRestorable(o.Replace); err != nil {
		return nil, err
	}
	stage := h.path(stageDir)
	if err := os.RemoveAll(stage); err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(stage) }()
	if err := os.Mkdir(stage, 0o700); err != nil {
		return nil, err
	}
	contents, record, err := readSnapshot(ctx, o.File, stage)
	if err != nil {
		return nil, err
	}
	keys, err := h.keysFor(o, contents, record)
	if err != nil {
		return nil, err
	}
	if !o.AtTime.IsZero() {
		if o.At, err = revisionAt(ctx, contents.Database, o.AtTime); err != nil {
			return nil, err
		}
	}
	err = etcd.Restore(ctx, etcd.RestoreConfig{Database: contents.Database, DataDir: filepath.Join(stage, "etcd"), At: o.At})
	if errors.Is(err, etcd.ErrNotKept) {
		return nil, fmt.Errorf("--at %d: %w", o.At, err)
	}
	if err != nil {
		return nil, err
	}
	r := &Restored{Contents: contents, Revision: cmp.Or(o.At, contents.Info.Revision), NewKeys: keys == nil}
	h.keep()
	r.Aside, err = h.put(contents, keys, o.Now)
	return r, err
}

// revisionAt finds the revision that a database had at a time.
func revisionAt(ctx context.Context, database string, at time.Time) (int64, error) {
	times, err := snapshot.ReadTimes(ctx, database)
	if err != nil {
		return 0, err
	}
	revision, err := times.Until(at)
	if err != nil {
		return 0, fmt.Errorf("--at %s: %w", at.Local().Format(time.DateTime), err)
	}
	return revision, nil
}

// checkRestorable refuses a directory that a restore could do harm to.
func (h *home) checkRestorable(replace bool) error {
	role, err := os.ReadFile(h.path("role"))
	switch {
	case err == nil && strings.TrimSpace(string(role)) != "server":
		return fmt.Errorf("%s is the data directory of a barque %s: choose another --data-dir for the server", h.dir, strings.TrimSpace(string(role)))
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("read this machine's role: %w", err)
	}
	entries, readErr := os.ReadDir(h.dir)
	if readErr != nil {
		return fmt.Errorf("read %s: %w", h.dir, readErr)
	}
	for _, e := range entries {
		switch {
		case err != nil && !slices.Contains(brought, e.Name()): // nobody's role
			_ = os.Remove(h.path("lock"))
			return fmt.Errorf("%s holds %s, which is not of barque: choose an empty --data-dir", h.dir, e.Name())
		case (e.Name() == "etcd" || e.Name() == "joined") && !replace:
			return fmt.Errorf("%s holds a server's data: choose an empty --data-dir, or add --replace, which moves what is in the way aside", h.dir)
		}
	}
	return nil
}

// keysFor finds the cluster's keys: those in the directory, which may be newer, in the snapshot, or where the user
// says. None are needed for the state of another Kubernetes than Barque's; then nil is returned.
func (h *home) keysFor(o RestoreOptions, c *snapshot.Contents, record []byte) (keys *pki.Authorities, err error) {
	here, err := pki.Open(h.path("pki"))
	if err != nil && !errors.Is(err, pki.ErrNotFound) {
		return nil, fmt.Errorf("the cluster's keys in %s: %w", h.path("pki"), err)
	}
	switch {
	case c.Manifest != nil:
		keys, err = authoritiesOf(c)
	case o.KeysDir != "":
		if keys, err = pki.Open(o.KeysDir); err != nil {
			err = fmt.Errorf("--keys: %w", err)
		}
	default:
		keys, err = here, nil
	}
	switch {
	case err != nil:
		return nil, err
	case here != nil && here.Cluster.Hash() != keys.Cluster.Hash():
		return nil, fmt.Errorf("%s holds the keys of another cluster than the snapshot is of: choose an empty --data-dir", h.path("pki"))
	case keys == nil && record != nil:
		return nil, errors.New("the Secrets in the snapshot are encrypted, with keys that need the cluster's own: give them with --keys DIR, the directory pki of any server of that cluster")
	case here != nil:
		keys = here
	}
	if keys != nil {
		if err := opens(keys, record); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// put replaces what is in the directory by what was prepared, and returns where the old went. A server does not
// start while that is half done.
func (h *home) put(c *snapshot.Contents, keys *pki.Authorities, now time.Time) (aside string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("put what was restored into %s: %w", h.dir, err)
		}
	}()
	if err := pki.WriteFile(h.path(restoringMark), nil, 0o600); err != nil {
		return "", err
	}
	aside = "before-restore-" + now.UTC().Format("20060102T150405Z")
	moved, err := h.moveAside(aside, "etcd", "joined", "members.json", "encryption")
	if err != nil {
		return "", err
	}
	if err := h.writeIdentity(c, keys); err != nil {
		return "", err
	}
	if err := os.Rename(h.path(stageDir, "etcd"), h.path("etcd")); err != nil {
		return "", err
	}
	if keys != nil {
		if err := pki.WriteFile(h.path("joined"), []byte(keys.Cluster.Hash()+"\n"), 0o600); err != nil {
			return "", err
		}
	}
	if err := os.Remove(h.path(restoringMark)); err != nil {
		return "", err
	}
	if !moved {
		return "", nil
	}
	return h.path(aside), nil
}

// moveAside moves what is there of the named into a directory.
func (h *home) moveAside(to string, names ...string) (moved bool, err error) {
	for _, name := range names {
		if _, err := os.Lstat(h.path(name)); errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.MkdirAll(h.path(to), 0o700); err != nil {
			return moved, err
		}
		if err := os.Rename(h.path(name), h.path(to, name)); err != nil {
			return moved, err
		}
		moved = true
	}
	return moved, nil
}

// writeIdentity writes what makes the machine a server of the cluster, beside etcd.
func (h *home) writeIdentity(c *snapshot.Contents, keys *pki.Authorities) error {
	if _, err := pki.Open(h.path("pki")); keys != nil && errors.Is(err, pki.ErrNotFound) {
		bundle, err := keys.Bundle()
		if err != nil {
			return err
		}
		if _, err := pki.Import(h.path("pki"), bundle); err != nil {
			return err
		}
	}
	if c.Manifest != nil {
		facts, err := json.Marshal(c.Manifest.Facts)
		if err != nil {
			return err
		}
		if err := pki.WriteFile(h.path("facts.json"), facts, 0o600); err != nil {
			return err
		}
	}
	return pki.WriteFile(h.path("role"), []byte("server\n"), 0o600)
}
