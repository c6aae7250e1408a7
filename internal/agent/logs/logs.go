// Package logs rotates and reads containers' logs, files in CRI's format below a folder for each
// pod.
package logs

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"

	"barque.dev/internal/agent/cri"
)

// Rotation says how large logs grow.
type Rotation struct {
	// MaxSize is the size, in bytes, from which a log is put aside.
	MaxSize int64
	// MaxFiles is how many files a container's log has at most, the present one included.
	MaxFiles int
}

// DefaultRotation is the stock kubelet's.
func DefaultRotation() Rotation { return Rotation{MaxSize: 10 << 20, MaxFiles: 5} }

const (
	stampFormat = "20060102-150405"
	gz          = ".gz"
	partial     = ".tmp"
)

// Rotate puts the log at path aside if it is too large. reopen tells the runtime to go on in a new
// file.
func (r Rotation) Rotate(path string, now time.Time, reopen func() error) error {
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	if info.Size() < r.MaxSize {
		return nil
	}
	old, err := rotated(path)
	if err != nil {
		return err
	}
	// Room for the one that is about to be put aside, and for the new one.
	for keep := max(r.MaxFiles-2, 0); len(old) > keep; old = old[1:] {
		if err := os.Remove(old[0]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("rotate log: %w", err)
		}
	}
	for _, f := range old {
		if !strings.HasSuffix(f, gz) {
			if err := compress(f); err != nil {
				return fmt.Errorf("compress log: %w", err)
			}
		}
	}
	aside := path + "." + now.UTC().Format(stampFormat)
	if err := os.Rename(path, aside); err != nil {
		return fmt.Errorf("rotate log: %w", err)
	}
	if err := reopen(); err != nil {
		// The runtime still writes to the old file: leave it where it was.
		return errors.Join(fmt.Errorf("reopen log: %w", err), os.Rename(aside, path))
	}
	return nil
}

// rotated returns the files that were put aside, the oldest first, and clears away what a
// compression that was cut short has left.
func rotated(path string) ([]string, error) {
	matches, err := filepath.Glob(path + ".*")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, m := range matches {
		if strings.HasSuffix(m, partial) {
			if err := os.Remove(m); err != nil {
				return nil, err
			}
			continue
		}
		out = append(out, m)
	}
	sort.Strings(out)
	return out, nil
}

func compress(path string) (err error) {
	in, err := os.Open(path)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(path+partial, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o640)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path+partial))
		}
	}()
	w := gzip.NewWriter(out)
	_, err = io.Copy(w, in)
	if err = errors.Join(err, w.Close(), out.Close()); err != nil {
		return err
	}
	if err = os.Rename(path+partial, path+gz); err != nil {
		return err
	}
	return os.Remove(path)
}

// Options say what of a log is read.
type Options struct {
	Follow, Timestamps bool
	// Tail is the number of lines from the end, LimitBytes the most that is returned; nil is all.
	Tail, LimitBytes *int64
	// Since cuts off older lines; zero is none.
	Since time.Time
}

// Read writes a container's log. With Follow it goes on until the container ends or ctx does.
func Read(ctx context.Context, rt cri.Containers, path, container string, o Options, stdout, stderr io.Writer) error {
	options := &logs.LogOptions{TailLines: o.Tail, LimitBytes: o.LimitBytes, Since: o.Since, Follow: o.Follow, Timestamp: o.Timestamps}
	return logs.ReadLogs(ctx, path, container, options, statusOnly{rt: rt}, stdout, stderr)
}

// Tail returns the last lines of a container's log, at most that many lines and bytes.
func Tail(ctx context.Context, path string, lines int64, bytes int) string {
	var b limited
	b.max = bytes
	if err := logs.ReadLogs(ctx, path, "", &logs.LogOptions{TailLines: &lines}, nil, &b, &b); err != nil {
		return fmt.Sprintf("Error reading container log: %v", err)
	}
	return string(b.data)
}

// limited keeps the last max bytes written to it.
type limited struct {
	data []byte
	max  int
}

func (l *limited) Write(p []byte) (int, error) {
	l.data = append(l.data, p...)
	if n := len(l.data) - l.max; n > 0 {
		l.data = append(l.data[:0], l.data[n:]...)
	}
	return len(p), nil
}

// statusOnly lends the log reader the one call of the runtime it makes.
type statusOnly struct {
	internalapi.RuntimeService
	rt cri.Containers
}

// ContainerStatus implements the log reader's view of the runtime.
func (s statusOnly) ContainerStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.ContainerStatusResponse, error) {
	return s.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id, Verbose: verbose})
}
