package snapshot

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// reserve is what a snapshot leaves free on its disk, in bytes: etcd may be on the same, and ends when that is full.
const reserve = 256 << 20

// room refuses when the disk has none for a snapshot and the copy that it is checked by.
func (k *Keeper) room() error {
	need := 2*k.cfg.Source.DatabaseSize() + reserve
	free, err := k.cfg.Free(k.cfg.Dir)
	if err != nil {
		return err
	}
	if free < need {
		return fmt.Errorf("%w: %d MiB are free in %s, and %d MiB are needed: remove old snapshots there, or name another directory with --snapshot-dir",
			ErrNoRoom, free>>20, k.cfg.Dir, need>>20)
	}
	return nil
}

// freeBytes is the room that the disk of a directory has for this user.
func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, fmt.Errorf("find how much room there is in %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

// syncEvery is how many bytes are given to the disk at once: etcd, which waits for every write, may be on the same.
const syncEvery = 8 << 20

// steadyWriter writes to a file so that little of it waits for the disk at any moment.
type steadyWriter struct {
	ctx     context.Context
	f       *os.File
	pending int
}

func (w *steadyWriter) Write(b []byte) (int, error) {
	if err := w.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := w.f.Write(b)
	w.pending += n
	if err == nil && w.pending >= syncEvery {
		w.pending = 0
		err = w.f.Sync()
	}
	return n, err
}

// syncDir makes a rename in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return d.Sync()
}
