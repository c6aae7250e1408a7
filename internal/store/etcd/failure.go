package etcd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"syscall"

	bolt "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/server/v3/etcdserver/api/snap"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap/zapcore"
)

// Why a member cannot go on, as far as that is known; what etcd says of it stands beside it.
var (
	// ErrDiskFull: what it has to write finds no room.
	ErrDiskFull = errors.New("the disk is full")
	// ErrDisk: the disk does not do what it is asked to.
	ErrDisk = errors.New("the disk fails")
	// ErrDamaged: what it wrote before can't be read.
	ErrDamaged = errors.New("the data is damaged")
	// ErrRemoved: the cluster goes on without it, for good.
	ErrRemoved = errors.New("the member was removed from the cluster")
)

// Run returns when ctx ends, or with an error when the member stopped by itself: it was removed, which is ErrRemoved, or
// one of its listeners failed. Close is still to be called. What makes a member stop on the spot goes to Config.Fail.
func (m *Member) Run(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.srv.StopNotify():
		if m.closing.Load() {
			return nil
		}
		return ErrRemoved // etcd stops for nothing else
	case err := <-m.etcd.Err():
		if m.closing.Load() || ctx.Err() != nil {
			return nil
		}
		if err == nil {
			err = errors.New("a listener ended")
		}
		return fmt.Errorf("serve etcd: %w", err)
	}
}

// Removed tells whether the member stops, or has, because the cluster goes on without it.
func (m *Member) Removed() bool { return !m.closing.Load() && m.stopping() } // etcd stops for nothing else

// lastWords hands over what etcd says before it would end the process. Whoever said it is held where it is, as if the
// process had ended there: what it was about to do next must not happen.
type lastWords struct {
	fail func(error)
	halt func()
}

func halt() { select {} }

// OnWrite implements zapcore.CheckWriteHook.
func (l lastWords) OnWrite(e *zapcore.CheckedEntry, fields []zapcore.Field) {
	l.fail(failure(e.Message, errorOf(fields)))
	l.halt()
}

// errorOf is the error among the fields of a message; nil if there is none.
func errorOf(fields []zapcore.Field) error {
	for _, f := range fields {
		if err, ok := f.Interface.(error); ok && f.Type == zapcore.ErrorType {
			return err
		}
	}
	return nil
}

// failure is what etcd's last words come to.
func failure(message string, err error) error {
	said := errors.New(message)
	if err != nil {
		said = fmt.Errorf("%s: %w", message, err)
	}
	if why := because(said); why != nil {
		return fmt.Errorf("%w: %w", why, said)
	}
	return said
}

// because finds out why a member can't go on; nil if that can't be told.
func because(err error) error {
	is := func(list ...error) bool {
		return slices.ContainsFunc(list, func(target error) bool { return errors.Is(err, target) })
	}
	says := func(list ...string) bool {
		return slices.ContainsFunc(list, func(s string) bool { return strings.Contains(err.Error(), s) })
	}
	switch {
	case err == nil:
		return nil
	case is(syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG):
		return ErrDiskFull
	case is(syscall.EIO, syscall.EROFS, syscall.ENODEV, syscall.ENXIO, syscall.ESTALE):
		return ErrDisk
	case is(wal.ErrCRCMismatch, wal.ErrFileNotFound, wal.ErrSnapshotMismatch, wal.ErrSnapshotNotFound, wal.ErrMetadataConflict,
		wal.ErrSliceOutOfRange, wal.ErrDecoderNotFound, snap.ErrNoSnapshot, snap.ErrNoDBSnapshot, snap.ErrEmptySnapshot, snap.ErrCRCMismatch,
		bolt.ErrInvalid, bolt.ErrChecksum, bolt.ErrVersionMismatch, io.ErrUnexpectedEOF):
		return ErrDamaged
	case says("corrupt", "cannot be repaired", "failed to unmarshal", "crc mismatch", "failed to recover v3 backend", "failed to restore"):
		return ErrDamaged
	}
	return nil
}
