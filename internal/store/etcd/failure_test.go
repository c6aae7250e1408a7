package etcd

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"syscall"
	"testing"

	bolt "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.uber.org/zap"
)

func TestBecause(t *testing.T) {
	path := func(err error) error {
		return &os.PathError{Op: "write", Path: "/data/etcd/member/wal/0.wal", Err: err}
	}
	for name, tt := range map[string]struct {
		message string
		err     error
		want    error
	}{
		"full":              {"failed to save Raft hard state and entries", path(syscall.ENOSPC), ErrDiskFull},
		"over quota":        {"failed to commit tx", path(syscall.EDQUOT), ErrDiskFull},
		"broken":            {"failed to save Raft hard state and entries", path(syscall.EIO), ErrDisk},
		"read only":         {"failed to commit tx", path(syscall.EROFS), ErrDisk},
		"damaged log":       {"failed to read WAL, cannot be repaired", wal.ErrCRCMismatch, ErrDamaged},
		"damaged database":  {"failed to open database", bolt.ErrChecksum, ErrDamaged},
		"cut off":           {"failed to repair WAL", io.ErrUnexpectedEOF, ErrDamaged},
		"said by raft":      {"tocommit(107) is out of range [lastIndex(84)]. Was the raft log corrupted, truncated, or lost?", nil, ErrDamaged},
		"something unknown": {"unsupported bootstrap config", nil, nil},
	} {
		err := failure(tt.message, tt.err)
		if !strings.Contains(err.Error(), tt.message) || (tt.err != nil && !errors.Is(err, tt.err)) {
			t.Errorf("%s: %v does not say what etcd said", name, err)
		}
		for _, kind := range []error{ErrDiskFull, ErrDisk, ErrDamaged, ErrRemoved} {
			if errors.Is(err, kind) != (kind == tt.want) {
				t.Errorf("%s: %v, want %v", name, err, tt.want)
			}
		}
	}
	if because(nil) != nil {
		t.Error("no error has a reason")
	}
}

// What etcd says last is handed over, and whoever said it goes no further. Other messages are no last words.
func TestLastWords(t *testing.T) {
	for name, say := range map[string]func(*zap.Logger){
		"fatal":   func(l *zap.Logger) { l.Fatal("no more", zap.String("path", "x"), zap.Error(syscall.ENOSPC)) },
		"panic":   func(l *zap.Logger) { l.Panic("no more", zap.Error(syscall.ENOSPC)) },
		"by name": func(l *zap.Logger) { l.Named("raft").Sugar().Panicf("no more: %v", syscall.ENOSPC) },
		"error":   func(l *zap.Logger) { l.Error("no more", zap.Error(syscall.ENOSPC)) },
	} {
		var said []error
		cfg := Config{Log: slog.New(slog.DiscardHandler), Fail: func(err error) { said = append(said, err) }}
		further, done := false, make(chan struct{})
		go func() {
			defer close(done)
			say(cfg.zap(runtime.Goexit))
			further = true
		}()
		<-done
		if further != (name == "error") || len(said) == 1 == (name == "error") {
			t.Errorf("%s: goes on %v, said %v", name, further, said)
		}
		if len(said) == 1 && !strings.HasSuffix(said[0].Error(), fmt.Sprintf("no more: %v", syscall.ENOSPC)) {
			t.Errorf("%s: said %v", name, said)
		}
	}
}
