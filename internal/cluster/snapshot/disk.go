package snapshot

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// What a snapshot leaves free on its disk: etcd may be on the same, and ends when that is full. Nobody watches scheduled ones,
// so that they keep further away, from where a node is said to have DiskPressure too, which is below a tenth.
const (
	reserve        = 256 << 20 // bytes
	reservePercent = 15        // of the disk, if that is more
)

// room makes sure that the disk has some for a snapshot and the copy that it is checked by, and refuses when it has none.
// For a scheduled one, older scheduled ones of this server make room, but never the newest.
func (k *Keeper) room(scheduled bool) error {
	free, need, err := k.space(scheduled)
	if err != nil || free >= need {
		return err
	}
	if scheduled {
		if err := k.giveUp(need - free); err != nil {
			return err
		}
		if free, need, err = k.space(scheduled); err != nil || free >= need {
			return err
		}
	}
	return fmt.Errorf("%w: %d MiB are free in %s, and %d MiB are needed: remove old snapshots there, or name another directory with --snapshot-dir",
		ErrNoRoom, free>>20, k.cfg.Dir, need>>20)
}

// space is how many bytes are free, and how many a snapshot needs to be so.
func (k *Keeper) space(scheduled bool) (free, need int64, err error) {
	free, total, err := k.cfg.Disk(k.cfg.Dir)
	need = 2*k.cfg.Source.DatabaseSize() + reserve
	if scheduled {
		need += max(0, total/100*reservePercent-reserve)
	}
	return free, need, err
}

// giveUp removes the oldest scheduled snapshots of this server, if that makes so much room.
func (k *Keeper) giveUp(short int64) error {
	own, err := k.own()
	if err != nil {
		return err
	}
	for _, i := range sacrifice(own, short) {
		if err := os.Remove(filepath.Join(k.cfg.Dir, i.File)); err != nil {
			return err
		}
		k.log.Warn("a snapshot was removed to make room for a new one", "file", i.File, "bytes", i.Bytes)
	}
	return nil
}

// sacrifice chooses as few of the oldest snapshots, which are sorted the newest first, as make so much room; none if all
// but the newest do not.
func sacrifice(list []Info, short int64) []Info {
	for i := len(list) - 1; i > 0; i-- {
		if short -= list[i].Bytes; short <= 0 {
			return list[i:]
		}
	}
	return nil
}

// diskOf is the room that the disk of a directory has for this user, and how large it is, in bytes.
func diskOf(dir string) (free, total int64, err error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, 0, fmt.Errorf("find how much room there is in %s: %w", dir, err)
	}
	return int64(fs.Bavail) * fs.Bsize, int64(fs.Blocks) * fs.Bsize, nil
}

// syncEvery is how many bytes are given to the disk at once: etcd, which waits for every write, may be on the same.
const syncEvery = 8 << 20

// steadyWriter writes to a file so that little of it waits for the disk at any moment.
type steadyWriter struct {
	ctx     context.Context
	f       syncWriter
	pending int
}

// syncWriter is an [os.File].
type syncWriter interface {
	io.Writer
	Sync() error
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
