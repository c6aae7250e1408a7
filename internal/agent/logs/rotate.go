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

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"barque.dev/internal/agent/cri"
)

// Rotation says how large logs grow.
type Rotation struct {
	// MaxSize is the size, in bytes, from which a log is put aside.
	MaxSize int64
	// MaxFiles is how many files a container's log has at most, the present one included; at
	// least 2.
	MaxFiles int
}

// DefaultRotation is the stock kubelet's.
func DefaultRotation() Rotation { return Rotation{MaxSize: 10 << 20, MaxFiles: 5} }

const (
	stampFormat = "20060102-150405"
	gz          = ".gz"
	partial     = ".tmp"
)

// Running rotates the logs of all running containers; path tells where a container's log is. It
// goes on after a failure and returns all of them joined.
func (r Rotation) Running(ctx context.Context, rt cri.Containers, path func(*runtimeapi.Container) string, now time.Time) error {
	list, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{
		State: &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING},
	}})
	if err != nil {
		return fmt.Errorf("rotate logs: list containers: %w", err)
	}
	var failures []error
	for _, c := range list.GetContainers() {
		err := r.Rotate(path(c), now, func() error {
			_, err := rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.GetId()})
			return err
		})
		if err != nil {
			failures = append(failures, fmt.Errorf("container %s: %w", c.GetId(), err))
		}
	}
	return errors.Join(failures...)
}

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
