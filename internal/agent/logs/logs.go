// Package logs rotates and reads containers' logs, files in CRI's format below a folder for each
// pod.
package logs

import (
	"context"
	"fmt"
	"io"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-client/pkg/logs"

	"barque.dev/internal/agent/cri"
)

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
