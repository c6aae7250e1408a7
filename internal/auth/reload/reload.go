// Package reload keeps what was made of a file up to date with the file, without a restart.
//
// A file is applied again when its content has changed. What cannot be used is refused as a
// whole: what was made of the content before it stays, and metrics and the log tell.
package reload

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"time"

	"k8s.io/apiserver/pkg/util/filesystem"
)

// poll is how often a file is looked at that nobody was told of, as in stock Kubernetes: on
// file systems without notifications, and after Apply asked for another try.
const poll = time.Minute

// ErrRetry, wrapped in what Apply returns, says that the same content may be good later.
var ErrRetry = errors.New("it may work later")

// Config says what to follow and how.
type Config struct {
	// Path is what to follow: a file, or a directory with its immediate children.
	Path string
	// Read returns the content; nil reads the file at Path.
	Read func() ([]byte, error)
	// Apply uses a new content. With an error nothing may have changed.
	Apply func(ctx context.Context, content []byte) error
	// Applied and Failed, unless nil, are told how it went, for metrics.
	Applied func(content []byte)
	Failed  func()
	// Log is never nil.
	Log *slog.Logger
}

// File follows a file. Run runs once.
type File struct {
	config Config
	last   []byte
}

// New follows a file whose content current has been applied already.
func New(config Config, current []byte) *File {
	if config.Read == nil {
		config.Read = func() ([]byte, error) { return os.ReadFile(config.Path) }
	}
	return &File{config: config, last: bytes.Clone(current)}
}

// Run follows the file until ctx ends. It always returns nil: a file that cannot be read is
// reported and looked for again.
func (f *File) Run(ctx context.Context) error {
	filesystem.WatchUntil(ctx, poll, f.config.Path, func() { f.check(ctx) }, func(err error) {
		f.config.Log.Warn("a configuration file can't be watched and is looked at now and then instead",
			"path", f.config.Path, "every", poll, "error", err)
	})
	return nil
}

// check applies the content if it is not the one that was seen last.
func (f *File) check(ctx context.Context) {
	content, err := f.config.Read()
	if err == nil && bytes.Equal(content, f.last) {
		return
	}
	if err == nil {
		err = f.config.Apply(ctx, content)
	} else {
		err = errors.Join(err, ErrRetry)
	}
	if ctx.Err() != nil {
		return
	}
	if err == nil || !errors.Is(err, ErrRetry) {
		f.last = bytes.Clone(content) // what is wrong for good is reported once
	}
	if err != nil {
		f.config.Log.Error("a changed configuration file is not used: the one before stays in force", "path", f.config.Path, "error", err)
		call(f.config.Failed)
		return
	}
	f.config.Log.Info("a changed configuration file is in force", "path", f.config.Path)
	if f.config.Applied != nil {
		f.config.Applied(content)
	}
}

func call(f func()) {
	if f != nil {
		f()
	}
}
